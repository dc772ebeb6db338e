"""The machine: devices, CPU threads and free memory."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from jukebox_core.checks import require

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def pick_device(device: str) -> torch.device:
    """The device of that name; `auto` is CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.zeros(1, device=picked).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason})") from error
    return picked


def share_of_cores(processes: int) -> int | None:
    """CPU threads for one of `processes` on this machine; None: PyTorch's default, for one."""
    return None if processes == 1 else max(1, available_cores() // processes)


def available_cores() -> int:
    """CPU cores that this process may run on."""
    own = getattr(os, "sched_getaffinity", None)
    return len(own(0)) if own else os.cpu_count() or 1


def set_threads(threads: int | None, processes: int = 1) -> None:
    """Set the CPU threads of PyTorch in this process.

    Args:
        threads: number of threads; None: this process's share of the cores, or PyTorch's default
            for one process.
        processes: number of processes that share this machine.

    Raises:
        ValueError: the number is invalid, or so large that starting the threads may kill the
            process.
    """
    if threads is not None:
        cores = available_cores()
        hint = f"this machine has {cores} cores"
        require("threads", threads, whole=True, at_least=1, at_most=max(256, cores), hint=hint)
    count = share_of_cores(processes) if threads is None else threads
    if count is not None:
        torch.set_num_threads(count)


def free_bytes(device: torch.device) -> int:
    """Free memory of a device in bytes; the host's for devices that do not report it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch holds and does not use is free as well.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    return min(psutil.virtual_memory().available, _container_bytes())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports a lack of memory, on any device."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def release(device: torch.device) -> None:
    """Release the memory that PyTorch caches."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _container_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Free bytes within a container's limit; without a limit, more than any machine has."""
    with suppress(OSError, ValueError):  # without a limit, the file has the word max
        limit, used = (
            int((folder / f"memory.{name}").read_text(encoding="ascii"))
            for name in ("max", "current")
        )
        return max(0, limit - used)
    return 1 << 62
