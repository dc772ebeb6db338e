"""Separation as a stream: windows cut from blocks of audio, progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core import audio as audio_io
from jukebox_core.audio.stream import Resampler
from jukebox_core.separation.samples import Progress
from jukebox_core.separation.uncertainty import Uncertainty
from jukebox_core.separation.windows import Layout, Window


class Tape:
    """The part of a signal [..., t] that is still needed, addressed by its own samples."""

    def __init__(self, channels: tuple[int, ...] = ()):
        """Start an empty signal [*channels, t]."""
        self._start = 0
        self._held = torch.zeros(*channels, 0)

    @property
    def length(self) -> int:
        """Samples appended so far."""
        return self._start + self._held.shape[-1]

    def append(self, block: Tensor) -> None:
        """Add [*channels, t] at the end."""
        self._held = torch.cat([self._held, block], -1)

    def cut(self, start: int, stop: int) -> Tensor:
        """A copy of samples [start, stop), zeros beyond the end."""
        assert start >= self._start, "forgotten"
        part = self._held[..., start - self._start : stop - self._start]
        return F.pad(part, (0, stop - start - part.shape[-1])).clone()

    def forget(self, stop: int) -> None:
        """Drop the samples before `stop`."""
        count = min(max(0, stop - self._start), self._held.shape[-1])
        self._held = self._held[..., count:].clone()
        self._start += count


class Piece(NamedTuple):
    """A window of a stream.

    mono: [T] at the models' rate. channels: [C, T'] at the input's. settled: no window after this
    one starts before that sample of the input's rate.
    """

    window: Window
    mono: Tensor
    channels: Tensor
    settled: int


def cut(
    blocks: Iterable[Tensor], rate: int, model_rate: int, channels: int, layout: Layout
) -> Iterator[Piece]:
    """The windows of a stream, each as soon as it is certain.

    Args:
        blocks: [C, t] at `rate`, t of any size; a window and a block are held at a time.
        rate: of the blocks, in Hz.
        model_rate: of the layout, in Hz.
        channels: C.
        layout: of the windows, in samples at the models' rate.

    Raises:
        ValueError: a block of another shape, not finite, or no samples in all.
    """
    scale = rate / model_rate
    resampler = Resampler(rate, model_rate)
    mono, wide = Tape(), Tape((channels,))

    def pieces(found: list[Window], following: int) -> Iterator[Piece]:
        """`following`: where the window after these starts."""
        starts = [window.start for window in found[1:]] + [following][: len(found)]
        for window, after in zip(found, starts, strict=True):
            start, stop, settled = (round(at * scale) for at in (window.start, window.stop, after))
            own = mono.cut(window.start, window.stop), wide.cut(start, stop)
            mono.forget(after)
            wide.forget(settled)
            yield Piece(window, *own, min(settled, wide.length))

    for block in blocks:
        if block.ndim != 2 or block.shape[0] != channels:
            raise ValueError(f"a block is {tuple(block.shape)}, expected [{channels}, t]")
        if not block.isfinite().all():
            raise ValueError("the mixture holds NaN or infinite samples")
        block = block.float().cpu()
        wide.append(block)
        mono.append(resampler.push(audio_io.to_mono(block)))
        yield from pieces(layout.grow(mono.length), layout.next_start)
    if wide.length == 0:
        raise ValueError("the mixture has no samples")
    mono.append(resampler.finish())
    # The resampler rounds: the last sample of the input must be covered all the same.
    rest = layout.finish(max(mono.length, -(-wide.length * model_rate // rate)))
    yield from pieces(rest, rest[-1].stop)


class Steps:
    """Progress over a whole stream: one step of a batch of B windows counts B."""

    def __init__(
        self, report: Progress | None, hop: int, layout: Layout, samples: int | None = None
    ):
        """Count steps of `hop` samples; `samples` is the total length, if known."""
        self._report, self._done = report, 0
        self._windows = len(layout.finish(samples)) if samples else 0
        first = layout.finish(samples or layout.window)[0]
        self._per_window = (first.stop - first.start) // hop

    def during(self, count: int) -> Progress | None:
        """Progress for a sampler that draws `count` windows."""
        if self._report is None:
            return None
        report, windows = self._report, max(self._windows, self._done + count)

        def step(done: int, of: int) -> None:
            share = count * self._per_window * done // of
            report(self._done * self._per_window + share, windows * self._per_window)

        return step

    def finished(self, count: int) -> None:
        """`count` windows are complete."""
        self._done += count


@dataclass
class Run:
    """The state of a stream between windows.

    batch: windows sampled together; parts: groups that a window's candidates are drawn in. Both
    change when memory runs out. uncertainty: collects the windows' uncertainty, if not None.
    """

    rate: int
    refine: bool
    generator: torch.Generator
    steps: Steps
    batch: int
    uncertainty: Uncertainty | None = None
    parts: int = 1


def part_of(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """Map the progress of one of several equal parts onto the total of all parts."""
    if progress is None or parts == 1:
        return progress
    return lambda done, of: progress(part * of + done, parts * of)
