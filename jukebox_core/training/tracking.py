"""Where a run's numbers go: a CSV file always, the terminal, Weights & Biases if wanted.

What it can be heard and seen by goes to `media.MediaTracker` and Weights & Biases.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tqdm import tqdm

from jukebox_core.files import atomic_path
from jukebox_core.training.wandb import WandbConfig, WandbTracker

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "METRICS",
    "ConsoleTracker",
    "CsvTracker",
    "Row",
    "Tracker",
    "Trackers",
    "WandbConfig",
    "WandbTracker",
    "read_metrics",
]

METRICS = "metrics.csv"


class Tracker(Protocol):
    """Receives what a run logs."""

    def start(self, step: int, steps: int) -> None:
        """Training begins, or goes on after `step` of `steps`."""
        ...

    def log(self, step: int, epoch: float, split: str, metrics: Mapping[str, float]) -> None:
        """Metrics of a split (`train` or `validation`) after `step` steps."""
        ...

    def warn(self, message: str) -> None:
        """Something a person should look at."""
        ...

    def media(self, step: int, name: str, audio: Mapping[str, Tensor], rate: int) -> None:
        """Waveforms {label: [T]} that belong together, such as what went in and what came out."""
        ...

    def close(self) -> None:
        """The run ends or pauses."""
        ...


class Row(NamedTuple):
    """One line of metrics.csv."""

    step: int
    epoch: float
    split: str
    metric: str
    value: float


def read_metrics(path: str | Path) -> list[Row]:
    """The rows of a metrics.csv; a last line cut short by a crash is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; training writes it")
    text = path.read_text(encoding="utf-8")
    lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    if not lines or tuple(lines[0]) != Row._fields:
        raise ValueError(f"{path} is not a metrics file; expected the columns {Row._fields}")
    try:
        return [
            Row(int(s), float(e), split, metric, float(v)) for s, e, split, metric, v in lines[1:]
        ]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


class CsvTracker:
    """Appends to `metrics.csv`: step, epoch, split, metric, value, one metric per line.

    Lines that a full disk refuses are kept, and written with the next ones.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / METRICS
        self._size: int | None = None  # of what is written; None before the start
        self._pending = ""

    def start(self, step: int, steps: int) -> None:
        """Drop rows of later steps, which will be made again."""
        known = read_metrics(self._path) if self._path.is_file() else []
        kept = [row for row in known if row.step <= step]
        with atomic_path(self._path) as temporary:
            temporary.write_bytes(_lines([Row._fields, *kept]).encode())
        self._size = self._path.stat().st_size

    def log(self, step: int, epoch: float, split: str, metrics: Mapping[str, float]) -> None:
        """Write one line per metric."""
        assert self._size is not None, "start comes first"
        self._pending += _lines(
            [Row(step, round(epoch, 6), split, name, value) for name, value in metrics.items()]
        )
        data = self._pending.encode()
        try:
            with open(self._path, "r+b") as file:
                file.seek(self._size)  # over what a failed attempt left
                file.write(data)
        except OSError:
            return
        self._size += len(data)
        self._pending = ""

    def warn(self, message: str) -> None:
        """Warnings are no numbers."""

    def media(self, step: int, name: str, audio: Mapping[str, Tensor], rate: int) -> None:
        """Audio is no number."""

    def close(self) -> None:
        """Every log is written when it comes.

        Raises:
            OSError: the last ones could not be.
        """
        if self._pending:
            raise OSError(f"{self._path} could not be written to the end: is the disk full?")


def _lines(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class ConsoleTracker:
    """A progress bar on a terminal; elsewhere nothing but warnings, on stderr."""

    def __init__(self, name: str):
        self._name = name
        self._losses: dict[str, str] = {}
        self._bar: tqdm | None = None

    def start(self, step: int, steps: int) -> None:
        """Show the bar."""
        self._bar = tqdm(desc=self._name, initial=step, total=steps, unit="step", disable=None)

    def log(self, step: int, epoch: float, split: str, metrics: Mapping[str, float]) -> None:
        """Move the bar and show the loss of the split."""
        if self._bar is None:
            return
        if "loss" in metrics:
            self._losses["val" if split == "validation" else split] = f"{metrics['loss']:.3f}"
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix({"epoch": f"{epoch:.2f}"} | self._losses)

    def warn(self, message: str) -> None:
        """One line on stderr, beside the bar."""
        tqdm.write(f"warning: {message}", file=sys.stderr)

    def media(self, step: int, name: str, audio: Mapping[str, Tensor], rate: int) -> None:
        """A terminal shows none."""

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class Trackers:
    """Several trackers as one; none of them makes a silent one."""

    def __init__(self, parts: Sequence[Tracker] = ()):
        self._parts = list(parts)

    def start(self, step: int, steps: int) -> None:
        """Pass on to all."""
        for part in self._parts:
            part.start(step, steps)

    def log(self, step: int, epoch: float, split: str, metrics: Mapping[str, float]) -> None:
        """Pass on to all."""
        for part in self._parts:
            part.log(step, epoch, split, metrics)

    def warn(self, message: str) -> None:
        """Pass on to all."""
        for part in self._parts:
            part.warn(message)

    def media(self, step: int, name: str, audio: Mapping[str, Tensor], rate: int) -> None:
        """Pass on to all."""
        for part in self._parts:
            part.media(step, name, audio, rate)

    def close(self) -> None:
        """Close all."""
        for part in self._parts:
            part.close()
