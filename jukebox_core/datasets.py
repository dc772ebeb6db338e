"""Random crops of a prepared data set: item i depends on the seed and on i alone.

Nothing else is random: not the number of workers, not the order of reading. Training step s reads
fixed items, so that a resumed run just starts at the right one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from jukebox_core import audio
from jukebox_core.manifest import Manifest, Track

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
HELD_OUT = 0.05
"""Share of the training songs that validate where the data set has no validation split."""


class Items(Protocol):
    """A map-style data set of endless items [R, length]; what `Batches` reads."""

    rows: int

    def __getitem__(self, index: int) -> Tensor:
        """Item `index`, the same on every call."""
        ...


@dataclass(frozen=True)
class Augmentation:
    """Changes of the sources before they are mixed; all off by default."""

    gain_db: float = 0.0
    """Every source is scaled by a uniform draw from -gain_db to +gain_db decibels."""
    polarity: bool = False
    """Every source is inverted with probability one half."""

    def __call__(self, crop: Tensor, generator: np.random.Generator) -> Tensor:
        """[S, T] to [S, T]."""
        sources = len(crop)
        if self.gain_db:
            decibels = generator.uniform(-self.gain_db, self.gain_db, sources)
            crop = crop * torch.from_numpy(10 ** (decibels / 20)).float().unsqueeze(1)
        if self.polarity:
            signs = generator.choice([-1.0, 1.0], sources)
            crop = crop * torch.from_numpy(signs).float().unsqueeze(1)
        return crop


class AudioCache:
    """Reads parts of mono files; keeps whole decoded files until a budget of bytes is spent."""

    def __init__(self, budget: int = 1 << 30):
        self._budget = budget
        self._used = 0
        self._kept: dict[Path, Tensor] = {}

    def read(self, path: Path, start: int, length: int, samples: int) -> Tensor:
        """[length] samples from `start` of a file that has `samples` of them."""
        kept = self._kept.get(path)
        if kept is None:
            worker = get_worker_info()
            budget = self._budget // (worker.num_workers if worker else 1)
            if self._used + 4 * samples > budget:
                return audio.load_segment(path, start, length)[0]
            kept = audio.load(path)[0][0].clone()
            if len(kept) != samples:
                raise ValueError(
                    f"{path} has {len(kept)} samples, its manifest says {samples}: prepare again"
                )
            self._kept[path] = kept
            self._used += kept.nbytes
        return kept[start : start + length]


@dataclass
class CropDataset(Dataset):
    """Aligned crops [R, crop] of random songs, every song as likely as it is long.

    The rows are, by `contents`: `mixtures` the mixture; `sources` the sources in the order of
    `alpha`; `both` the sources, then their mixture; or the name of one source. The mixture is the
    alpha-weighted sum of the sources, which is what the data set's mixture files hold.

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
    """Draw again, up to 20 times, where a source is silent throughout the crop (-60 dBFS)."""
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
        self.rows = {"mixtures": 1, "both": len(chosen) + 1}.get(self.contents, len(chosen))
        self._songs = long_enough(self.tracks, self.crop)
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
        """One place of one song, [S, crop]; after 20 silent places the last of them."""
        for _ in range(20 if self.skip_silent else 1):
            song = self._songs[int(np.searchsorted(self._edges, generator.random(), "right"))]
            start = int(generator.integers(song.samples - self.crop + 1))
            crop = torch.stack(
                [
                    self.cache.read(song.sources[name], start, self.crop, song.samples)
                    for name in names
                ]
            )
            if not (audio.rms_dbfs(crop) < -60).any():
                break
        return crop


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
    if split == "train":
        raise ValueError("the train split cannot validate; name another or none")
    chosen = manifest.split(split or "validation")
    if split is not None and not chosen:
        raise ValueError(f"{manifest.root} has no songs in its {split} split")
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


def collate(items: Sequence[Tensor]) -> Tensor:
    """Items [R, ...] to a batch [R * B, ...] ordered by row: all first rows, then all second."""
    return torch.stack(list(items), dim=1).flatten(0, 1)


@dataclass(frozen=True)
class Batches:
    """The batches of a run, in an order that depends on the step alone.

    One optimiser step is `accumulate` batches on each of `processes`; all of them together hold
    `batch_size` rows and read the items `step * n` to `(step + 1) * n - 1`, n = batch_size / R.

    Raises:
        ValueError: `batch_size` does not divide that way.
    """

    items: Items
    batch_size: int
    processes: int = 1
    rank: int = 0
    accumulate: int = 1
    workers: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        """Refuse a batch size that does not divide."""
        unit = self.items.rows * self.processes * self.accumulate
        if self.batch_size < 1 or self.batch_size % unit:
            raise ValueError(
                f"batch size {self.batch_size} does not divide into {self.items.rows} rows per "
                f"item x {self.processes} processes x {self.accumulate} accumulated batches; "
                f"expected a multiple of {unit}"
            )

    @property
    def items_per_step(self) -> int:
        """Items of one optimiser step, over all processes."""
        return self.batch_size // self.items.rows

    def indices(self, start: int, stop: int) -> Iterator[list[int]]:
        """The items of every batch of this process from step `start` to before step `stop`."""
        count = self.items_per_step
        parts = self.processes * self.accumulate
        for step in range(start, stop):
            whole = range(step * count, (step + 1) * count)
            for part in range(self.rank, parts, self.processes):
                yield list(whole[part::parts])

    def steps(self, start: int, stop: int) -> Iterator[Tensor]:
        """The batches [R * B, ...] of this process, `accumulate` of them per step."""
        loader: DataLoader = DataLoader(
            _Endless(self.items),
            batch_sampler=list(self.indices(start, stop)),
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            # A generator of its own: the loader would draw from the global one, which would make
            # a resumed run differ from one that never stopped.
            generator=torch.Generator(),
        )
        return iter(loader)


class _Endless(Dataset):
    """A data set without a length, which indices of any size may ask for items."""

    def __init__(self, items: Items):
        self._items = items

    def __getitem__(self, index: int) -> Tensor:
        return self._items[index]
