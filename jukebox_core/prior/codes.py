"""Songs as code sequences: encoded once, windows of them drawn at random for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jukebox_core.audio.transposition import room, span, transpose
from jukebox_core.checks import require
from jukebox_core.config import VQVAEConfig
from jukebox_core.datasets.bad_files import BadFiles, warn_on_stderr
from jukebox_core.datasets.cache import AudioCache
from jukebox_core.datasets.crops import long_enough
from jukebox_core.datasets.manifest import Track
from jukebox_core.vqvae.blocks import dilations
from jukebox_core.vqvae.model import VQVAE

WINDOW_SECONDS = {"cpu": 3, "cuda": 30}
"""Encoded at once: what fits a CPU's cache takes half the time there, a GPU wants more."""


@dataclass(frozen=True)
class EncodedSong:
    """One source of a song. codes: int32 [K shifts, T]. power: mean square per code, [T]."""

    codes: Tensor
    power: np.ndarray


@dataclass
class CodeDataset(Dataset[Tensor]):
    """Random code windows int64 [1, length]; item i depends only on the seed and on i.

    Windows whose audio is silent throughout (under -60 dBFS) are drawn again, up to 20 times.
    """

    songs: Sequence[EncodedSong]
    length: int
    hop: int
    seed: int = 0
    skip_silent: bool = True
    rows: int = 1

    def __post_init__(self) -> None:
        """Cumulate lengths, to draw songs, and powers, to find silent windows."""
        lengths = np.array([song.codes.shape[1] for song in self.songs], dtype=np.float64)
        if not len(lengths) or lengths.min() < self.length:
            shortest = int(lengths.min()) if len(lengths) else 0
            raise ValueError(f"windows of {self.length} codes, the shortest song has {shortest}")
        self._edges = np.cumsum(lengths) / lengths.sum()
        self._power = [np.concatenate(([0.0], np.cumsum(song.power))) for song in self.songs]
        self.samples = int(lengths.sum()) * self.hop

    def __getitem__(self, index: int) -> Tensor:
        """Window [1, length] of item `index`, any index from 0."""
        generator = np.random.default_rng((self.seed, index))
        for _ in range(20 if self.skip_silent else 1):
            number = int(np.searchsorted(self._edges, generator.random(), "right"))
            codes = self.songs[number].codes
            start = int(generator.integers(codes.shape[1] - self.length + 1))
            stop = start + self.length
            shift = int(generator.integers(codes.shape[0]))
            power = (self._power[number][stop] - self._power[number][start]) / self.length
            if power >= 1e-6:  # -60 dBFS
                break
        return codes[shift : shift + 1, start:stop].long()


def encode_songs(
    codec: VQVAE,
    tracks: Sequence[Track],
    source: str,
    crop: int,
    shifts: int = 1,
    transpose_semitones: int = 0,
    warn: Callable[[str], None] = warn_on_stderr,
) -> list[EncodedSong]:
    """Encode one source of every song that is longer than `crop` samples by a code.

    Args:
        codec: in eval mode.
        tracks: the songs.
        source: name of the source.
        crop: samples of a training crop.
        shifts: copies of every song, copy k moved by k / shifts of a code, so that a prior does
            not learn one alignment of a song by heart.
        transpose_semitones: every song is there in every key so far up and down, as a song of its
            own.
        warn: is told of every song that cannot be read.

    Returns:
        The encoded songs, without those too short and those that cannot be read.

    Raises:
        ValueError: no song is long enough, more than a tenth cannot be read, or there are more
            shifts than samples in a code.
    """
    hop = codec.config.hop
    keys = range(-transpose_semitones, transpose_semitones + 1)
    require("transpose_semitones", transpose_semitones, whole=True, at_least=0)
    require("shifts", shifts, whole=True, at_least=1, at_most=hop, hint="samples in a code")
    songs = []
    usable = long_enough(tracks, span(crop + hop, transpose_semitones))
    bad_files, files = BadFiles(len(usable)), AudioCache(0)
    for track in usable:
        path = track.sources[source]
        try:
            waveform = files.read(path, 0, track.samples, track.samples)
        except (OSError, ValueError) as error:
            bad_files.add(track.name, path, error)
            for message in bad_files.news():
                warn(message)
            bad_files.check()
            continue
        for semitones in keys:
            key = transpose(waveform[None], semitones, room(len(waveform), semitones))[0]
            songs.append(_encode_song(codec, key, shifts))
    return songs


def _encode_song(codec: VQVAE, waveform: Tensor, shifts: int) -> EncodedSong:
    hop = codec.config.hop
    steps = len(waveform) // hop - 1  # the same number for every shift
    moved = [waveform[k * hop // shifts :][: steps * hop] for k in range(shifts)]
    codes = torch.stack([encode_long(codec, copy) for copy in moved]).int().cpu()
    power = moved[0].view(steps, hop).square().mean(1).double().numpy()
    return EncodedSong(codes, power)


@torch.no_grad()
def encode_long(codec: VQVAE, waveform: Tensor, window: int | None = None) -> Tensor:
    """Top-level codes [T / hop] of a waveform [T] of any length, in windows of bounded memory.

    The windows (`window` codes; None: some seconds) are encoded with as much around them as the
    encoder sees, so that the codes equal those of the whole waveform at once.
    """
    config = codec.config
    hop = config.hop
    total = len(waveform) // hop
    context = -(-encoder_reach(config) // hop)
    device = codec.codebook.device
    seconds = WINDOW_SECONDS.get(device.type, 10)
    if window is None:
        window = max(4 * context, seconds * config.sample_rate // hop)
    require("window", window, whole=True, at_least=1)
    parts = []
    for start in range(0, total, window):
        stop = min(start + window, total)
        left, right = max(0, start - context), min(total, stop + context)
        piece = waveform[left * hop : right * hop].to(device)
        parts.append(codec.encode(piece.unsqueeze(0))[0, start - left : stop - left])
    return torch.cat(parts)


def encoder_reach(config: VQVAEConfig) -> int:
    """Receptive field of the top level's encoder: samples to either side of a code."""
    dilated = sum(dilations(config, config.levels - 1))
    reach, scale = 0, 1
    for downs, stride in zip(config.downs_t, config.strides_t, strict=True):
        for _ in range(downs):
            reach += stride * scale
            scale *= stride
            reach += dilated * scale
        reach += scale
    return reach
