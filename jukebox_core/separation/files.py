"""Separate an audio file into stem files, in flat memory whatever its length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from jukebox_core.audio.decoding import AudioReader
from jukebox_core.audio.stream import AudioWriter, Survey, survey
from jukebox_core.separation.samples import Progress
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.uncertainty import Uncertainty

SILENT = -100.0
"""dB below full scale, over the whole file."""


def check_input(reader: AudioReader, heard: Callable[[int], None] = lambda frames: None) -> Survey:
    """Survey a file by decoding it to its end.

    `reader.warning` then tells if a damaged file, such as a truncated mp3, still plays. `heard` is
    as in `survey`.

    Raises:
        ValueError: it is damaged, empty, not finite, or silent throughout.
    """
    summary = survey(reader, heard)
    if summary.level < SILENT:
        raise ValueError(f"{reader.path} is silent throughout: there is nothing to separate")
    return summary


def write_stems(
    separator: Separator,
    reader: AudioReader,
    frames: int,
    paths: Mapping[str, Path],
    *,
    seed: int = 0,
    refine: bool = True,
    batch: int | Literal["auto"] = "auto",
    progress: Progress | None = None,
    uncertainty: Uncertainty | None = None,
) -> None:
    """Separate a file into files of the same rate and channels, window by window.

    After an error, incomplete files are left: write into `files.atomic_folder`.

    Args:
        separator: its sources are the keys of `paths`.
        reader: of the mixture.
        frames: number of samples to separate, from the start; `check_input` tells that of all.
        paths: {source: file to write}; the suffix chooses the format.
        seed: random seed for sampling.
        refine: as in `Separator.__call__`.
        batch: windows sampled together.
        progress: called with (steps done, total steps).
        uncertainty: collects the uncertainty; the stems are the same.

    Raises:
        ValueError: as `Separator.stream` and `AudioWriter`.
    """
    with ExitStack() as stack:
        writers = {
            source: stack.enter_context(
                AudioWriter(path, reader.rate, reader.channels, frames=frames)
            )
            for source, path in paths.items()
        }
        stream = separator.stream(
            reader.blocks(frames=frames),
            reader.rate,
            reader.channels,
            seed=seed,
            refine=refine,
            batch=batch,
            length=frames,
            progress=progress,
            uncertainty=uncertainty,
        )
        for stems in stream:
            for source, stem in stems.items():
                writers[source].write(stem)
