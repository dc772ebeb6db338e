"""How many windows fit the memory, and what running out of it looks like."""

from __future__ import annotations

import gc
import importlib
import os
from pathlib import Path

import torch

from jukebox_core.prior.joint import JointPriors

__all__ = [
    "TooLarge",
    "decoded_bytes",
    "free_bytes",
    "is_out_of_memory",
    "release",
    "windows_that_fit",
]

SHARE = 0.5
"""Of the free memory that a batch may take: the estimate knows the large parts alone."""

CPU_SEQUENCES = 256
"""Pairs of sequences decoded together from which a CPU gains little by more."""

GPU_SEQUENCES = 4096
"""As above, for a GPU."""

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
_LOGITS = 16  # float32 rows [K] of a sequence: logits, log-probabilities, the draw's intermediates
_TABLES = 3  # float32 tables [K, K] of a window's step


class TooLarge(ValueError):
    """The smallest piece of the work does not fit the memory."""


def windows_that_fit(
    joint: JointPriors,
    candidates: int,
    codes: int,
    samples: int,
    device: torch.device,
    processes: int = 1,
    shifts: int = 1,
) -> int:
    """Windows to sample together, at least 1: useful on the device, within half its free memory.

    Args:
        joint: the priors; a cache for one pair of sequences is made to see its size.
        candidates: N.
        codes: of a sequence, its context included.
        samples: of a decoded candidate.
        device: where the priors are.
        processes: that share the free memory.
        shifts: sequences of mixture codes per window.
    """
    useful = -(-(CPU_SEQUENCES if device.type == "cpu" else GPU_SEQUENCES) // candidates)
    per_pair = joint.new_cache(1, codes).nbytes() + 2 * 4 * _LOGITS * joint.n_codes
    on_device = candidates * per_pair + 4 * _TABLES * shifts * joint.n_codes**2
    on_host = 2 * decoded_bytes(candidates, samples)  # decoded in parts and joined
    host, own = torch.device("cpu"), free_bytes(device)
    if device.type == "cpu":
        fits = own / (on_device + on_host)
    else:
        fits = min(own / on_device, free_bytes(host) / on_host)
    return max(1, min(useful, int(SHARE * fits / processes)))


def decoded_bytes(candidates: int, samples: int) -> int:
    """Bytes of a window's candidates of both sources, as float32 audio."""
    return 2 * 4 * candidates * samples


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had there, in bytes; of a device that does not say, the host's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch holds and does not use is free as well.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    return min(_system_bytes(), _container_bytes())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had, on whatever device."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def release(device: torch.device) -> None:
    """Give back what PyTorch holds in reserve."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _system_bytes() -> int:
    try:
        return int(importlib.import_module("psutil").virtual_memory().available)
    except ImportError:
        pass
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 4 << 30


def _container_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container's limit leaves; without one, more than any machine has."""
    try:
        limit = (folder / "memory.max").read_text(encoding="utf-8").strip()
        if limit.isdigit():
            return max(0, int(limit) - int((folder / "memory.current").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        pass
    return 1 << 62
