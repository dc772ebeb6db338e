"""The counting itself: random pairs of crops, their codes, and the codes of their mixture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jukebox_core import audio
from jukebox_core.datasets import AudioCache, long_enough
from jukebox_core.manifest import Track
from jukebox_core.prior.codes import encode_long, encoder_reach
from jukebox_core.vqvae.model import VQVAE

Pairing = Literal["song", "random", "both"]
_SAME_SONG = {"song": 1.0, "random": 0.0, "both": 0.5}


class _Crop(NamedTuple):
    song: int
    shift: int
    start: int  # in codes of the shifted song


@dataclass(frozen=True)
class PairCounting:
    """What is counted. Iteration i depends on the seed and on i alone.

    Every song's sources are encoded once for each of `shifts` sub-code shifts; an iteration encodes
    only the mixtures of `pairs` pairs of crops, with as much audio around them as the encoder sees,
    so that the codes of sources and mixture are those of whole songs, free of edge effects.
    """

    pairs: int = 8
    """Pairs of crops per iteration."""
    crop: int = 1024
    """Codes per crop."""
    pairing: Pairing = "both"
    """Crops of one song at one time, of any two songs, or half of each."""
    shifts: int = 4
    """Encodings of every song, moved by a fraction of a code against each other."""
    seed: int = 0

    def iterate(
        self,
        codec: VQVAE,
        tracks: Sequence[Track],
        alpha: Mapping[str, float],
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Codes [pairs, crop] of first source, second source and mixture, of every iteration.

        Args:
            codec: in eval mode.
            tracks: the songs.
            alpha: {source: weight in the mixture}; two sources, in the order of the triples.
            start: first iteration.
            stop: iteration to stop before; None never stops.

        Raises:
            ValueError: not two sources, or no song is long enough for a crop and its surroundings.
        """
        if len(alpha) != 2:
            raise ValueError(f"triples count two sources, got {len(alpha)}: {', '.join(alpha)}")
        hop = codec.config.hop
        margin = -(-encoder_reach(codec.config) // hop)
        songs = long_enough(tracks, (self.crop + 2 * margin + 2) * hop)
        encoded = {name: [self._encode(codec, t, name) for t in songs] for name in alpha}
        lengths = np.array([codes.shape[1] for codes in encoded[next(iter(alpha))]])
        cache = AudioCache()
        iteration = start
        while stop is None or iteration < stop:
            generator = np.random.default_rng((self.seed, iteration))
            draws = [self._draw(generator, lengths, margin) for _ in range(self.pairs)]
            mixture = torch.stack(
                [
                    sum(
                        weight * self._read(cache, songs[c.song], name, c, margin, hop)
                        for (name, weight), c in zip(alpha.items(), pair, strict=True)
                    )
                    for pair in draws
                ]
            )
            with torch.no_grad():
                mixed = codec.encode(mixture.to(codec.codebook.device))
            sources = [
                torch.stack(
                    [encoded[name][c.song][c.shift, c.start : c.start + self.crop] for c in crops]
                ).numpy()
                for name, crops in zip(alpha, zip(*draws, strict=True), strict=True)
            ]
            yield sources[0], sources[1], mixed[:, margin : margin + self.crop].cpu().numpy()
            iteration += 1

    def _encode(self, codec: VQVAE, track: Track, name: str) -> Tensor:
        """int32 [shifts, T], the codes of one source of a song."""
        waveform = audio.load(track.sources[name])[0][0]
        hop = codec.config.hop
        steps = len(waveform) // hop - 1  # the same number for every shift
        moved = [waveform[self._offset(k, hop) :][: steps * hop] for k in range(self.shifts)]
        return torch.stack([encode_long(codec, copy) for copy in moved]).int().cpu()

    def _draw(
        self, generator: np.random.Generator, lengths: np.ndarray, margin: int
    ) -> tuple[_Crop, _Crop]:
        first = self._crop(generator, lengths, margin)
        if generator.random() < _SAME_SONG[self.pairing]:
            return first, first
        return first, self._crop(generator, lengths, margin)

    def _crop(self, generator: np.random.Generator, lengths: np.ndarray, margin: int) -> _Crop:
        song = int(generator.choice(len(lengths), p=lengths / lengths.sum()))
        start = int(generator.integers(margin, lengths[song] - margin - self.crop + 1))
        return _Crop(song, int(generator.integers(self.shifts)), start)

    def _read(
        self, cache: AudioCache, track: Track, name: str, crop: _Crop, margin: int, hop: int
    ) -> Tensor:
        """The crop's audio with `margin` codes around it, [(crop + 2 margin) * hop]."""
        start = (crop.start - margin) * hop + self._offset(crop.shift, hop)
        length = (self.crop + 2 * margin) * hop
        return cache.read(track.sources[name], start, length, track.samples)

    def _offset(self, shift: int, hop: int) -> int:
        return shift * hop // self.shifts
