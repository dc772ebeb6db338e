"""The counting itself: random pairs of crops, their codes, and the codes of their mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jukebox_core.datasets import AudioCache, long_enough
from jukebox_core.manifest import Track
from jukebox_core.prior.codes import encode_long, encoder_reach
from jukebox_core.vqvae.model import VQVAE

__all__ = ["PairCounting", "Pairing", "Triples"]

Pairing = Literal["song", "random", "both"]
_SAME_SONG = {"song": 1.0, "random": 0.0, "both": 0.5}


class Triples(NamedTuple):
    """Codes of one iteration, each [pairs, crop]."""

    first: np.ndarray
    second: np.ndarray
    mixture: np.ndarray


class _Crop(NamedTuple):
    song: int
    shift: int
    start: int  # in codes of the shifted song


@dataclass(frozen=True)
class PairCounting:
    """What is counted. Iteration i depends on the seed and on i alone.

    All crops are encoded with as much audio around them as the encoder sees, so that their codes
    are those of whole songs, free of edge effects, and a source's codes need encoding but once.
    """

    pairs: int = 8
    """Pairs of crops per iteration."""
    crop: int = 1024
    """Codes per crop."""
    pairing: Pairing = "both"
    """Crops of one song at one time, of any two songs, or half of each."""
    shifts: int = 4
    """Positions of a crop within a code: more of them see more, fewer are encoded sooner."""
    seed: int = 0
    """Of the draws; parts of a counting need a seed each."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name in ("pairs", "crop", "shifts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")

    def iterate(
        self,
        codec: VQVAE,
        tracks: Sequence[Track],
        alpha: Mapping[str, float],
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Triples]:
        """The triples of every iteration.

        Args:
            codec: in eval mode.
            tracks: the songs; those too short for a crop and its surroundings are not used.
            alpha: {source: weight in the mixture}; two sources, in the order of the triples.
            start: first iteration.
            stop: iteration to stop before; None never stops.

        Raises:
            ValueError: not two sources, no song is long enough, or a code has fewer samples than
                there are shifts.
        """
        if len(alpha) != 2:
            raise ValueError(f"triples count two sources, got {len(alpha)}: {', '.join(alpha)}")
        if self.shifts > codec.config.hop:
            raise ValueError(f"{self.shifts} shifts; a code has but {codec.config.hop} samples")
        songs = _Songs(codec, tracks, tuple(alpha), self)
        whole = self._whole_songs_pay(songs, start, stop)
        weights = torch.tensor(list(alpha.values())).view(2, 1, 1)
        iteration = start
        while stop is None or iteration < stop:
            pairs = self._draw(iteration, songs)
            windows = songs.windows(pairs)  # [2, pairs, L]
            mixture = songs.encode((weights * windows).sum(0))
            if whole:
                first, second = songs.codes(pairs)
            else:
                first, second = songs.encode(windows.flatten(0, 1)).reshape(2, *mixture.shape)
            yield Triples(first, second, mixture)
            iteration += 1

    def _whole_songs_pay(self, songs: _Songs, start: int, stop: int | None) -> bool:
        """Whether encoding all songs once takes less than encoding the crops of every iteration."""
        if stop is None:
            return True
        per_pair = self.crop + 2 * songs.margin
        return self.shifts * int(songs.lengths.sum()) <= (stop - start) * self.pairs * per_pair

    def _draw(self, iteration: int, songs: _Songs) -> tuple[list[_Crop], list[_Crop]]:
        """The crops of the first and of the second source."""
        generator = np.random.default_rng((self.seed, iteration))
        first = [songs.draw(generator) for _ in range(self.pairs)]
        same = generator.random(self.pairs) < _SAME_SONG[self.pairing]
        second = [c if s else songs.draw(generator) for c, s in zip(first, same, strict=True)]
        return first, second


class _Songs:
    """The audio of the songs, and the codes of their sources as far as they were asked for."""

    def __init__(
        self,
        codec: VQVAE,
        tracks: Sequence[Track],
        sources: tuple[str, ...],
        plan: PairCounting,
    ):
        self.margin = -(-encoder_reach(codec.config) // codec.config.hop)
        self._hop = codec.config.hop
        self._tracks = long_enough(tracks, (plan.crop + 2 * self.margin + 2) * self._hop)
        self.lengths = np.array([track.samples // self._hop - 1 for track in self._tracks])
        """Codes of every song, the same number for every shift."""
        self._edges = np.cumsum(self.lengths) / self.lengths.sum()
        self._codec = codec
        self._sources = sources
        self._plan = plan
        self._audio = AudioCache()
        self._codes: dict[tuple[str, int, int], np.ndarray] = {}  # source, song, shift
        self._dtype = np.int16 if codec.config.l_bins <= 1 << 15 else np.int32
        # On a CPU a thread encodes a crop alone. Threads that share a convolution wait for each
        # other by spinning, which is up to a hundred times slower where something else runs too;
        # and the activations of one crop stay in the cache, those of a batch do not.
        self._pool: ThreadPoolExecutor | None = None
        if codec.codebook.device.type == "cpu":
            self._pool = ThreadPoolExecutor(
                torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)
            )

    def draw(self, generator: np.random.Generator) -> _Crop:
        """A place of a song, every song as likely as it is long."""
        song = int(np.searchsorted(self._edges, generator.random(), "right"))
        shift = int(generator.integers(self._plan.shifts))
        last = int(self.lengths[song]) - self.margin - self._plan.crop
        return _Crop(song, shift, int(generator.integers(self.margin, last + 1)))

    def windows(self, pairs: tuple[list[_Crop], list[_Crop]]) -> Tensor:
        """Audio [2, pairs, (crop + 2 margin) * hop] of the crops and their surroundings."""
        length = (self._plan.crop + 2 * self.margin) * self._hop
        return torch.stack(
            [
                torch.stack(
                    [
                        self._read(name, c, (c.start - self.margin) * self._hop, length)
                        for c in crops
                    ]
                )
                for name, crops in zip(self._sources, pairs, strict=True)
            ]
        )

    def encode(self, windows: Tensor) -> np.ndarray:
        """Codes [B, crop] of crops with their surroundings [B, L]."""
        parts = windows.split(1 if self._pool else len(windows))
        codes = torch.cat(list(self._map(self._encode, parts)))
        return codes[:, self.margin : self.margin + self._plan.crop].numpy()

    def codes(self, pairs: tuple[list[_Crop], list[_Crop]]) -> list[np.ndarray]:
        """Codes [pairs, crop] of the crops of either source, out of those of whole songs."""
        keys = [
            [(name, c.song, c.shift) for c in crops]
            for name, crops in zip(self._sources, pairs, strict=True)
        ]
        self._encode_songs([key for row in keys for key in row])
        size = self._plan.crop
        return [
            np.stack([self._codes[k][c.start : c.start + size] for k, c in zip(*row, strict=True)])
            for row in zip(keys, pairs, strict=True)
        ]

    def _encode_songs(self, keys: list[tuple[str, int, int]]) -> None:
        """Encode what is asked for the first time: (source, song, shift)."""
        missing = sorted(set(keys) - self._codes.keys())
        waveforms = [
            self._read(name, _Crop(song, shift, 0), 0, int(self.lengths[song]) * self._hop)
            for name, song, shift in missing
        ]
        encoded = self._map(partial(encode_long, self._codec), waveforms)
        for key, codes in zip(missing, encoded, strict=True):
            self._codes[key] = codes.cpu().numpy().astype(self._dtype)

    @torch.no_grad()
    def _encode(self, windows: Tensor) -> Tensor:
        return self._codec.encode(windows.to(self._codec.codebook.device)).cpu()

    def _map(self, function: Callable[[Tensor], Tensor], items: Sequence[Tensor]) -> Iterable:
        return self._pool.map(function, items) if self._pool else map(function, items)

    def _read(self, name: str, crop: _Crop, start: int, length: int) -> Tensor:
        """Samples [length] of a source, from `start` of the shifted song."""
        track = self._tracks[crop.song]
        offset = crop.shift * self._hop // self._plan.shifts
        return self._audio.read(track.sources[name], offset + start, length, track.samples)
