"""scripts.count_sums in several processes, and killed: the bytes of an undisturbed one."""

import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from lass import load_counts
from lass.counter import TripleCounter
from lass.triples import Triples
from scripts import count_sums

REPOSITORY = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
MPIEXEC = shutil.which("mpiexec", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ITERATIONS = 300
needs_mpi = pytest.mark.skipif(
    not (MPIEXEC and importlib.util.find_spec("mpi4py")), reason="needs mpi4py and mpich"
)


@pytest.fixture(scope="module")
def flags(tiny_models, tiny_data):
    """The flags of a counting into a file."""

    def of(output, *more):
        codec = tiny_models / "linearisation" / "vqvae"
        flags = ["--vqvae", codec, "--data", tiny_data, "--output", output, "--device", "cpu"]
        flags += ["--iterations", ITERATIONS, "--pairs", "2", "--crop", "64", "--threads", "1"]
        return [str(word) for word in (*flags, *more)]

    return of


@pytest.fixture(scope="module")
def straight(flags, tmp_path_factory):
    """What one process counts that nothing happens to."""
    output = tmp_path_factory.mktemp("straight") / "counts.safetensors"
    assert count_sums.main(flags(output)) == 0
    return output.read_bytes()


def run(*command):
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def launched(processes):
    """The environment of each of so many processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    ranks = (common | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(processes))
    return [os.environ | {name: str(value) for name, value in each.items()} for each in ranks]


def start(processes, flags):
    """Processes as torchrun starts them, each in a group of its own that can be killed."""
    command = [sys.executable, "-m", "scripts.count_sums", *flags]
    return [
        subprocess.Popen(command, cwd=REPOSITORY, env=env, start_new_session=True)
        for env in launched(processes)
    ]


def spooled(output):
    """Iterations that are safe on disk."""
    state = count_sums.spool_of(output) / "state.json"
    return json.loads(state.read_text())["iterations"] if state.exists() else 0


def kill_when_more(started, output):
    """Kill all processes at some moment after they made more iterations last."""
    before = spooled(output)
    while spooled(output) <= before:
        assert all(process.poll() is None for process in started), "ended by itself"
        time.sleep(0.002)
    time.sleep(0.03 * random.random())
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
    for process in started:
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("killed, finishing", [((1,), 1), ((2,), 2), ((3, 1), 2)])
def test_a_killed_counting_goes_on(flags, straight, tmp_path, killed, finishing):
    output = tmp_path / "counts.safetensors"
    command = flags(output, "--flush-seconds", "0", "--buffer", "300")
    for processes in killed:
        kill_when_more(start(processes, command), output)
        assert not output.exists() and 0 < spooled(output) < ITERATIONS
    for process in start(finishing, command):
        assert process.wait() == 0
    assert output.read_bytes() == straight
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("processes", (1, 2, 3))
def test_iterations_are_added_in_their_order(tmp_path, processes):
    """So that a flush in the middle of a round leaves no gap."""
    counter = TripleCounter(7, tmp_path / "spool", buffer=1)  # flushed by every addition
    args = count_sums.Args(output=tmp_path / "counts", iterations=7)
    total = count_sums.Total(args, counter, tqdm(disable=True))
    codes = np.arange(7).reshape(7, 1)
    iterations = [Triples(code, code, code) for code in codes]
    flushed = []
    spill = counter._spill
    counter._spill = lambda: (flushed.extend(counter._buffer % 7), spill())
    going = [
        total.add([iterations[at : at + 4][rank::processes] for rank in range(processes)])
        for at in (0, 4)
    ]
    assert going == [True, False]
    counter.flush()
    assert flushed == list(range(7))


@pytest.mark.parametrize(
    "launcher",
    [TORCHRUN, pytest.param((MPIEXEC, "-n"), marks=needs_mpi)],
    ids=("torchrun", "mpiexec"),
)
def test_processes_count_what_one_does(flags, straight, tmp_path, launcher):
    output = tmp_path / "counts.safetensors"
    module = ["-m", "scripts.count_sums", *flags(output)]
    python = [] if launcher == TORCHRUN else [sys.executable]
    some = run(*launcher, 2, *python, *module, "--max-seconds", "0")
    assert some.returncode == 0, some.stderr
    assert some.stdout.startswith(f"{output}: ") and some.stdout.count("\n") == 1
    assert load_counts(output)[1]["iterations"] == str(2 * count_sums._ROUND)
    rest = run(*launcher, 3, *python, *module)
    assert rest.returncode == 0, rest.stderr
    assert output.read_bytes() == straight
    assert list(tmp_path.iterdir()) == [output]


def test_a_song_that_one_process_cannot_read_stops_all(flags, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    track = next(track for track in manifest["tracks"] if track["split"] == "train")
    song = data / track["files"]["drums"]["path"]
    song.write_bytes(song.read_bytes()[:1000])
    output = tmp_path / "counts.safetensors"
    result = run(*TORCHRUN, 2, "-m", "scripts.count_sums", *flags(output, "--data", data))
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode != 0 and len(errors) == 1 and song.name in errors[0]
    assert not output.exists()
