"""The chunks of songs that an evaluation scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jukebox_core import audio as audio_io
from jukebox_core.checks import require, require_seed
from jukebox_core.datasets.crops import long_enough
from jukebox_core.datasets.manifest import Manifest, Track

_TRIES = 100  # random offsets in a song before it is searched from the beginning

Silent = Callable[[Tensor], bool]


@dataclass(frozen=True)
class Chunk:
    """A stretch of a song: T samples from `start`.

    mixture: [T], the sum of alpha_i x_i. sources: {source: x_i [T]}. alpha: {source: gain}.
    silent: sources that the rule of silence calls silent; they have no score.
    """

    track: str
    start: int
    mixture: Tensor
    sources: dict[str, Tensor]
    alpha: Mapping[str, float]
    silent: frozenset[str] = frozenset()


def choose_chunks(
    manifest: Manifest, split: str, count: int, length: int, seed: int, silent: Silent
) -> tuple[list[Chunk], list[str]]:
    """One random chunk of every song in order, and again from the first song on.

    Two sources sound in it; of more than two, others may be silent, and have no score then.

    Args:
        manifest: the data set.
        split: whose songs.
        count: chunks wanted.
        length: samples per chunk.
        seed: of the offsets.
        silent: whether a source's chunk is silent.

    Returns:
        The chunks, which do not overlap (so there may be fewer than wanted), and the names of songs
        that were left out: too short, or with no such chunk.

    Raises:
        ValueError: the split has no usable song.
    """
    require("count", count, whole=True, at_least=1)
    require("length", length, whole=True, at_least=1)
    require_seed("seed", seed)
    usable, left_out = _usable(manifest, split, length)
    chunks: list[Chunk] = []
    while usable and len(chunks) < count:
        for track in list(usable)[: count - len(chunks)]:
            taken = [chunk.start for chunk in chunks if chunk.track == track.name]
            generator = np.random.default_rng([seed, len(chunks)])
            chunk = _cut(track, manifest.alpha, length, generator, silent, taken)
            if chunk is None:
                usable.remove(track)
                left_out.append(track.name)
            else:
                chunks.append(chunk)
    _require_some(chunks, split, length)
    used = {chunk.track for chunk in chunks}
    return chunks, [name for name in left_out if name not in used]


def consecutive_chunks(
    manifest: Manifest, split: str, per_song: int, length: int, silent: Silent
) -> tuple[list[Chunk], list[str]]:
    """Several chunks of every song: of those that lie end to end from its beginning.

    Args:
        manifest: the data set.
        split: whose songs.
        per_song: most chunks of a song; of more that are usable, so many are taken, spread
            evenly over the song.
        length: samples per chunk.
        silent: whether a source's chunk is silent; two sources of a chunk must sound.

    Returns:
        The chunks in the order of the songs, and the names of songs that were left out: too short,
        or with no such chunk.

    Raises:
        ValueError: the split has no usable song.
    """
    require("per_song", per_song, whole=True, at_least=1)
    require("length", length, whole=True, at_least=1)
    usable, left_out = _usable(manifest, split, length)
    chunks: list[Chunk] = []
    for track in usable:
        sources = {name: audio_io.load(path)[0][0] for name, path in track.sources.items()}
        starts = [
            start
            for start in range(0, track.samples - length + 1, length)
            if _sounds({name: x[start : start + length] for name, x in sources.items()}, silent)
        ]
        if not starts:
            left_out.append(track.name)
        count = min(per_song, len(starts))
        for start in (starts[(2 * i + 1) * len(starts) // (2 * count)] for i in range(count)):
            chunks.append(_chunk(track, manifest.alpha, sources, start, length, silent))
    _require_some(chunks, split, length)
    return chunks, left_out


def _usable(manifest: Manifest, split: str, length: int) -> tuple[list[Track], list[str]]:
    """The songs of a split that are long enough, and the names of the others."""
    tracks = manifest.split(split)
    if not tracks:
        raise ValueError(f"{manifest.root} has no songs in its {split} split")
    usable = long_enough(tracks, length)
    return usable, [track.name for track in tracks if track not in usable]


def _require_some(chunks: Sequence[Chunk], split: str, length: int) -> None:
    if not chunks:
        raise ValueError(
            f"no song of the {split} split has {length} samples in which two sources sound"
        )


def _sounds(sources: Mapping[str, Tensor], silent: Silent) -> bool:
    """Whether two sources sound, or the only one."""
    return sum(not silent(x) for x in sources.values()) >= min(2, len(sources))


def _cut(
    track: Track,
    alpha: Mapping[str, float],
    length: int,
    generator: np.random.Generator,
    silent: Silent,
    taken: Sequence[int],
) -> Chunk | None:
    """A chunk of a song that overlaps no earlier chunk; None if there is no such chunk."""
    sources = {name: audio_io.load(path)[0][0] for name, path in track.sources.items()}
    last = track.samples - length
    random = (int(start) for start in generator.integers(last + 1, size=_TRIES))
    for start in [*random, *range(0, last + 1, max(1, length // 4))]:
        if any(abs(start - other) < length for other in taken):
            continue
        if _sounds({name: x[start : start + length] for name, x in sources.items()}, silent):
            return _chunk(track, alpha, sources, start, length, silent)
    return None


def _chunk(
    track: Track,
    alpha: Mapping[str, float],
    sources: Mapping[str, Tensor],
    start: int,
    length: int,
    silent: Silent,
) -> Chunk:
    """The chunk at `start`; sources: the whole song's."""
    cut = {name: x[start : start + length].clone() for name, x in sources.items()}
    mixture = audio_io.load_segment(track.mixture, start, length)[0]
    quiet = frozenset(name for name, wave in cut.items() if silent(wave))
    return Chunk(track.name, start, mixture, cut, alpha, quiet)


def silence_rule(reference: bool) -> tuple[str, Silent]:
    """The description of a rule of silence and the rule; `reference`: the reference report's."""
    if reference:
        return "norm / length < 1.5e-5 (the reference report's rule)", audio_io.reference_is_silent
    return "RMS < -60 dBFS", audio_io.is_silent


def check_mixtures(chunks: Sequence[Chunk]) -> None:
    """Raise ValueError unless every mixture is the sum of alpha_i x_i."""
    for chunk in chunks:
        total = torch.stack([chunk.alpha[name] * x for name, x in chunk.sources.items()]).sum(0)
        error = (total - chunk.mixture).abs().max().item()
        if error > 1e-3:
            raise ValueError(
                f"the mixture of {chunk.track} is not the sum of its sources (off by {error:.3g} "
                "of full scale): prepare the data again"
            )
