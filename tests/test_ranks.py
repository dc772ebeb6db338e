"""The processes that share a command's work, as far as one process can show; see
test_separate_script.py for several."""

import os
import subprocess
import sys

import pytest
import torch

from jukebox_core.machine import share_of_cores
from jukebox_core.training.ranks import Ranks

LAUNCHERS = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "SLURM_NTASKS",
)


@pytest.fixture
def alone(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    return Ranks()


def test_one_process_talks_to_itself(alone):
    assert (alone.rank, alone.size, alone.local_rank, alone.local_size) == (0, 1, 0, 1)
    assert alone.gather("x") == ["x"] and alone.broadcast(5) == 5
    assert alone.on_first(lambda: [1]) == [1] and alone.together(lambda: 2) == 2
    with pytest.raises(ZeroDivisionError):
        alone.together(lambda: 1 // 0)
    assert share_of_cores(alone.local_size) is None and alone.device("cuda:3") == "cuda:3"


def test_processes_of_one_machine_share_its_cores_and_gpus(alone, monkeypatch):
    alone.local_rank, alone.local_size = 5, 8
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(20)), raising=False)
    assert share_of_cores(alone.local_size) == 2
    alone.local_size = 64
    assert share_of_cores(alone.local_size) == 1
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert alone.device("auto") == alone.device("cuda") == "cuda:1" and chosen == [1, 1]
    assert alone.device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device cuda:0 for 64 processes; leave out the number"):
        alone.device("cuda:0")


def test_mpiexec_without_mpi4py_is_refused(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PMI_SIZE", "3")
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(ValueError, match="started 3 processes.*pip install mpi4py mpich"):
        Ranks()


def test_one_process_does_not_wait_for_what_only_several_need():
    code = "import sys; from scripts import count_sums, separate; separate.Ranks(); "
    code += "print(*sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHERS}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    slow = {"lightning_fabric", "torch._dynamo", "scipy.signal", "scipy.stats", "matplotlib"}
    assert "torch" in found.stdout.split() and not slow & {*found.stdout.split()}
