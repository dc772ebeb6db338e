"""Random crops of a prepared data set: item i depends on the seed and on i alone.

Nothing else is random: not the number of workers, not the order of reading (see `batches`).
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
from jukebox_core.audio.transposition import span, transpose
from jukebox_core.checks import require_fields, require_types
from jukebox_core.datasets.bad_files import Unreadable
from jukebox_core.datasets.batches import Batches, Items, collate
from jukebox_core.datasets.cache import AudioCache
from jukebox_core.datasets.manifest import Manifest, Track

__all__ = [
    "Augmentation",
    "AudioCache",
    "Batches",
    "CropDataset",
    "Items",
    "collate",
    "hold_out",
    "long_enough",
    "split_for_validation",
]

MIXTURE = "mixture"
DRAWS = 20
"""So many places are tried for one item."""
HELD_OUT = 0.05
"""Share of the training songs that validate where the data set has no validation split."""


@dataclass(frozen=True)
class Augmentation:
    """Changes of the sources before they are mixed; all off by default."""

    gain_db: float = 0.0
    """Every source is scaled by a uniform draw from -gain_db to +gain_db decibels."""
    polarity: bool = False
    """Every source is inverted with probability one half."""
    transpose_semitones: int = 0
    """A place is transposed by -transpose_semitones to +transpose_semitones, all equally likely."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_types(self)
        require_fields(self, "gain_db", at_least=0, at_most=120)
        require_fields(self, "transpose_semitones", whole=True, at_least=0, at_most=48)

    def semitones(self, generator: np.random.Generator) -> int:
        """By how much a place is transposed; its sources keep together."""
        most = self.transpose_semitones
        return int(generator.integers(-most, most + 1)) if most else 0

    def __call__(self, crop: Tensor, generator: np.random.Generator) -> Tensor:
        """[S, T] to [S, T], transposed already."""
        sources = len(crop)
        if self.gain_db:
            decibels = generator.uniform(-self.gain_db, self.gain_db, sources)
            crop = crop * torch.from_numpy(10 ** (decibels / 20)).float().unsqueeze(1)
        if self.polarity:
            signs = generator.choice([-1.0, 1.0], sources)
            crop = crop * torch.from_numpy(signs).float().unsqueeze(1)
        return crop


@dataclass
class CropDataset(Dataset):
    """Aligned crops [R, crop] of random songs, every song as likely as it is long.

    The rows are, by `contents`: `mixtures` the mixture; `sources` the sources in the order of
    `alpha`; `both` the sources, then their mixture; or the name of one source. The mixture is the
    alpha-weighted sum of the sources, which is what the data set's mixture files hold.

    A place that cannot be read is drawn again from the item's own generator, and `unreadable`
    remembers the file: an item depends on the files besides the seed and itself, on nothing else.

    Raises:
        ValueError: `contents` names no source, or no song is as long as the crop.
    """

    tracks: Sequence[Track]
    contents: str
    crop: int
    alpha: Mapping[str, float]
    """Weight of every source in the mixture; its order is that of the rows."""
    seed: int = 0
    skip_silent: bool = True
    """Draw again where a source is silent throughout the crop (-60 dBFS)."""
    pairing: Literal["song", "random"] = "song"
    """`random` draws every source from a song of its own."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    cache: AudioCache = field(default_factory=AudioCache, repr=False)

    def __post_init__(self) -> None:
        """Choose the sources to read and the songs that are long enough."""
        everything = {"mixtures", "sources", "both"}
        if self.contents not in everything | set(self.alpha):
            raise ValueError(
                f"contents is {self.contents!r}, expected mixtures, sources, both or one of "
                f"{', '.join(self.alpha)}"
            )
        chosen = self.alpha if self.contents in everything else (self.contents,)
        self._sources = tuple(chosen)
        rows = {"mixtures": (MIXTURE,), "both": (*chosen, MIXTURE)}
        self.names = rows.get(self.contents, self._sources)
        """What every row holds."""
        self.rows = len(self.names)
        require_fields(self, "crop", whole=True, at_least=1)
        require_fields(self, "seed", whole=True, at_least=0)
        longest = span(self.crop, self.augmentation.transpose_semitones)
        self._songs = long_enough(self.tracks, longest)
        self.unreadable = Unreadable(len(self._songs))
        """Files that could not be read; more than a tenth of the songs is an error."""
        lengths = np.array([track.samples for track in self._songs], dtype=np.float64)
        self._edges = np.cumsum(lengths) / lengths.sum()
        self.samples = int(lengths.sum())
        """Samples of the usable songs: an epoch is as many, in every row."""

    def __getitem__(self, index: int) -> Tensor:
        """Crop [R, crop] of item `index`, any index from 0."""
        generator = np.random.default_rng((self.seed, index))
        if self.pairing == "random":
            parts = [self._draw((name,), generator) for name in self._sources]
            sources = torch.cat(parts)
        else:
            sources = self._draw(self._sources, generator)
        sources = self.augmentation(sources, generator)
        if self.contents not in ("mixtures", "both"):
            return sources
        weights = torch.tensor([self.alpha[name] for name in self._sources])
        mixture = (weights.unsqueeze(1) * sources).sum(0, keepdim=True)
        return mixture if self.contents == "mixtures" else torch.cat([sources, mixture])

    def _draw(self, names: tuple[str, ...], generator: np.random.Generator) -> Tensor:
        """One place of one song, [S, crop]; after 20 draws the last that could be read."""
        found = None
        semitones = self.augmentation.semitones(generator)
        length = span(self.crop, semitones)
        for _ in range(DRAWS):
            song = self._songs[int(np.searchsorted(self._edges, generator.random(), "right"))]
            start = int(generator.integers(song.samples - length + 1))
            place = self._read(song, names, start, length)
            if place is None:
                continue
            found = crop = transpose(place, semitones, self.crop)
            if not self.skip_silent or not (audio.rms_dbfs(crop) < -60).any():
                break
        if found is None:
            raise ValueError(
                f"{DRAWS} draws in a row cannot be read: {self.unreadable.names()}; restore the "
                "files or prepare the data again"
            )
        return found

    def _read(self, song: Track, names: tuple[str, ...], start: int, length: int) -> Tensor | None:
        """One place, [S, length]; None, which is noted, where a source cannot be read."""
        rows = []
        for name in names:
            path = song.sources[name]
            try:
                rows.append(self.cache.read(path, start, length, song.samples))
            except (OSError, ValueError) as error:
                self.unreadable.add(song.name, path, error)
                self.unreadable.check()
                return None
        return torch.stack(rows)


def long_enough(tracks: Sequence[Track], samples: int) -> list[Track]:
    """The tracks of at least `samples` samples.

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
    """The tracks to train on and those to validate on, without a song in both.

    Args:
        manifest: the data set.
        split: the split that validates. None: `validation`, or where that is empty a twentieth of
            the training songs. The `test` split is used only where it is named.

    Raises:
        ValueError: there is nothing to train on, or the named split is empty.
    """
    train = manifest.split("train")
    if not train:
        raise ValueError(f"{manifest.root} has no songs in its train split")
    if split is not None and not split.strip():
        raise ValueError(f"validate_on is {split!r}, expected the name of a split or none")
    if split == "train":
        raise ValueError("the train split cannot validate; name another or none")
    chosen = manifest.split("validation" if split is None else split)
    if split is not None and not chosen:
        raise ValueError(
            f"validate_on is {split!r}, but {manifest.root} has no songs in that split"
        )
    return (train, chosen) if chosen else hold_out(train)


def hold_out(tracks: Sequence[Track], share: float = HELD_OUT) -> tuple[list[Track], list[Track]]:
    """Split tracks by a hash of their names; a single track stays and validates nothing."""
    count = min(max(1, round(share * len(tracks))), len(tracks) - 1)
    ordered = sorted(tracks, key=lambda t: hashlib.sha256(t.name.encode()).digest())
    held = {track.name for track in ordered[:count]}
    return (
        [track for track in tracks if track.name not in held],
        [track for track in tracks if track.name in held],
    )
