"""Estimates of a chunk's sources: from the candidates of a system, in one way for all programs."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from jukebox_core.checkpoints import load_codec
from jukebox_core.evaluation import metrics
from jukebox_core.evaluation.chunks import Chunk
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.samples import Candidates, Progress
from jukebox_core.separation.selection import Jointly, PosteriorMean, Selection, Weighting
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.stream import part_of
from jukebox_core.vqvae.model import VQVAE


class Estimator(Protocol):
    """Makes estimates {source: [T]} of a chunk, at the scale of the sources, from candidates.

    Its `repr` identifies it: equal estimators give equal estimates.
    """

    def __call__(self, chunk: Chunk, candidates: Candidates) -> dict[str, Tensor]:
        """Estimates; only an oracle uses the true sources of the chunk."""
        ...


@dataclass(frozen=True)
class Oracle:
    """Per source the candidate of the highest SDR against the truth.

    mask: None: raw candidates; otherwise the masks made from each candidate only.
    """

    mask: RatioMask | None = None

    def __call__(self, chunk: Chunk, candidates: Candidates) -> dict[str, Tensor]:
        """Estimates {source: [T]}."""
        best = {}
        for name, x in _each(self.mask, chunk, candidates).items():  # [N, T]
            scores = metrics.sdr(chunk.sources[name], x).nan_to_num(nan=-math.inf)
            best[name] = x[int(scores.argmax())]
        return best


@dataclass(frozen=True)
class First:
    """The first candidate. mask: None: raw; otherwise the mask made from it only."""

    mask: RatioMask | None = None

    def __call__(self, chunk: Chunk, candidates: Candidates) -> dict[str, Tensor]:
        """Estimates {source: [T]}."""
        first = candidates._replace(audio={n: x[:, :1] for n, x in candidates.audio.items()})
        return {name: x[0] for name, x in _each(self.mask, chunk, first).items()}


def _each(mask: RatioMask | None, chunk: Chunk, candidates: Candidates) -> dict[str, Tensor]:
    """{source: [N, T]}: the raw candidates, or the mixture masked with each of them."""
    if mask is None:
        return {name: x[0] for name, x in candidates.audio.items()}
    count = candidates.shape[1]
    mixtures = chunk.mixture.expand(count, -1)
    return mask(mixtures, candidates.apart(), mixtures.new_ones(count, 1))


@dataclass(frozen=True)
class Selected:
    """The raw candidates that a selection takes."""

    selection: Selection

    def __call__(self, chunk: Chunk, candidates: Candidates) -> dict[str, Tensor]:
        """Estimates {source: [T]}."""
        best = self.selection(chunk.mixture[None], candidates)
        return {name: x[0, int(best[name][0])] for name, x in candidates.audio.items()}

    @classmethod
    def by(cls, weighting: Weighting) -> Selected:
        """The candidate of the largest weight."""
        return cls(Jointly(weighting))


@dataclass(frozen=True)
class Masked:
    """The mixture masked with the weighted candidates: what a user gets."""

    mask: RatioMask = field(default_factory=RatioMask)
    weights: Weighting = field(default_factory=PosteriorMean)

    def __call__(self, chunk: Chunk, candidates: Candidates) -> dict[str, Tensor]:
        """Estimates {source: [T]}."""
        mixture = chunk.mixture[None]
        stems = self.mask(mixture, candidates, self.weights(mixture, candidates))
        return {name: x[0] for name, x in stems.items()}


@dataclass(frozen=True)
class RoundTrip:
    """Encodes and decodes mixtures [B, T] with a codec, on the CPU.

    codec: its run folder, which is not part of the `repr`.
    """

    codec: Path = field(repr=False)

    @torch.no_grad()
    def __call__(self, mixture: Tensor) -> Tensor:
        """The round trip, [B, T], T a multiple of the hop.

        Raises:
            FileNotFoundError: there is no codec in the folder.
        """
        codec = _codec(self.codec)
        return codec.decode(codec.encode(mixture)).float()


@functools.lru_cache(maxsize=2)
def _codec(folder: Path) -> VQVAE:
    return load_codec(folder)


@torch.no_grad()
def codec_round_trip(codec: VQVAE, chunk: Chunk) -> dict[str, Tensor]:
    """The true sources encoded and decoded: the ceiling of every raw estimate."""
    device = codec.codebook.device
    return {
        name: codec.decode(codec.encode(x[None].to(device)))[0].float().cpu()
        for name, x in chunk.sources.items()
    }


class Drawn(NamedTuple):
    """A chunk, its candidates, and the seconds that drawing and decoding them took."""

    chunk: Chunk
    candidates: Candidates
    seconds: float


def draw_candidates(
    separator: Separator,
    chunks: Sequence[Chunk],
    seed: int,
    batch: int,
    progress: Progress | None = None,
    *,
    before: int = 0,
) -> Iterator[Drawn]:
    """The candidates of every chunk.

    Args:
        separator: the system.
        chunks: all of one length.
        seed: random seed for sampling.
        batch: chunks sampled together; the candidates do not depend on it.
        progress: called with (steps done, total steps).
        before: number of chunks, of the same length, that come before these and are drawn
            elsewhere; the candidates are as if all were drawn here.
    """
    generator = torch.Generator().manual_seed(seed)
    if before and chunks:
        separator.skip(generator, before, len(chunks[0].mixture))
    groups = [chunks[i : i + batch] for i in range(0, len(chunks), batch)]
    for i, group in enumerate(groups):
        report = part_of(progress, i, len(groups))
        began = time.perf_counter()
        mixtures = torch.stack([chunk.mixture for chunk in group])
        candidates = separator.candidates(mixtures, generator, report)
        seconds = (time.perf_counter() - began) / len(group)
        for b, chunk in enumerate(group):
            yield Drawn(chunk, candidates.chunk(b), seconds)
