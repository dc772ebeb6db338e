"""Cached reading of a data set's audio files."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import get_worker_info

from jukebox_core import audio


class AudioCache:
    """Reads parts of mono files; keeps decoded files in memory up to a budget in bytes.

    The result of a read, or its failure, depends only on the file and the place, not on the cache:
    undamaged parts of a damaged file stay readable.
    """

    def __init__(self, budget: int = 1 << 30):
        self._budget = budget
        self._used = 0
        self._kept: dict[Path, Tensor] = {}
        self._errors: dict[Path, str] = {}
        self._damaged: set[Path] = set()

    def read(self, path: Path, start: int, length: int, samples: int) -> Tensor:
        """Samples [length] from `start` of a file with `samples` samples.

        Raises:
            OSError: the file is missing, or reading it is not permitted.
            ValueError: this part cannot be decoded, or the file has another number of samples.
        """
        if path not in self._kept and self._room(samples) and path not in self._damaged:
            self._keep(path, samples)
        kept = self._kept.get(path)
        if kept is not None:
            return kept[start : start + length]
        self._check_length(path, samples)
        return audio.load_segment(path, start, length)[0]

    def _room(self, samples: int) -> bool:
        worker = get_worker_info()
        budget = self._budget // (worker.num_workers if worker else 1)
        return self._used + 4 * samples <= budget

    def _keep(self, path: Path, samples: int) -> None:
        self._check_length(path, samples)
        try:
            # Not `audio.load`: with ffmpeg it would conceal damage.
            kept = audio.load_segment(path, 0, samples)[0].clone()
        except ValueError:
            self._damaged.add(path)
        else:
            self._kept[path] = kept
            self._used += kept.nbytes

    def _check_length(self, path: Path, samples: int) -> None:
        """Compare the header with the manifest, once per file."""
        if path not in self._errors:
            try:
                frames = audio.info(path).frames
                differ = f"{path} has {frames} samples, the manifest has {samples}"
                self._errors[path] = f"{differ}: prepare it again" if frames != samples else ""
            except ValueError as error:
                self._errors[path] = str(error)
        if self._errors[path]:
            raise ValueError(self._errors[path])
