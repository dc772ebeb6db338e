"""Memory of a training step: parameters, gradients, optimiser, activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from jukebox_core.audio.spectra import _hann
from jukebox_core.machine import free_bytes
from jukebox_core.vqvae.bottleneck import Bottleneck

SHARE = 0.7
"""Fraction of free memory to plan for; the rest covers temporaries."""


CODEC_ON_CPU = 0.9
"""Least share of a codec's counted activations that a CPU keeps: `vqvae.cpu` merges two layers, the
count in fake tensors does not."""


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Inside the block, tensors have shapes but no data: models take neither memory nor time."""
    _hann.cache_clear()  # a window made inside is fake, too
    try:
        with FakeTensorMode():
            yield
    finally:
        _hann.cache_clear()


class TrainingBytes(NamedTuple):
    """Bytes in one process, with AdamW and a weight average; activations of one crop."""

    parameters: int
    gradients: int
    optimiser: int
    average: int
    activations: float

    @property
    def fixed(self) -> int:
        """Bytes that do not grow with the batch."""
        return self.parameters + self.gradients + self.optimiser + self.average


def training_bytes(
    objective: nn.Module, batch: Tensor | None, averaged: bool = True
) -> TrainingBytes:
    """Measure the bytes of `objective`, with activations from a forward pass of batch [B, T].

    Without a batch, the activations count as zero.
    """
    tensors = [*objective.parameters(), *objective.buffers()]
    trained = sum(p.nbytes for p in objective.parameters() if p.requires_grad)
    return TrainingBytes(
        parameters=sum(x.nbytes for x in tensors),
        gradients=trained,
        optimiser=2 * trained,
        average=trained if averaged else 0,
        activations=0.0 if batch is None else saved_bytes(objective, batch) / len(batch),
    )


def require_memory(
    build: Callable[[], nn.Module],
    batch: Callable[[], Tensor],
    crops: int,
    device: torch.device,
    *,
    processes: int = 1,
    averaged: bool = True,
    moments: float = 1.0,
    mixed: bool = False,
) -> None:
    """Refuse a training that does not fit in memory, before allocating anything.

    The estimate is a lower bound: a training that passes may still be too large.

    Args:
        build: makes the objective; called inside `fake_tensors`.
        batch: makes a few crops [B, T], or codes; also called inside `fake_tensors`.
        crops: crops that one process computes at a time.
        device: device of the training.
        processes: number of processes that share the device's memory.
        averaged: whether a weight average is kept.
        moments: share of the optimiser state that one process keeps.
        mixed: whether autocast stores activations in 16 bits.

    Raises:
        ValueError: the training needs more than the free memory; the message has both figures.
    """
    free = free_bytes(device) / processes
    with fake_tensors(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        objective = build()
        model = training_bytes(objective, None, averaged)
        fixed = model.fixed - (1 - moments) * model.optimiser
        activations = 0.0
        # Codebooks of several processes exchange sums; fake tensors cannot do that.
        if fixed <= free and not torch.distributed.is_initialized():
            few = batch()
            activations = crops * saved_bytes(objective, few) / len(few)
            activations *= CODEC_ON_CPU if device.type == "cpu" else 1.0
    if fixed + activations <= free:
        return
    parts = f"{fixed / 1e9:,.1f} GB for parameters, gradients and the optimiser"
    if activations:
        parts += f", {activations / 1e9:,.1f} GB for {crops:,} crops computed at a time"
    raise ValueError(
        f"training needs at least {(fixed + activations) / 1e9:,.1f} GB of memory ({parts}), "
        f"but only {free / 1e9:,.1f} GB are free on {device}"
        + (f" for each of {processes} processes" if processes > 1 else "")
        + ": compute fewer crops at a time, or use a smaller model"
    )


def saved_bytes(objective: nn.Module, batch: Tensor) -> int:
    """Bytes that a forward pass in training mode keeps for the backward pass.

    Each storage counts once; parameters and the batch do not count. Works on real tensors and on
    fake ones (see `fake_tensors`); the objective does not change.
    """
    # Keep references, so that no new storage reuses an address.
    held = [*objective.parameters(), *objective.buffers(), batch]
    excluded = {_storage(x) for x in held}
    seen: dict[Any, int] = {}

    def pack(x: Tensor) -> Tensor:
        key = _storage(x)
        if key not in excluded and key not in seen:
            seen[key] = x.untyped_storage().nbytes()
            held.append(x)
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
    with _untouched(objective), hooks, torch.enable_grad():
        objective(batch, torch.Generator().manual_seed(0))
    return sum(seen.values())


def crops_that_fit(objective: nn.Module, item: Tensor, device: torch.device, processes: int) -> int:
    """Number of crops to compute at a time, at least one item's.

    Args:
        objective: on the device.
        item: crops or codes [R, T] that stay together.
        device: device of the training.
        processes: number of processes that share the memory.
    """
    needed = training_bytes(objective, item.to(device))
    free = SHARE * free_bytes(device) / processes - (needed.fixed - needed.parameters)
    return len(item) * max(1, int(free / max(1.0, needed.activations * len(item))))


@contextmanager
def _untouched(objective: nn.Module) -> Iterator[None]:
    """Training mode with initialised codebooks; restores the objective at the end."""
    training = objective.training
    stored = [buffer.clone() for buffer in objective.buffers()]
    bottlenecks = [m for m in objective.modules() if isinstance(m, Bottleneck)]
    ready = [bottleneck._ready for bottleneck in bottlenecks]
    for bottleneck in bottlenecks:
        bottleneck.restore_averages()
    objective.train()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        objective.train(training)
        for buffer, before in zip(objective.buffers(), stored, strict=True):
            buffer.copy_(before)
        for bottleneck, was in zip(bottlenecks, ready, strict=True):
            bottleneck._ready = was


def _storage(x: Tensor) -> Any:
    return x.untyped_storage()._cdata
