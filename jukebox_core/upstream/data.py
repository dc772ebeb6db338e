"""How the originals cut and choose their training audio, for runs that are to be comparable."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from jukebox_core.audio.io import reference_is_silent
from jukebox_core.audio.spectra import magnitudes
from jukebox_core.config import Bandwidths
from jukebox_core.vqvae.losses import frobenius

__all__ = [
    "Place",
    "bandwidths",
    "mono",
    "non_silent_chunks",
    "number_of_items",
    "place_of_item",
    "shuffle_chunks",
    "subsample",
]


class Place(NamedTuple):
    """Sample `offset` of song number `song`."""

    song: int
    offset: int


def number_of_items(lengths: Sequence[int], crop: int) -> int:
    """Items of a data set: floor(total length / crop) over the concatenated songs."""
    return sum(lengths) // crop


def place_of_item(lengths: Sequence[int], crop: int, item: int, shift: int = 0) -> Place:
    """Where the crop of an item starts.

    The songs are laid end to end; item i starts at i crop + shift, shift being drawn from
    [-crop / 2, crop / 2). The song is the one that holds the crop's middle; a crop that reaches
    over its edge is moved by half a crop, and no further than it must.

    Args:
        lengths: samples of every song.
        crop: samples of a crop.
        item: 0 to number_of_items - 1.
        shift: what was drawn, 0 without augmentation.

    Raises:
        ValueError: the item does not exist, or the song it falls on is shorter than a crop.
    """
    ends = np.cumsum(lengths)
    begin = item * crop + shift
    middle = begin + crop // 2
    if not 0 <= middle < ends[-1]:
        raise ValueError(f"item {item} lies outside the {ends[-1]} samples of the data set")
    song = int(np.searchsorted(ends, middle))
    start, end = int(ends[song] - lengths[song]), int(ends[song])
    if begin > end - crop:
        begin = max(start, begin - crop // 2)
    elif begin < start:
        begin = min(end - crop, begin + crop // 2)
    if not start <= begin <= end - crop:
        raise ValueError(f"song {song} has {end - start} samples, a crop has {crop}")
    return Place(song, begin - start)


def mono(audio: Tensor, weights: Tensor | None = None) -> Tensor:
    """Stereo [B, T, 2] to mono [B, T].

    Args:
        audio: left and right.
        weights: [B], of the left channel, drawn from [0, 1) per item (`aug_blend`); None takes the
            mean.
    """
    if weights is None:
        return audio.mean(-1)
    weights = weights.reshape(-1, 1)
    return weights * audio[..., 0] + (1 - weights) * audio[..., 1]


class AudioItems(Protocol):
    """Items that can be asked for by number."""

    def __getitem__(self, index: int) -> Tensor:
        """Audio [C, T]."""
        ...


def bandwidths(
    items: AudioItems,
    seconds: float,
    rate: int,
    stft: tuple[int, int, int] = (2048, 256, 1536),
    stride: int = 16,
) -> Bandwidths:
    """Normalisers of the loss over the items 0, stride, 2 stride, ... until enough was seen.

    Enough are `seconds` times `rate` samples, those of all channels counted.

    Args:
        items: the training data.
        seconds: how much (600 for codecs, 1 for priors).
        rate: sample rate.
        stft: n_fft, hop, window of the spectrogram.
        stride: of the items.
    """
    seen, visited = 0, 0
    total = squares = absolute = norms = 0.0
    while seen < seconds * rate:
        audio = items[visited * stride].double()  # [C, T]
        visited += 1
        seen += audio.numel()
        total += audio.sum().item()
        squares += audio.square().sum().item()
        absolute += audio.abs().sum().item()
        norms += frobenius(magnitudes(audio.mean(0, keepdim=True), stft)).item()
    return Bandwidths(
        l1=absolute / seen, l2=squares / seen - (total / seen) ** 2, spec=norms / visited
    )


def non_silent_chunks(
    sources: Sequence[Tensor], longest: int, shortest: int, threshold: float = 1.5e-5
) -> list[int]:
    """Numbers of the chunks of `longest` samples in which no source is silent.

    Silent is a norm / length under `threshold`. The last chunk may be shorter, down to `shortest`.

    Args:
        sources: [T] each, aligned.
        longest: samples of a chunk.
        shortest: a last chunk with fewer samples is dropped.
        threshold: of the silence.
    """
    length = min(source.shape[-1] for source in sources)
    chosen = []
    for number, start in enumerate(range(0, length, longest)):
        chunks = [source[..., start : min(start + longest, length)] for source in sources]
        if chunks[0].shape[-1] < shortest:
            continue
        if not any(reference_is_silent(chunk, threshold) for chunk in chunks):
            chosen.append(number)
    return chosen


def subsample(n: int, k: int, seed: int = 0) -> list[int]:
    """K of n indices: the first of a random permutation after seeding torch."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k].tolist()


def shuffle_chunks(lengths: Sequence[int], seed: int = 42) -> list[list[int]]:
    """Orders of the chunks of every song, shuffled one song after the other by one generator."""
    generator = random.Random(seed)
    orders = [list(range(length)) for length in lengths]
    for order in orders:
        generator.shuffle(order)
    return orders
