"""Overlapping windows over audio of any length, and the cross-fade that joins them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Window(NamedTuple):
    """Samples [start, stop) at the model's rate; `fade_in` and `fade_out` samples overlap."""

    start: int
    stop: int
    fade_in: int
    fade_out: int


class Layout:
    """The windows of a signal whose length is known only at its end.

    All are `window` samples long, each `overlap` (the last perhaps more) over the one before;
    audio shorter than a window gets a single one, rounded up to a `multiple` of samples.
    """

    def __init__(self, window: int, overlap: int, multiple: int):
        """Start at sample 0.

        Raises:
            ValueError: no window, or the overlap is not smaller than half a window.
        """
        if window < 1:
            raise ValueError(f"a window has {window} samples, expected at least 1")
        if not 0 <= 2 * overlap < window:
            raise ValueError(f"overlap {overlap} must be under half the window of {window} samples")
        self.window, self._overlap, self._multiple = window, overlap, multiple
        self.next_start = 0
        """No later window starts before this sample."""

    def grow(self, length: int) -> list[Window]:
        """The further windows that are certain once the signal has at least `length` samples.

        A window is certain when the next one is: only the last window has another overlap.
        """
        found = []
        stride = self.window - self._overlap
        while length > self.next_start + stride + self.window:
            found.append(self._at(self.next_start, self._overlap))
            self.next_start += stride
        return found

    def finish(self, length: int) -> list[Window]:
        """The windows that are left of a signal of `length` samples.

        Raises:
            ValueError: nothing to cover.
        """
        if length < 1:
            raise ValueError(f"cannot cover {length} samples with windows of {self.window}")
        padded = -(-length // self._multiple) * self._multiple
        if padded <= self.window:
            return [Window(0, padded, 0, 0)]
        last = padded - self.window
        stride = self.window - self._overlap
        starts = [*range(self.next_start, last, stride), last]
        following = zip(starts, starts[1:], strict=False)
        overlaps = [min(a + self.window - b, self.window // 2) for a, b in following]
        first = self._overlap if self.next_start else 0
        fades = [first, *overlaps, 0]
        return [
            Window(start, start + self.window, fades[i], fades[i + 1])
            for i, start in enumerate(starts)
        ]

    def _at(self, start: int, fade_out: int) -> Window:
        return Window(start, start + self.window, self._overlap if start else 0, fade_out)


class CrossFade:
    """Adds up windows with linear fades; the weights of every sample sum to one.

    Keeps samples that were added and not yet taken; windows may be added in any order.
    Positions are in samples of the output's rate.
    """

    def __init__(self, channels: tuple[int, ...] = ()):
        """Start an empty output [*channels, T]."""
        self._start = 0
        self._sum = torch.zeros(*channels, 0)
        self._weight = torch.zeros(0)

    def add(self, audio: Tensor, start: int, fade_in: int, fade_out: int) -> None:
        """Add audio [*channels, T] at sample `start`, which must not be before the taken part."""
        length = audio.shape[-1]
        ramp = torch.ones(length)
        if fade_in:
            ramp[:fade_in] = (torch.arange(fade_in) + 0.5) / fade_in
        if fade_out:
            ramp[length - fade_out :] *= 1 - (torch.arange(fade_out) + 0.5) / fade_out
        at = start - self._start
        if at < 0:
            raise ValueError(f"a window starts at {start}; all before {self._start} is taken")
        self._grow(at + length)
        self._sum[..., at : at + length] += ramp * audio.cpu()
        self._weight[at : at + length] += ramp

    def take(self, stop: int) -> Tensor:
        """The joined audio from the last taken sample to `stop`; zeros if nothing was added."""
        count = max(0, stop - self._start)
        self._grow(count)
        taken = self._sum[..., :count] / self._weight[:count].clamp_min(1e-8)
        self._start += count
        self._sum, self._weight = self._sum[..., count:].clone(), self._weight[count:].clone()
        return taken

    def _grow(self, length: int) -> None:
        more = length - len(self._weight)
        if more > 0:
            leading = self._sum.shape[:-1]
            self._sum = torch.cat([self._sum, self._sum.new_zeros(*leading, more)], -1)
            self._weight = torch.cat([self._weight, self._weight.new_zeros(more)])


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Groups of at most `size` items, in order, as they come."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
