"""Training items of the mask network: crops with candidates, drawn once and kept on the disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jukebox_core.datasets.crops import CropDataset
from jukebox_core.separation.separator import Separator
from jukebox_core.tables import open_table, readable, write_table

KIND = "mask_network_candidates"
GROUP = 8
"""Crops per file, sampled together."""


@dataclass
class CandidateItems(Dataset[Tensor]):
    """Items [S (1 + N), T]: a crop's S true sources, then N candidates of each source.

    Item i is one of the kept crops: every `count` items are all of them, in a random order that
    depends only on the seed.
    """

    folder: Path
    count: int
    rows: int
    crop: int
    identity: str
    seed: int = 0

    @property
    def samples(self) -> int:
        """Samples of all crops, which make an epoch."""
        return self.count * self.crop

    def __getitem__(self, index: int) -> Tensor:
        """Item `index`, any index from 0.

        Raises:
            ValueError: the file was replaced by one of another identity.
        """
        epoch, place = divmod(index, self.count)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        group, row = divmod(int(order[place]), GROUP)
        path = _file(self.folder, group)
        file, metadata = open_table(path, KIND)
        with file, readable(path, KIND):
            if metadata.get("identity") != self.identity:
                raise ValueError(f"{path} was replaced by candidates of another training")
            return file.get_slice("items")[row].float()


def groups_of(count: int, share: tuple[int, int] = (0, 1)) -> range:
    """The groups of `count` crops that one of several processes draws; see `draw_items`."""
    return range(share[0], count // GROUP, share[1])


def draw_items(
    separator: Separator,
    crops: CropDataset,
    count: int,
    folder: Path,
    identity: str,
    *,
    seed: int = 0,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int], object] | None = None,
) -> CandidateItems:
    """Draw the candidates of `count` crops; those that the folder holds are taken from there.

    The random numbers of a group of crops depend only on the seed and its place, so that several
    processes can divide the groups.

    Args:
        separator: draws the candidates.
        crops: of all sources, as long as a window at most.
        count: number of crops, a multiple of `GROUP`.
        folder: for the files.
        identity: of everything that the items depend on; files of another identity are replaced.
        seed: random seed for sampling.
        share: number of this process from 0, and how many divide the groups; the items are complete
            when all have returned.
        progress: called with the number of crops of every group that is there.
    """
    alpha = separator.alpha
    gains = torch.tensor([alpha[name] for name in crops.names])
    folder.mkdir(parents=True, exist_ok=True)
    for group in groups_of(count, share):
        path = _file(folder, group)
        if not _is_kept(path, identity):
            sources = torch.stack([crops[group * GROUP + i] for i in range(GROUP)])  # [G, S, T]
            mixtures = torch.einsum("s,gst->gt", gains, sources)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + group)
            drawn = separator.candidates(mixtures, generator)
            each = torch.stack([drawn.audio[name] for name in crops.names], 1)  # [G, S, N, T]
            items = torch.cat([sources, each.flatten(1, 2)], 1)
            write_table(path, {"items": items.half()}, {"kind": KIND, "identity": identity})
        if progress is not None:
            progress(GROUP)
    rows = len(crops.names) * (1 + separator.n_candidates)
    return CandidateItems(folder, count, rows, crops.crop, identity, seed)


def _is_kept(path: Path, identity: str) -> bool:
    if not path.is_file():
        return False
    try:
        file, metadata = open_table(path, KIND)
    except ValueError:  # damaged
        return False
    with file:
        return metadata.get("identity") == identity


def _file(folder: Path, group: int) -> Path:
    return folder / f"{group:05d}.safetensors"
