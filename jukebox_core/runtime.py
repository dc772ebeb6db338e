"""The process a run lives in: devices, random generators, signals."""

from __future__ import annotations

import inspect
import os
import random
import signal
import threading
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "Precision",
    "Signals",
    "generator_states",
    "make_fabric",
    "seed_everything",
    "set_generator_states",
]

Precision = Literal["32", "bf16-mixed", "16-mixed"]


class _KeepInputs(MixedPrecision):
    """Autocast without Fabric's rounding of the inputs: the target waveform keeps its 24 bits."""

    def convert_input(self, data: Any) -> Any:
        """Leave the batch as it is."""
        return data


def make_fabric(
    device: str = "auto", precision: Precision = "32", devices: int = 1, num_nodes: int = 1
) -> Fabric:
    """Fabric on a device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; under torchrun, its processes.

    Raises:
        ValueError: the device is not there, or the precision is of no use on it.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    name, _, index = device.partition(":")
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    known = {"cpu": True, "cuda": cuda, "mps": mps}
    if not known.get(name, False) or (index and not index.isdigit()):
        have = ", ".join(n for n, available in known.items() if available)
        raise ValueError(f"device {device!r} cannot be used here; there is {have}")
    if precision == "16-mixed" and name != "cuda":
        raise ValueError(f"precision 16-mixed needs CUDA, the device is {name}; use bf16-mixed")
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    many = devices * num_nodes > 1
    return Fabric(
        accelerator=name,
        devices=[int(index)] if index and name == "cuda" else devices,
        num_nodes=num_nodes,
        strategy=_ddp() if many else "auto",
        plugins=None if precision == "32" else [_KeepInputs(precision, name)],
    )


def _ddp() -> DDPStrategy:
    """Data parallel; all ranks compute the same codebooks, so buffers are not broadcast."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DDPStrategy(**options)


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
    """While open, SIGTERM and Ctrl-C are noted in `received`; a second Ctrl-C interrupts."""

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
