"""One audio file becomes stem files: what scripts.separate and scripts.app have in common."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from jukebox_core.audio.stream import AudioReader, AudioWriter, Survey, survey
from jukebox_core.checks import one_line
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.stream import Progress
from jukebox_core.separation.uncertainty import Uncertainty

__all__ = ["SILENT", "examined", "failure", "said_of", "write_stems"]

SILENT = -100.0
"""dB below full scale, over the whole file."""


def examined(reader: AudioReader) -> Survey:
    """What the file holds, found by decoding it to its end.

    If a damaged file still plays, such as an mp3 without its end, a warning goes to stderr.

    Raises:
        ValueError: damaged, empty, not finite, or silent throughout.
    """
    found = survey(reader)
    if found.level < SILENT:
        raise ValueError(f"{reader.path} is silent throughout: there is nothing to separate")
    if reader.warning:
        print(f"warning: {reader.warning}", file=sys.stderr, flush=True)
    return found


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
    """Separate what `reader` reads into files of its rate and channels, window by window.

    After an error half-written files are left: give paths in `files.atomic_folder`.

    Args:
        separator: whose sources are those of `paths`.
        reader: of the mixture.
        frames: its samples, as `examined` counted them.
        paths: {source: file to write}; the suffix chooses the format.
        seed: of the sampling.
        refine: as in `Separator.__call__`.
        batch: windows sampled together.
        progress: called with (steps done, steps in all).
        uncertainty: gathers how far the candidates disagree; the stems are the same.

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
            reader.blocks(),
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


def failure(path: Path, error: Exception) -> str:
    """Why a file could not be separated, as one line; of a bug the traceback is printed as well."""
    if isinstance(error, ValueError | OSError):
        return said_of(path, error)
    traceback.print_exception(error)
    return f"{path}: {type(error).__name__}: {error}"


def said_of(path: Path, error: Exception) -> str:
    """An error as one line that names the file."""
    message = one_line(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.strerror}: {error.filename}"
    return message if path.name in message else f"{path}: {message}"
