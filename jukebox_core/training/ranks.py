"""The processes that share one command's work."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed

T = TypeVar("T")

_LAUNCHED = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Variables of torchrun, SLURM and two kinds of mpiexec."""


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception reports that another process of the run has gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error) and "onnection" in str(error)


def gather(value: T, size: int) -> list[T]:
    """The values of `size` processes, in the order of the ranks."""
    values = [value] * size
    if size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


class Ranks:
    """The processes of torchrun, mpiexec or SLURM that share one command's work, or only this one.

    They exchange Python objects on the CPU; each computes on its own device.
    """

    def __init__(self) -> None:
        """Find the other processes and connect to them.

        Raises:
            ValueError: mpi4py is missing under mpiexec, or machines have different numbers of
                processes.
        """
        self.rank, self.size, self.local_rank, self.local_size = 0, 1, 0, 1
        if any(name in os.environ for name in _LAUNCHED):
            # Fabric takes longer to import than all else that a program of one process needs.
            from jukebox_core.training.distributed import connect

            self.rank, self.size, self.local_rank, self.local_size = connect()

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks."""
        return gather(value, self.size)

    def broadcast(self, value: T) -> T:
        """The first rank's value."""
        values = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(values)
        return values[0]

    def on_first(self, make: Callable[[], T]) -> T:
        """Call `make` only on the first rank; return its result on all. Errors as in `together`."""
        return self.broadcast(self.together(make if self.rank == 0 else lambda: None))  # type: ignore[return-value]

    def together(self, make: Callable[[], T]) -> T:
        """`make()` on every rank; if it fails on any, all stop, and one raises the error."""
        value, error = None, None
        try:
            value = make()
        except Exception as caught:
            error = caught
        failed = self.gather(error is not None)
        if any(failed):
            if error is not None and self.rank == failed.index(True):
                raise error
            raise SystemExit(1)
        return value  # type: ignore[return-value]

    def device(self, name: str) -> str:
        """This rank's device of a kind (auto, cpu, cuda, mps); the ranks of a host share its GPUs.

        Raises:
            ValueError: the name has a GPU's number, but there are several processes.
        """
        if self.local_size == 1:
            return name
        if ":" in name:
            raise ValueError(f"device {name} for {self.local_size} processes; leave out the number")
        if name in ("cpu", "mps") or not torch.cuda.is_available():
            return name
        index = self.local_rank % torch.cuda.device_count()
        torch.cuda.set_device(index)
        return f"cuda:{index}"
