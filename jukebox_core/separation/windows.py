"""Overlapping windows over audio of any length, and the cross-fade that joins them again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """Samples [start, stop) at the model's rate; `fade_in` and `fade_out` samples overlap."""

    start: int
    stop: int
    fade_in: int
    fade_out: int


def windows(length: int, window: int, overlap: int, multiple: int) -> list[Window]:
    """Windows that cover [0, length).

    All are `window` samples long, each `overlap` (the last perhaps more) over the one before;
    audio shorter than a window gets a single one, rounded up to a `multiple` of samples.

    Raises:
        ValueError: the overlap is not smaller than half a window, or nothing to cover.
    """
    if length < 1 or window < 1:
        raise ValueError(f"cannot cover {length} samples with windows of {window}")
    if not 0 <= 2 * overlap < window:
        raise ValueError(f"overlap {overlap} must be under half the window of {window} samples")
    padded = -(-length // multiple) * multiple
    if padded <= window:
        return [Window(0, padded, 0, 0)]
    starts = list(range(0, padded - window, window - overlap)) + [padded - window]
    if len(starts) > 1 and starts[-1] == starts[-2]:
        starts.pop()
    overlaps = [a + window - b for a, b in zip(starts, starts[1:], strict=False)]
    fades = [0, *(min(o, window // 2) for o in overlaps), 0]
    return [Window(start, start + window, fades[i], fades[i + 1]) for i, start in enumerate(starts)]


class CrossFade:
    """Adds up windows with linear fades; the weights of every sample sum to one.

    The windows may be given in any order. Positions are in samples of the output's rate.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._sum = torch.zeros(shape)
        self._weight = torch.zeros(shape[-1])

    def add(self, audio: Tensor, start: int, fade_in: int, fade_out: int) -> None:
        """Add audio [..., T] from sample `start` on."""
        length = audio.shape[-1]
        ramp = torch.ones(length)
        if fade_in:
            ramp[:fade_in] = (torch.arange(fade_in) + 0.5) / fade_in
        if fade_out:
            ramp[length - fade_out :] *= 1 - (torch.arange(fade_out) + 0.5) / fade_out
        stop = min(start + length, self._sum.shape[-1])
        self._sum[..., start:stop] += (ramp * audio.cpu())[..., : stop - start]
        self._weight[start:stop] += ramp[: stop - start]

    def result(self) -> Tensor:
        """The joined audio, normalised by the weights."""
        return self._sum / self._weight.clamp_min(1e-8)


def batches(items: list[Window], size: int) -> Iterator[list[Window]]:
    """Groups of at most `size` windows of one length."""
    for i in range(0, len(items), size):
        yield items[i : i + size]
