"""Processes of a run: launchers, devices, random generators, signals."""

from __future__ import annotations

import atexit
import inspect
import os
import random
import signal
import threading
from datetime import timedelta
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from jukebox_core.checks import require, require_choice
from jukebox_core.machine import available_cores
from jukebox_core.parent import end_with_parent

Precision = Literal["32", "bf16-mixed", "16-mixed"]


class _KeepInputs(MixedPrecision):
    """Autocast that does not round the inputs: the target waveform keeps its 24 bits."""

    def convert_input(self, data: Any) -> Any:
        """Return the batch unchanged."""
        return data


def make_fabric(
    device: str = "auto", precision: Precision = "32", devices: int = 1, num_nodes: int = 1
) -> Fabric:
    """Fabric on a device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    torchrun, mpiexec and SLURM set the number of processes; without them, `devices` and `num_nodes`
    do.

    Raises:
        ValueError: the device does not exist or does not support the precision, there are too few
            devices, or the processes cannot find each other.
    """
    name, index = _device(device)
    require_choice("precision", precision, get_args(Precision))
    if precision == "16-mixed" and name != "cuda":
        raise ValueError(f"precision 16-mixed needs CUDA, the device is {name}; use bf16-mixed")
    require("num_nodes", num_nodes, whole=True, at_least=1)
    environment, world, local = _launched()
    plugins: list[Any] = []
    if environment is not None and world > 1:
        devices, num_nodes = local, _nodes(world, local)
        plugins.append(environment)
    else:
        # Tests may use a few more processes than CPU cores.
        most = max(8, available_cores()) if name == "cpu" else _device_counts()[name]
        hint = f"{name} of this machine"
        require("devices", devices, whole=True, at_least=1, at_most=most, hint=hint)
        _require_launcher(num_nodes)
    many = devices * num_nodes > 1
    if not many:
        # By default, Fabric tries to start MPI, which needs megabytes of /dev/shm.
        plugins.append(LightningEnvironment())
    if many and index is not None:
        raise ValueError(
            f"device {device} for {devices * num_nodes} processes; leave out the number"
        )
    if precision != "32":
        plugins.append(_KeepInputs(precision, name))
    return Fabric(
        accelerator=name,
        devices=[index] if index is not None and name == "cuda" else devices,
        num_nodes=num_nodes,
        strategy=_ddp() if many else "auto",
        plugins=plugins or None,
    )


def _device_counts() -> dict[str, int]:
    """{kind: number of devices}; all CPUs of a machine are one device."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"cpu": 1, "cuda": cuda, "mps": int(torch.backends.mps.is_available())}


def _device(device: str) -> tuple[str, int | None]:
    """Kind and index of a device; `auto` is resolved.

    Raises:
        ValueError: the device does not exist.
    """
    counts = _device_counts()
    if device == "auto":
        return ("cuda" if counts["cuda"] else "mps" if counts["mps"] else "cpu"), None
    kind, colon, index = str(device).partition(":")
    if counts.get(kind, 0) and not colon:
        return kind, None
    if index in map(str, range(counts.get(kind, 0))):
        return kind, int(index)
    have = ", ".join(f"{n} {kind}" if n > 1 else kind for kind, n in counts.items() if n)
    raise ValueError(f"device {device!r} cannot be used here; there is {have}")


def _require_launcher(num_nodes: int) -> None:
    """Refuse several machines without a launcher: their processes would wait forever.

    Raises:
        ValueError: the environment lacks the address where the processes meet.
    """
    missing = [
        name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not os.environ.get(name)
    ]
    if num_nodes > 1 and missing:
        raise ValueError(
            f"num_nodes is {num_nodes}, but no launcher started the processes: use "
            f"torchrun, mpiexec or srun, or set {', '.join(missing)} on every machine"
        )


def _ddp() -> DDPStrategy:
    """Data parallel; all ranks compute the same codebooks, so buffers are not broadcast."""
    parameters = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    # A slow machine may draw candidates for hours longer than the others, which wait.
    return DDPStrategy(timeout=timedelta(days=1), **{name: False})  # type: ignore[arg-type]


def launch(fabric: Fabric) -> None:
    """Connect the processes, and disconnect them when the interpreter exits.

    They end when the launcher does; without one, the first process started the others.

    Fabric does not destroy gloo's group: its threads may still run at exit, and abort the process
    after its work is done.
    """
    fabric.launch()
    if fabric.world_size > 1 and (_launched()[0] is not None or fabric.local_rank):
        end_with_parent()
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        atexit.register(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def connect() -> tuple[int, int, int, int]:
    """Connect the launched processes, which exchange objects on the CPU.

    Returns:
        The rank and the number of processes, of all and of this machine.

    Raises:
        ValueError: mpi4py is missing under mpiexec, or machines differ in their processes.
    """
    environment, world, local = _launched()
    if environment is None or world == 1:
        return 0, 1, 0, 1
    # Ranks wait for the slowest at the end, maybe hours; the default is half an hour.
    ddp = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=30))
    fabric = Fabric(
        accelerator="cpu",
        strategy=ddp,
        devices=local,
        num_nodes=_nodes(world, local),
        plugins=environment,
    )
    launch(fabric)
    return fabric.global_rank, fabric.world_size, fabric.local_rank, local


def _nodes(world: int, local: int) -> int:
    """Number of machines; each must have as many processes as this one."""
    if world % local:
        raise ValueError(f"{world} processes, {local} of them here: start as many on each host")
    return world // local


def _launched() -> tuple[ClusterEnvironment | None, int, int]:
    """The launcher (torchrun, SLURM, MPI or none), the world size and the local size."""
    if TorchElasticEnvironment.detect():
        world, local = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return TorchElasticEnvironment(), world, local
    if SLURMEnvironment.detect():
        slurm = SLURMEnvironment()
        world, nodes = slurm.world_size(), int(os.environ.get("SLURM_NNODES", "1"))
        return slurm, world, -(-world // nodes)
    sizes = [int(os.environ.get(name, "1")) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]
    if max(sizes) == 1:
        return None, 1, 1
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: without an MPI library
        raise ValueError(
            f"mpiexec started {max(sizes)} processes, which need mpi4py to find each other: "
            "pip install mpi4py mpich"
        ) from error
    here = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    return MPIEnvironment(), MPI.COMM_WORLD.Get_size(), here.Get_size()


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def generator_states(device: torch.device) -> dict[str, Any]:
    """The states of the global random generators, as plain data."""
    numpy: Any = np.random.get_state()
    kind, keys, *rest = numpy
    states = {
        "torch": torch.get_rng_state(),
        "numpy": (kind, keys.tolist(), *rest),
        "python": random.getstate(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: dict[str, Any], device: torch.device) -> None:
    """Continue the global random generators from `generator_states`."""
    torch.set_rng_state(states["torch"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(states["python"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


class Signals:
    """Inside the block, `received` records SIGTERM and Ctrl-C; a second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
