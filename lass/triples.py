"""Triples to count: the codes of random pairs of crops and the codes of their mixtures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jukebox_core.checks import require, require_fields
from jukebox_core.datasets.cache import AudioCache
from jukebox_core.datasets.crops import long_enough
from jukebox_core.datasets.manifest import Track
from jukebox_core.machine import free_bytes
from jukebox_core.prior.codes import WINDOW_SECONDS, encoder_reach
from jukebox_core.vqvae.model import VQVAE

KEPT = 1 << 31
"""Bytes of codes to keep: 1,500 songs of 4 minutes, at the paper's rate and 4 shifts. Python adds
an eighth."""
_MOST_AT_ONCE = 10**9
_MOST_TRIPLES = 1 << 40
Pairing = Literal["song", "random", "both"]
_BYTES_PER_SAMPLE = 24  # of a pair: both sources, copied once to stack them, and their mixtures
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
    gain: float = 0.0  # dB


class _Tile(NamedTuple):
    """Codes number * size to (number + 1) * size of a source of a shifted song."""

    source: str
    song: int
    shift: int
    gain: float
    number: int


@dataclass(frozen=True)
class PairCounting:
    """Counting settings. Iteration i depends only on the seed and on i.

    All crops are encoded with as much surrounding audio as the encoder sees, so that they have the
    codes of whole songs, without edge effects. The codes of a source are cut out of tiles at fixed
    places, which are encoded once and kept while there is room.
    """

    pairs: int = 8
    """Pairs of crops per iteration."""
    crop: int = 1024
    """Codes per crop."""
    pairing: Pairing = "both"
    """Crops of one song at one time, of any two songs, or half of each."""
    shifts: int = 4
    """Positions of a crop within a code: more positions give more distinct triples, and more
    encoding."""
    gains_db: tuple[float, ...] = (0.0,)
    """Gains in dB; one is drawn for each crop of a source."""
    seed: int = 0
    """Random seed; parts of a counting need different ones."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_fields(self, "pairs", "crop", "shifts", whole=True, at_least=1)
        if self.triples > _MOST_AT_ONCE:
            raise ValueError(
                f"pairs is {self.pairs} and crop {self.crop}: an iteration counts pairs times crop "
                f"triples, expected at most {_MOST_AT_ONCE:,} (8 GB of keys)"
            )
        require_fields(self, "seed", whole=True, at_least=0)
        if self.pairing not in _SAME_SONG:
            raise ValueError(
                f"pairing is {self.pairing!r}, expected one of {', '.join(_SAME_SONG)}"
            )
        require_fields(self, "gains_db", at_least=-200, at_most=200)
        if not self.gains_db or len(set(self.gains_db)) != len(self.gains_db):
            raise ValueError(f"gains_db is {self.gains_db}, expected one gain or more, each once")

    @property
    def triples(self) -> int:
        """Number of triples that one iteration counts."""
        return self.pairs * self.crop

    def check_iterations(self, iterations: int) -> None:
        """Refuse more iterations than any use needs.

        2048 codes have 2^33 possible triples; 2^40 draws visit each 128 times on average.

        Raises:
            ValueError: The number is not an integer, below 1, or gives more than 2^40 triples.
        """
        most = max(1, _MOST_TRIPLES // self.triples)
        hint = f"each counts {self.triples:,} triples (pairs times crop), at most 2^40 in total"
        require("iterations", iterations, whole=True, at_least=1, at_most=most, hint=hint)

    def check_fits(self, codec: VQVAE) -> None:
        """Refuse more shifts than the codec has, or an iteration that does not fit in memory.

        Raises:
            ValueError: There are more shifts than samples in a code, or the audio of an iteration
                exceeds the free memory.
        """
        if self.shifts > codec.config.hop:
            raise ValueError(
                f"shifts is {self.shifts}, expected at most {codec.config.hop} (samples of a code)"
            )
        margin = -(-encoder_reach(codec.config) // codec.config.hop)
        samples = (self.crop + 2 * margin) * codec.config.hop
        needed = _BYTES_PER_SAMPLE * self.pairs * samples
        free = free_bytes(torch.device("cpu"))
        if needed > free:
            raise ValueError(
                f"pairs is {self.pairs} and crop {self.crop}: the audio of an iteration takes "
                f"{needed / 1e9:,.1f} GB of memory, but only {free / 1e9:,.1f} GB are free"
            )

    def iterate(
        self,
        codec: VQVAE,
        tracks: Sequence[Track],
        alpha: Mapping[str, float],
        start: int = 0,
        stop: int | None = None,
        step: int = 1,
        kept: int = KEPT,
        parts: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Iterator[Triples]:
        """Yield the triples of every `step`-th iteration.

        Args:
            codec: in eval mode.
            tracks: the songs; songs too short for a crop and its surroundings are skipped.
            alpha: {source: weight in the mixture}; two sources, in the order of the triples.
            start: first iteration.
            stop: iteration to stop before; None never stops.
            step: distance between iterations, so that several processes can share them.
            kept: bytes of codes to keep; further codes are encoded each time they are drawn.
            parts: {source that is a sum: {source of the songs: weight}}.

        Raises:
            ValueError: There are not two sources, no song is long enough, or as `check_fits`.
        """
        if len(alpha) != 2:
            raise ValueError(f"triples count two sources, got {len(alpha)}: {', '.join(alpha)}")
        self.check_fits(codec)
        songs = _Songs(codec, tracks, tuple(alpha), self, kept, parts)
        weights = torch.tensor(list(alpha.values())).view(2, 1, 1)
        for iteration in itertools.count(start, step):
            if stop is not None and iteration >= stop:
                return
            pairs = self._draw(iteration, songs)
            mixture = songs.encode((weights * songs.windows(pairs)).sum(0))
            first, second = songs.codes(pairs)
            yield Triples(first, second, mixture)

    def _draw(self, iteration: int, songs: _Songs) -> tuple[list[_Crop], list[_Crop]]:
        """Draw the crops of the first and the second source."""
        generator = np.random.default_rng((self.seed, iteration))
        first = [songs.draw(generator) for _ in range(self.pairs)]
        same = generator.random(self.pairs) < _SAME_SONG[self.pairing]
        second = [c if s else songs.draw(generator) for c, s in zip(first, same, strict=True)]
        return self._amplified(first, generator), self._amplified(second, generator)

    def _amplified(self, crops: list[_Crop], generator: np.random.Generator) -> list[_Crop]:
        """Draw a gain for each crop."""
        if len(self.gains_db) == 1:
            return [c._replace(gain=self.gains_db[0]) for c in crops]
        drawn = generator.integers(len(self.gains_db), size=len(crops))
        return [c._replace(gain=self.gains_db[g]) for c, g in zip(crops, drawn, strict=True)]


class _Songs:
    """The audio of the songs and the codes of their sources, encoded on demand."""

    def __init__(
        self,
        codec: VQVAE,
        tracks: Sequence[Track],
        sources: tuple[str, ...],
        plan: PairCounting,
        kept: int,
        parts: Mapping[str, Mapping[str, float]] | None = None,
    ):
        self.margin = -(-encoder_reach(codec.config) // codec.config.hop)
        self._hop = codec.config.hop
        self._tracks = long_enough(tracks, (plan.crop + 2 * self.margin + 2) * self._hop)
        self.lengths = np.array([track.samples // self._hop - 1 for track in self._tracks])
        """Number of codes of each song, equal for all shifts."""
        self._edges = np.cumsum(self.lengths) / self.lengths.sum()
        self._codec = codec
        self._sources = sources
        self._parts = {name: {name: 1.0} for name in sources} | dict(parts or {})
        self._plan = plan
        self._audio = AudioCache()
        self._tiles: dict[_Tile, np.ndarray] = {}
        self._room = kept
        seconds = WINDOW_SECONDS["cpu"]  # also on a GPU: a longer tile costs much for one crop
        self._size = max(4 * self.margin, seconds * codec.config.sample_rate // self._hop)
        self._dtype = np.int16 if codec.config.l_bins <= 1 << 15 else np.int32
        # On a CPU each thread encodes its own crop. Threads that share a convolution wait for each
        # other by spinning, up to a hundred times slower on a busy machine; and the activations of
        # one crop fit in the cache, unlike a batch's.
        self._pool: ThreadPoolExecutor | None = None
        if codec.codebook.device.type == "cpu":
            self._pool = ThreadPoolExecutor(
                torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)
            )

    def draw(self, generator: np.random.Generator) -> _Crop:
        """Draw a place in the songs; a song's probability is proportional to its length."""
        song = int(np.searchsorted(self._edges, generator.random(), "right"))
        shift = int(generator.integers(self._plan.shifts))
        last = int(self.lengths[song]) - self.margin - self._plan.crop
        return _Crop(song, shift, int(generator.integers(self.margin, last + 1)))

    def windows(self, pairs: tuple[list[_Crop], list[_Crop]]) -> Tensor:
        """Read the crops and their surroundings, [2, pairs, (crop + 2 margin) * hop]."""
        length = (self._plan.crop + 2 * self.margin) * self._hop
        rows = [
            self._read(name, c, (c.start - self.margin) * self._hop, length)
            for name, crops in zip(self._sources, pairs, strict=True)
            for c in crops
        ]
        return torch.stack(rows).view(2, -1, length)

    def encode(self, windows: Tensor) -> np.ndarray:
        """Encode crops with their surroundings, [B, L] samples to [B, crop] codes."""
        parts = windows.split(1 if self._pool else len(windows))
        codes = np.concatenate(list(self._map(self._encode, parts)))
        return codes[:, self.margin : self.margin + self._plan.crop]

    def codes(self, pairs: tuple[list[_Crop], list[_Crop]]) -> np.ndarray:
        """Cut the crops' codes, [2, pairs, crop], out of the songs' tiles."""
        parts = [
            self._around(name, c)
            for name, crops in zip(self._sources, pairs, strict=True)
            for c in crops
        ]
        tiles = self._encode_tiles({tile for part in parts for tile in part})
        rows = []
        for crop, part in zip([*pairs[0], *pairs[1]], parts, strict=True):
            start = crop.start - part[0].number * self._size
            whole = np.concatenate([tiles[tile] for tile in part])
            rows.append(whole[start : start + self._plan.crop])
        return np.stack(rows).reshape(2, -1, self._plan.crop)

    def _around(self, name: str, crop: _Crop) -> list[_Tile]:
        """The tiles that a crop overlaps."""
        last = crop.start + self._plan.crop - 1
        numbers = range(crop.start // self._size, last // self._size + 1)
        return [_Tile(name, crop.song, crop.shift, crop.gain, number) for number in numbers]

    def _encode_tiles(self, tiles: set[_Tile]) -> dict[_Tile, np.ndarray]:
        """The codes of tiles, encoded if missing, and kept while there is room."""
        result = {tile: self._tiles[tile] for tile in tiles if tile in self._tiles}
        missing = sorted(tiles - result.keys())
        audio = [self._read_tile(tile) for tile in missing]
        for tile, codes in zip(missing, self._map(self._encode, audio), strict=True):
            before = min(tile.number * self._size, self.margin)
            result[tile] = codes[0, before : before + self._size].copy()
            if result[tile].nbytes <= self._room:
                self._tiles[tile] = result[tile]
                self._room -= result[tile].nbytes
        return result

    def _read_tile(self, tile: _Tile) -> Tensor:
        """Read a tile and its surroundings within the song, [1, L]."""
        first = tile.number * self._size
        start = max(0, first - self.margin)
        stop = min(int(self.lengths[tile.song]), first + self._size + self.margin)
        crop = _Crop(tile.song, tile.shift, start, tile.gain)
        length = (stop - start) * self._hop
        return self._read(tile.source, crop, start * self._hop, length).unsqueeze(0)

    @torch.no_grad()
    def _encode(self, windows: Tensor) -> np.ndarray:
        codes = self._codec.encode(windows.to(self._codec.codebook.device))
        return codes.cpu().numpy().astype(self._dtype)

    def _map(
        self, function: Callable[[Tensor], np.ndarray], items: Sequence[Tensor]
    ) -> Iterable[np.ndarray]:
        return self._pool.map(function, items) if self._pool else map(function, items)

    def _read(self, name: str, crop: _Crop, start: int, length: int) -> Tensor:
        """Read a source, [length] samples from `start` of the shifted song."""
        track = self._tracks[crop.song]
        offset = crop.shift * self._hop // self._plan.shifts
        parts = [
            weight * self._audio.read(track.sources[source], offset + start, length, track.samples)
            for source, weight in self._parts[name].items()
        ]
        audio = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        return audio * 10 ** (crop.gain / 20) if crop.gain else audio
