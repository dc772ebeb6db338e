"""What a machine cannot do is refused before any work: threads, devices, workers, memory."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_trainer import Noise

from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.datasets import batches as batches_module
from jukebox_core.datasets.batches import Batches
from jukebox_core.machine import set_threads
from jukebox_core.presets import PRESETS
from jukebox_core.training import distributed as runtime
from jukebox_core.training import memory as training_memory
from jukebox_core.training.distributed import make_fabric
from jukebox_core.training.memory import require_memory
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ReconstructionObjective
from scripts import train_mask, train_prior, train_vqvae

ROOT = Path(__file__).resolve().parent.parent
COMMON = ("--preset", "tiny", "--device", "cpu", "--wandb", "disabled")
CPU = torch.device("cpu")


def refused(capsys, main, flags):
    """The one line of a program that fails; nothing hangs, nothing is written."""
    began = time.monotonic()
    assert main([str(flag) for flag in flags]) in (1, 2)
    assert time.monotonic() - began < 20
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and said.startswith("error: ")
    return said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--threads", "100000"), "threads is 100000, expected an integer at least 1 and at most"),
        (("--threads", "0"), "threads is 0, expected an integer at least 1"),
        (("--threads", "-1"), "threads is -1"),
        (("--devices", "999"), "devices is 999, expected an integer at least 1 and at most"),
        (("--devices", "0"), "devices is 0"),
        (("--devices", "-1"), "devices is -1"),
        (("--num-nodes", "2"), "num_nodes is 2, but no launcher"),
        (("--num-nodes", "0"), "num_nodes is 0"),
        (("--device", "cuda:"), "device 'cuda:' cannot be used here"),
        (("--device", "cpu:7"), "device 'cpu:7' cannot be used here"),
        (("--precision", "nonsense"), "precision"),
        (("--train.workers", "500"), "workers is 500, expected an integer at least 0 and at most"),
        (("--train.batch-size", "10000000"), "batch_size is 10000000"),
        (("--train.batch-size", "900000"), "GB for 900,000 crops computed at a time"),
        (("--train.crop", "100000000000000"), "the longest has 66150"),
        (("--vqvae.l-bins", "1000000000"), "l_bins is 1000000000, expected an integer"),
        (("--vqvae.l-bins", "2000000", "--vqvae.emb-width", "32768"), "training needs at least "),
        (("--vqvae.width", "30000"), "training needs at least "),
        (("--vqvae.strides-t", "2", "1"), "strides_t[1] is 1, expected an even number"),
        (("--loss.multispectral-stfts",), "multispectral"),
        (("--loss.spectral-stft", "10", "20", "30"), "spectral_stft is (10, 20, 30)"),
        (("--seed", "-1"), "seed is -1"),
        (("--seed", "99999999999999999999"), "seed is 99999999999999999999"),
        (("--max-seconds", "nan"), "max_seconds is nan"),
        (("--bandwidth-seconds", "0"), "bandwidth_seconds is 0"),
        (("--transpose-semitones", "1000"), "transpose_semitones is 1000"),
        (("--gain-db", "nan"), "gain_db is nan"),
        (("--batch", "0"), "batch is 0"),
        (("--batch", "1"), "batch is 1; an item is 2 crops"),
        (("--train.crop", "4100"), "--train.crop is 4100, not a multiple of the hop, 16 samples"),
        (("--train.crop", "1024"), "--train.crop is 1024; the loss with n_fft 2048"),
        (("--train.batch-size", "3"), "batch size 3 does not divide into 2 rows per item"),
        (("--train.steps", "0"), "steps is 0, expected an integer at least 1"),
        (("--device", "abacus"), "device 'abacus' cannot be used here"),
        (("--vqvae.sample-rate", "44100"), "is at 22050 Hz, the model at 44100"),
        (("--vqvae.levels", "3"), "downs_t has 2 entries, levels is 3"),
        (("--validate-on", "nowhere"), "validate_on is 'nowhere', but"),
        (("--preset", "huge"), "huge"),
        (("--vqvae.colour", "3"), "--vqvae.colour"),
        (("--keep", "-1"), "keep is -1"),
        (("--keep-media", "-1"), "keep_media is -1"),
        (("--validate-on", ""), "validate_on is ''"),
        (("--wandb-project", ""), "project is ''"),
        (("--wandb-name", ""), "name is ''"),
        (("--wandb-project", "a/b"), "project is 'a/b'"),
    ],
)
def test_flags_of_the_codec(tmp_path, tiny_data, monkeypatch, capsys, more, message):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    flags = ["--objective", "reconstruction", "--data", tiny_data, "--output", tmp_path / "run"]
    said = refused(capsys, train_vqvae.main, [*flags, *COMMON, *more])
    assert message in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--prior.heads", "0"), "heads is 0"),
        (("--prior.blocks", "0"), "blocks is 0"),
        (("--prior.m-mlp", "-1"), "m_mlp is -1"),
        (("--prior.init-scale", "nan"), "init_scale is nan"),
        (("--prior.width", "60000"), "training needs at least "),
        (("--prior.depth", "1000000000"), "depth is 1000000000"),
        (("--code-shifts", "0"), "code_shifts is 0"),
        (("--code-shifts", "17"), "code_shifts is 17, expected an integer at least 1 and at most"),
        (("--source", "piano"), "source 'piano' is not in"),
        (("--train.crop", "8192"), "8192, 512 codes; the context (--prior.n-ctx) holds 256"),
        (("--train.crop", "4100"), "not a multiple of the hop"),
        (("--prior.emb-width", "8"), "--prior.emb-width is 8, the codec"),
        (("--vqvae", "nowhere"), "there is no run folder nowhere"),
        (("--transpose-semitones", "1000"), "transpose_semitones is 1000"),
    ],
)
def test_flags_of_the_prior(tmp_path, tiny_data, tiny_models, capsys, more, message):
    codec = tiny_models / "reconstruction/vqvae"
    flags = ["--vqvae", codec, "--source", "bass", "--data", tiny_data]
    output = tmp_path / "run"
    said = refused(capsys, train_prior.main, [*flags, "--output", output, *COMMON, *more])
    assert message in said
    assert not output.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--mask.sample-rate", "44100"), "is at 22050 Hz, the "),
        (("--mask.hidden", "15"), "hidden is 15; two directions need an even number"),
        (("--mask.colour", "3"), "--mask.colour"),
    ],
)
def test_flags_of_the_mask_estimator(tmp_path, tiny_data, capsys, more, message):
    flags = ["--data", tiny_data, "--output", tmp_path / "run", *COMMON, *more]
    assert message in refused(capsys, train_mask.main, flags)
    assert not (tmp_path / "run").exists()


def test_threads_are_set_or_shared(monkeypatch):
    numbers = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr("jukebox_core.machine.available_cores", lambda: 12)
    set_threads(3)
    set_threads(3, processes=4)
    set_threads(None)
    set_threads(None, processes=4)
    set_threads(256)
    assert numbers == [3, 3, 3, 256]
    for wrong in (0, -1, 257, 2.0, True, "2"):
        with pytest.raises(ValueError, match="threads is .*this machine has 12 cores"):
            set_threads(wrong)


def test_devices_that_are_there(monkeypatch):
    monkeypatch.setattr(runtime, "_device_counts", lambda: {"cpu": 1, "cuda": 3, "mps": 0})
    assert runtime._device("auto") == ("cuda", None)
    assert runtime._device("cuda:2") == ("cuda", 2)
    assert runtime._device("cpu") == ("cpu", None) and runtime._device("cpu:0") == ("cpu", 0)
    for name in (
        "cuda:3",
        "cuda:",
        "cuda:-1",
        "cuda:²",
        "cuda:01",
        "mps",
        "auto:1",
        ":",
        "",
        "CPU",
    ):
        with pytest.raises(ValueError, match="cannot be used here; there is cpu, 3 cuda"):
            runtime._device(name)
    for devices in (0, -1, 10**9, True, 1.0):
        with pytest.raises(ValueError, match=f"devices is {devices}"):
            make_fabric("cpu", devices=devices)
    with pytest.raises(ValueError, match="precision is '64'"):
        make_fabric("cpu", "64")
    with pytest.raises(ValueError, match="16-mixed needs CUDA, the device is cpu"):
        make_fabric("cpu", "16-mixed")


def test_several_machines_need_a_launcher_or_an_address(monkeypatch):
    for name, value in (("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "2222"), ("NODE_RANK", "1")):
        with pytest.raises(ValueError, match="num_nodes is 2"):
            make_fabric("cpu", num_nodes=2)
        monkeypatch.setenv(name, value)
    assert make_fabric("cpu", num_nodes=2)._strategy.num_nodes == 2


def test_shared_memory_that_is_too_small(monkeypatch):
    free = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(batches_module.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(batches_module, "SHARED_MEMORY", ROOT)
    # Two batches wait for each worker and one is used, 16 x 1000 float32 each.
    batches = Batches(Noise(crop=1000), 16, workers=2)
    free.free = 5 * 64_000
    batches.require_shared_memory()
    for size, loaders in ((5 * 64_000 - 1, 1), (10 * 64_000 - 1, 2)):
        free.free = size
        with pytest.raises(ValueError, match=r"workers is 2: .* take 0\.\d MB of .* 0\.\d MB free"):
            batches.require_shared_memory(loaders)
    with pytest.raises(ValueError, match="workers is 2"):
        free.free = 0
        batches.steps(0, 1)
    dataclasses.replace(batches, workers=0).require_shared_memory()


KILLED = """
import os, signal
from test_trainer import Noise
from jukebox_core.datasets.batches import Batches
batches = Batches(Noise(crop=1000), 16, workers=2).steps(0, 9)
next(batches)
workers = batches.gi_frame.f_locals["loaded"]._workers
print(len(os.listdir(os.environ["TMPDIR"])), flush=True)
for worker in workers:
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
"""


def test_workers_that_are_killed_leave_no_temporary_files(tmp_path):
    env = os.environ | {
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", KILLED], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n", done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.name != "posix" or not Path("/dev/shm").is_dir(),
    reason="Linux alone has such a folder",
)
def test_a_container_with_little_shared_memory(tmp_path, tiny_data):
    """Under a real /dev/shm of 64 kB, where worker processes end with a bus error."""
    flags = ["--objective", "reconstruction", "--data", str(tiny_data), *COMMON]
    flags += ["--output", str(tmp_path / "run"), "--train.workers", "2"]
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount")
    result = subprocess.run(
        [*inside, sys.executable, "-m", "scripts.train_vqvae", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "workers is 2: the batches that they prepare take 0.7 MB of /dev/shm" in result.stderr
    assert not (tmp_path / "run").exists()


def test_steps_without_end_take_no_memory():
    steps = Batches(Noise(), 4).steps(0, 2**62)
    assert next(steps).shape == (4, 16)


def objective(**changes):
    config = dataclasses.replace(PRESETS["tiny"].vqvae, **changes)
    return ReconstructionObjective(VQVAE(config), LossConfig(), Bandwidths())


def test_memory_is_asked_before_it_is_allocated(monkeypatch):
    free = 10**9
    monkeypatch.setattr(training_memory, "free_bytes", lambda _: free)

    def ask(crops, build=objective, **more):
        require_memory(build, lambda: torch.zeros(2, 4096), crops, CPU, **more)

    ask(8)
    with pytest.raises(ValueError, match=r"at least \d+\.\d GB .*\(0.0 GB for p.* 1.0 GB are"):
        ask(1000)
    ask(100)
    with pytest.raises(ValueError, match="100 crops.*for each of 4 processes"):
        ask(100, processes=4)
    with pytest.raises(
        ValueError, match=r"at least [\d,]{4,}\.\d GB of memory \([\d,]{4,}\.\d GB for par"
    ):
        ask(1, lambda: objective(l_bins=2_000_000, emb_width=32_768))
    # Parameters, gradients, two moments: a share of the moments, no average.
    with pytest.raises(ValueError, match="1.0 GB are free"):
        ask(1, lambda: objective(width=1500))
    needed = training_memory.training_bytes(torch.nn.Linear(1000, 1000), None)
    assert needed.fixed == 5 * needed.parameters
