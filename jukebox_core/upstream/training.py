"""Upstream's training: crops and their order, bandwidths, Adam, schedule, loss scale, averages.

For numerical parity and for comparable runs; `jukebox_core.training.trainer` trains with AdamW and
its own schedule.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jukebox_core.audio.io import reference_is_silent
from jukebox_core.audio.spectra import magnitudes
from jukebox_core.config import Bandwidths
from jukebox_core.vqvae.losses import frobenius


class Place(NamedTuple):
    """Sample `offset` of song number `song`."""

    song: int
    offset: int


def number_of_items(lengths: Sequence[int], crop: int) -> int:
    """Number of crops in a data set: floor(total length / crop) over the concatenated songs."""
    return sum(lengths) // crop


def place_of_item(lengths: Sequence[int], crop: int, item: int, shift: int = 0) -> Place:
    """Where the crop of an item starts.

    The songs are laid end to end; item i starts at i crop + shift, with shift drawn from
    [-crop / 2, crop / 2). It belongs to the song that holds its middle. A crop that crosses the
    song's edge moves inwards by half a crop at most.

    Args:
        lengths: samples of every song.
        crop: samples of a crop.
        item: 0 to number_of_items - 1.
        shift: the drawn shift, 0 without augmentation.

    Raises:
        ValueError: The item does not exist, or its song is shorter than a crop.
    """
    ends = np.cumsum(lengths)
    begin = item * crop + shift
    middle = begin + crop // 2
    if not 0 <= middle < ends[-1]:
        raise ValueError(f"item {item} lies outside the {ends[-1]} samples of the data set")
    song = int(np.searchsorted(ends, middle))
    start, end = int(ends[song] - lengths[song]), int(ends[song])
    if begin > end - crop:
        begin = max(start, begin - crop // 2)
    elif begin < start:
        begin = min(end - crop, begin + crop // 2)
    if not start <= begin <= end - crop:
        raise ValueError(f"song {song} has {end - start} samples, a crop has {crop}")
    return Place(song, begin - start)


def mono(audio: Tensor, weights: Tensor | None = None) -> Tensor:
    """Stereo [B, T, 2] to mono [B, T].

    Args:
        audio: left and right.
        weights: of the left channel, [B], drawn from [0, 1) per item (`aug_blend`); None takes
            the mean.
    """
    if weights is None:
        return audio.mean(-1)
    weights = weights.reshape(-1, 1)
    return weights * audio[..., 0] + (1 - weights) * audio[..., 1]


def bandwidths(
    items: Mapping[int, Tensor] | Sequence[Tensor],
    seconds: float,
    rate: int,
    stft: tuple[int, int, int] = (2048, 256, 1536),
    stride: int = 16,
) -> Bandwidths:
    """Measure the loss normalisers on the items 0, stride, 2 stride, ...

    It ends after `seconds` times `rate` samples, counted over all channels.

    Args:
        items: audio [C, T] by item of the training data.
        seconds: duration to measure (600 for codecs, 1 for priors).
        rate: sample rate in Hz.
        stft: n_fft, hop and window of the spectrogram.
        stride: distance between the items.
    """
    seen, visited = 0, 0
    total = squares = absolute = norms = 0.0
    while seen < seconds * rate:
        audio = items[visited * stride].double()  # [C, T]
        visited += 1
        seen += audio.numel()
        total += audio.sum().item()
        squares += audio.square().sum().item()
        absolute += audio.abs().sum().item()
        norms += frobenius(magnitudes(audio.mean(0, keepdim=True), stft)).item()
    return Bandwidths(
        l1=absolute / seen, l2=squares / seen - (total / seen) ** 2, spec=norms / visited
    )


def non_silent_chunks(
    sources: Sequence[Tensor], longest: int, shortest: int, threshold: float = 1.5e-5
) -> list[int]:
    """Indices of the chunks of `longest` samples in which no source is silent.

    The last chunk may be shorter, down to `shortest`.

    Args:
        sources: [T] each, aligned.
        longest: samples of a chunk.
        shortest: a last chunk with fewer samples is dropped.
        threshold: see `reference_is_silent`.
    """
    length = min(source.shape[-1] for source in sources)
    kept = []
    for number, start in enumerate(range(0, length, longest)):
        chunks = [source[..., start : min(start + longest, length)] for source in sources]
        silent = any(reference_is_silent(chunk, threshold) for chunk in chunks)
        if chunks[0].shape[-1] >= shortest and not silent:
            kept.append(number)
    return kept


def subsample(n: int, k: int, seed: int = 0) -> list[int]:
    """The first k of a random permutation of n indices."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k].tolist()


def shuffle_chunks(lengths: Sequence[int], seed: int = 42) -> list[list[int]]:
    """Shuffled chunk indices of each song; one generator shuffles the songs in turn."""
    generator = random.Random(seed)  # noqa: S311 - the published order, which is no secret
    orders = [list(range(length)) for length in lengths]
    for order in orders:
        generator.shuffle(order)
    return orders


class UpstreamAdam(torch.optim.Optimizer):
    """p -= lr sqrt(1 - b2^t) / (1 - b1^t) (m / (sqrt(v) + eps) + wd p).

    Two differences from `torch.optim.AdamW`: epsilon is added before the bias correction, and the
    bias correction also scales the weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        size = group["lr"] * correction
        denominator = square.sqrt().add_(group["eps"])
        if group["weight_decay"]:
            change = (mean / denominator).add_(parameter, alpha=group["weight_decay"])
            parameter.add_(change, alpha=-size)
        else:
            parameter.addcdiv_(mean, denominator, value=-size)


def lr_factor(
    step: int, warmup: float = 100.0, decay_start: float | None = None, decay: float = math.inf
) -> float:
    """Factor of the learning rate at a step, counted from 0.

    Linear warm-up from 0, so that the first step changes nothing; then 1; from step `decay_start`
    linearly down to 0 over `decay` steps.
    """
    factor = min(1.0, step / warmup) if warmup else 1.0
    if decay_start is not None:
        factor *= min(1.0, max(0.0, 1.0 - (step - decay_start) / decay))
    return factor


@dataclass
class LossScale:
    """Dynamic loss scale of half-precision training."""

    scale: float = 2.0**16
    growth: float = 2.0 ** (1 / 250)
    """Factor after a step without overflow."""
    backoff: float = 0.5
    """Factor after an overflow."""
    maximum: float = 2.0**24

    def update(self, overflow: bool) -> float:
        """Return the scale of the next step; the caller skips a step that overflowed."""
        factor = self.backoff if overflow else self.growth
        self.scale = min(self.scale * factor, self.maximum)
        return self.scale


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[Tensor], limit: float, loss_scale: float = 1.0
) -> tuple[float, float]:
    """Divide the gradients by `loss_scale` and by max(1, norm / limit), in place.

    Returns:
        The norm over all parameters, without the loss scale, and the divisor of the clipping.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([gradient.float().norm() for gradient in gradients])
    norm = norms.norm().item() / loss_scale
    scale = max(1.0, norm / limit) if limit > 0 else 1.0
    for gradient in gradients:
        gradient.div_(loss_scale * scale)
    return norm, scale


class UpstreamWeightAverage:
    """Exponential average of parameters: a <- mu^n a + (1 - mu^n) p on every n-th step.

    Upstream averages codecs on the device with n = 1, and priors on the CPU with n = 100, to save
    device memory. Codebooks are buffers and are not averaged.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        mu: float = 0.999,
        every: int = 1,
        device: str | torch.device | None = None,
    ):
        """Start from the current parameters.

        Raises:
            ValueError: `every` is not positive.
        """
        if every < 1:
            raise ValueError(f"every is {every}, expected at least 1")
        self._parameters = list(parameters)
        self._decay = mu**every
        self._every = every
        self._steps = 0
        self.values = [p.detach().to(device, copy=True) for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Average in the parameters after a step."""
        self._steps += 1
        if self._steps % self._every:
            return
        for value, parameter in zip(self.values, self._parameters, strict=True):
            value.mul_(self._decay).add_(parameter.to(value), alpha=1 - self._decay)
