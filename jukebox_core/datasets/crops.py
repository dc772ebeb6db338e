"""Random crops of a prepared data set: item i depends only on the seed and on i.

Neither the number of workers nor the order of reading changes it (see `batches`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jukebox_core import audio
from jukebox_core.audio.production import Production
from jukebox_core.audio.transposition import span, transpose
from jukebox_core.checks import require_fields, require_types
from jukebox_core.datasets.bad_files import BadFiles
from jukebox_core.datasets.cache import AudioCache
from jukebox_core.datasets.manifest import Manifest, Track

MIXTURE = "mixture"
Pairing = Literal["song", "random", "half"]
DRAWS = 20
"""Places to try for one item."""
HELD_OUT = 0.05
"""Share of the training songs to validate on if the data set has no validation split."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the sources before they are mixed."""

    gain_db: float = 0.0
    """Scale every source by a uniform draw from -gain_db to +gain_db decibels."""
    polarity: bool = False
    """Invert every source with probability one half."""
    transpose_semitones: int = 0
    """Transpose by -transpose_semitones to +transpose_semitones, all equally likely."""
    production: float = 0.0
    """Probability that a source is processed by effects (equaliser, compressor, reverb, ...)."""

    def __post_init__(self) -> None:
        require_types(self)
        require_fields(self, "gain_db", at_least=0, at_most=120)
        require_fields(self, "transpose_semitones", whole=True, at_least=0, at_most=48)
        require_fields(self, "production", at_least=0, at_most=1)

    def semitones(self, generator: np.random.Generator) -> int:
        """Draw a transposition, which all sources of a place share."""
        most = self.transpose_semitones
        return int(generator.integers(-most, most + 1)) if most else 0

    def __call__(self, crop: Tensor, generator: np.random.Generator, sample_rate: int) -> Tensor:
        """Process transposed sources [S, T], change their gains and signs.

        The effects draw from a generator of their own: gains and signs are the same without them.
        """
        sources = len(crop)
        if self.production:
            own = generator.spawn(1)[0]
            crop = torch.stack([self._produce(source, own, sample_rate) for source in crop])
        if self.gain_db:
            decibels = generator.uniform(-self.gain_db, self.gain_db, sources)
            crop = crop * torch.from_numpy(10 ** (decibels / 20)).float().unsqueeze(1)
        if self.polarity:
            signs = generator.choice([-1.0, 1.0], sources)
            crop = crop * torch.from_numpy(signs).float().unsqueeze(1)
        return crop

    def _produce(self, source: Tensor, generator: np.random.Generator, sample_rate: int) -> Tensor:
        if generator.random() >= self.production:
            return source
        production = Production.draw(generator)
        return torch.from_numpy(production(source.numpy(), sample_rate))


@dataclass
class CropDataset(Dataset[Tensor]):
    """Aligned crops [R, crop] of random songs, chosen in proportion to their length.

    `contents` selects the rows: `mixtures` the mixture; `sources` the sources in the order of
    `alpha`; `both` the sources, then their mixture; or the name of one source. The mixture is the
    alpha-weighted sum of the sources, like the data set's mixture files.

    If a place cannot be read, the item's own generator draws another, and `bad_files` records the
    file: an item depends only on its index, the seed and the files.

    Raises:
        ValueError: `contents` names no source, or no song is as long as the crop.
    """

    tracks: Sequence[Track]
    contents: str
    crop: int
    alpha: Mapping[str, float]
    """Weight of every source in the mixture, in the order of the rows."""
    seed: int = 0
    skip_silent: bool = True
    """Draw again if a source is silent throughout the crop (below -60 dBFS)."""
    pairing: Pairing = "song"
    """`random` draws each source from a random song; `half` does so for every second item."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    cache: AudioCache = field(default_factory=AudioCache, repr=False)

    def __post_init__(self) -> None:
        everything = {"mixtures", "sources", "both"}
        if self.contents not in everything | set(self.alpha):
            raise ValueError(
                f"contents is {self.contents!r}, expected mixtures, sources, both or one of "
                f"{', '.join(self.alpha)}"
            )
        self._sources = tuple(self.alpha if self.contents in everything else (self.contents,))
        rows = {"mixtures": (MIXTURE,), "both": (*self._sources, MIXTURE)}
        self.names = rows.get(self.contents, self._sources)
        """Content of every row."""
        self.rows = len(self.names)
        require_fields(self, "crop", whole=True, at_least=1)
        require_fields(self, "seed", whole=True, at_least=0)
        longest = span(self.crop, self.augmentation.transpose_semitones)
        self._songs = long_enough(self.tracks, longest)
        self.bad_files = BadFiles(len(self._songs))
        """Unreadable files; more than a tenth of the songs is an error."""
        lengths = np.array([track.samples for track in self._songs], dtype=np.float64)
        self._edges = np.cumsum(lengths) / lengths.sum()
        self.samples = int(lengths.sum())
        """Samples of the usable songs, which make an epoch."""

    def __getitem__(self, index: int) -> Tensor:
        """Crop [R, crop] of item `index`, any index from 0."""
        generator = np.random.default_rng((self.seed, index))
        if self.pairing == "random" or (self.pairing == "half" and index % 2):
            parts = [self._draw((name,), generator) for name in self._sources]
            sources = torch.cat(parts)
        else:
            sources = self._draw(self._sources, generator)
        sources = self.augmentation(sources, generator, self._songs[0].sample_rate)
        if self.contents not in ("mixtures", "both"):
            return sources
        weights = torch.tensor([self.alpha[name] for name in self._sources])
        mixture = (weights.unsqueeze(1) * sources).sum(0, keepdim=True)
        return mixture if self.contents == "mixtures" else torch.cat([sources, mixture])

    def _draw(self, names: tuple[str, ...], generator: np.random.Generator) -> Tensor:
        """One place of one song, [S, crop]; after `DRAWS` draws the last readable one."""
        crop = None
        semitones = self.augmentation.semitones(generator)
        length = span(self.crop, semitones)
        for _ in range(DRAWS):
            song = self._songs[int(np.searchsorted(self._edges, generator.random(), "right"))]
            start = int(generator.integers(song.samples - length + 1))
            place = self._read(song, names, start, length)
            if place is None:
                continue
            crop = transpose(place, semitones, self.crop)
            if not self.skip_silent or not (audio.rms_dbfs(crop) < -60).any():
                break
        if crop is None:
            raise ValueError(
                f"{DRAWS} draws in a row are unreadable: {self.bad_files.names()}; restore the "
                "files or prepare the data again"
            )
        return crop

    def _read(self, song: Track, names: tuple[str, ...], start: int, length: int) -> Tensor | None:
        """One place, [S, length]; None if a source is unreadable, which `bad_files` records."""
        rows = []
        for name in names:
            path = song.sources[name]
            try:
                rows.append(self.cache.read(path, start, length, song.samples))
            except (OSError, ValueError) as error:
                self.bad_files.add(song.name, path, error)
                self.bad_files.check()
                return None
        return torch.stack(rows)


def long_enough(tracks: Sequence[Track], samples: int) -> list[Track]:
    """The tracks with at least `samples` samples.

    Raises:
        ValueError: there are no tracks, or none is long enough.
    """
    if not tracks:
        raise ValueError("there are no songs to draw crops from")
    usable = [track for track in tracks if track.samples >= samples]
    if not usable:
        longest = max(track.samples for track in tracks)
        raise ValueError(
            f"no song is as long as a crop of {samples} samples, the longest has {longest}; "
            "choose a shorter crop"
        )
    return usable


def split_for_validation(
    manifest: Manifest, split: str | None = None
) -> tuple[list[Track], list[Track]]:
    """Training and validation tracks, without a song in both.

    Args:
        manifest: the data set.
        split: the validation split. None: `validation`, or a twentieth of the training songs if it
            is empty. The `test` split is used only if it is named.

    Raises:
        ValueError: there are no training songs, or the named split is empty.
    """
    train = manifest.split("train")
    if not train:
        raise ValueError(f"{manifest.root} has no songs in its train split")
    if split is not None and not split.strip():
        raise ValueError(f"validate_on is {split!r}, expected the name of a split or none")
    if split == "train":
        raise ValueError("validate_on is 'train', expected another split or none")
    validation = manifest.split("validation" if split is None else split)
    if split is not None and not validation:
        raise ValueError(
            f"validate_on is {split!r}, but {manifest.root} has no songs in that split"
        )
    return (train, validation) if validation else hold_out(train)


def hold_out(tracks: Sequence[Track], share: float = HELD_OUT) -> tuple[list[Track], list[Track]]:
    """Hold out a share of the tracks, by a hash of their names; a single track stays."""
    count = min(max(1, round(share * len(tracks))), len(tracks) - 1)
    ordered = sorted(
        tracks, key=lambda t: hashlib.sha256(t.name.encode("utf-8", "surrogatepass")).digest()
    )
    held = {track.name for track in ordered[:count]}
    return (
        [track for track in tracks if track.name not in held],
        [track for track in tracks if track.name in held],
    )
