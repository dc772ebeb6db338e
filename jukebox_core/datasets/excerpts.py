"""Excerpts of test songs, to separate and to listen to."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from jukebox_core import audio as audio_io
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.files import check_replaceable


def write_excerpt(data: Path, output: Path, seconds: float = 9.0) -> Path:
    """Write the middle of the first test song's mixture.

    Args:
        data: folder of a prepared data set.
        output: audio file to write.
        seconds: duration; a shorter song is written whole.

    Returns:
        `output`.

    Raises:
        ValueError: the data set has no test songs.
        FileExistsError: `output` holds other audio.
    """
    manifest = load_manifest(data)
    tracks = sorted(manifest.split("test"), key=lambda track: track.name)
    if not tracks:
        raise ValueError(f"{data} has no test songs to separate")
    length = min(tracks[0].samples, round(seconds * manifest.sample_rate))
    start = (tracks[0].samples - length) // 2
    middle = audio_io.load_segment(tracks[0].mixture, start, length)
    check_replaceable(output, partial(_holds, middle, manifest.sample_rate), "this excerpt")
    audio_io.save(output, middle, manifest.sample_rate)
    return output


def _holds(samples: torch.Tensor, rate: int, path: Path) -> bool:
    found, at = audio_io.load(path)
    return at == rate and torch.equal(found, torch.atleast_2d(samples))
