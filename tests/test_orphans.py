"""A training of several processes that loses one, or its launcher, ends in a minute and resumes.

The launcher says why, or the processes that are left do.
"""

import signal
import subprocess
import sys
import time

import psutil
import pytest
from test_count_ranks import MPIEXEC, TORCHRUN, needs_mpi
from test_train_scripts import ROOT, codec_flags

from jukebox_core.checkpoints import load_meta, load_state
from jukebox_core.training.tracking import METRICS
from scripts import train_vqvae

RUNNER = """\
import sys
from pathlib import Path
import scripts
from jukebox_core.stages import Runner, Stage
words = "make_synthetic --tracks 5000 --seconds 5 --workers 1 --output".split()
output = Path(sys.argv[1])
Runner([Stage("songs", (*words, str(output / "songs")))], output, 1, scripts).run()
"""
LOST = "error: lost another process of this run: "
CASES = {
    # launcher and victim: what is said
    ("none", "the launcher"): "error: ",
    ("torchrun", "a rank"): LOST,
    ("torchrun", "the launcher"): "error: the process that started this one (",
    ("mpiexec", "a rank"): "EXIT CODE: 9",
}
COMMANDS = {
    "none": [sys.executable],
    "torchrun": [*TORCHRUN, "2"],
    "mpiexec": [MPIEXEC, "-n", "2", sys.executable],
}


def ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, victim",
    [pytest.param(*case, marks=needs_mpi if case[0] == "mpiexec" else ()) for case in CASES],
)
def test_the_others_end_and_the_run_resumes(tmp_path, tiny_data, launcher, victim):
    run, log = tmp_path / "run", tmp_path / "log"
    flags = codec_flags(tiny_data, run, "--train.checkpoint-every", "2", "--threads", "1")
    many = ["--train.steps", "10000", *(["--devices", "2"] if launcher == "none" else [])]
    command = [*COMMANDS[launcher], "-m", "scripts.train_vqvae", *flags, *many]
    with open(log, "w") as file:
        started = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    metrics = run / METRICS
    while not (metrics.is_file() and "\n3," in metrics.read_text()):
        assert started.poll() is None, log.read_text()
        time.sleep(0.02)
    below = psutil.Process(started.pid).children(recursive=True)
    ranks = [each for each in below if "scripts.train_vqvae" in each.cmdline()]
    assert len(ranks) == (1 if launcher == "none" else 2)
    (started if victim == "the launcher" else ranks[-1]).send_signal(signal.SIGKILL)
    began = time.monotonic()
    while not all(map(ended, ranks)) or started.poll() is None:
        assert time.monotonic() - began < 60, log.read_text()
        time.sleep(0.1)
    assert started.returncode != 0 and CASES[launcher, victim] in log.read_text()
    reached = load_state(run)["step"]
    assert 2 <= reached < 10_000 and not load_meta(run)["finished"]
    # Its settings but for the number of steps, which may grow, and of processes.
    last = str(reached + 2)
    assert train_vqvae.main([*flags, "--train.steps", last]) == 0
    assert load_meta(run)["finished"]


def test_the_stages_of_a_killed_runner_end(tmp_path):
    started = subprocess.Popen([sys.executable, "-c", RUNNER, tmp_path], cwd=ROOT)
    while not list(tmp_path.glob("songs/train/Track*")):
        assert started.poll() is None
        time.sleep(0.02)
    (stage,) = psutil.Process(started.pid).children()
    started.kill()
    started.wait()
    began = time.monotonic()
    while not ended(stage):
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    assert "error: the process that started this one (" in (tmp_path / "logs/songs.log").read_text()
    assert not (tmp_path / "songs" / ".lock").exists() and not list(tmp_path.rglob("*.tmp*"))
