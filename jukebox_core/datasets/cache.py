"""Parts of a data set's audio files, the whole of them in memory where there is room."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import get_worker_info

from jukebox_core import audio

__all__ = ["AudioCache"]


class AudioCache:
    """Reads parts of mono files; keeps whole decoded files until a budget of bytes is spent.

    What a read returns, or whether it fails, depends on the file and the place and not on what is
    kept: a file that is damaged somewhere is read in parts, of which the others are good.
    """

    def __init__(self, budget: int = 1 << 30):
        self._budget = budget
        self._used = 0
        self._kept: dict[Path, Tensor] = {}
        self._wrong: dict[Path, str | None] = {}
        self._damaged: set[Path] = set()

    def read(self, path: Path, start: int, length: int, samples: int) -> Tensor:
        """[length] samples from `start` of a file that has `samples` of them.

        Raises:
            OSError: there is no such file, or it may not be read.
            ValueError: this part of it cannot be decoded, or it has another number of samples.
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
            # Not `audio.load`, which has ffmpeg make something of a damaged file.
            kept = audio.load_segment(path, 0, samples)[0].clone()
        except ValueError:
            self._damaged.add(path)
        else:
            self._kept[path] = kept
            self._used += kept.nbytes

    def _check_length(self, path: Path, samples: int) -> None:
        """Compare the header with the manifest; both, once read, stay as they were."""
        if path not in self._wrong:
            self._wrong[path] = _wrong_with(path, samples)
        wrong = self._wrong[path]
        if wrong is not None:
            raise ValueError(wrong)


def _wrong_with(path: Path, samples: int) -> str | None:
    """Why a file is not the one of the manifest, as far as its header tells."""
    try:
        frames = audio.info(path).frames
    except ValueError as error:
        return str(error)
    if frames != samples:
        return f"{path} has {frames} samples, its manifest says {samples}: prepare again"
    return None
