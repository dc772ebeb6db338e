"""Where a run's numbers go: a CSV file always, the terminal, Weights & Biases if wanted.

What it can be heard and seen by goes to `media.MediaTracker` and Weights & Biases.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TextIO

from tqdm import tqdm

from jukebox_core.files import atomic_path
from jukebox_core.wandb_tracker import WandbConfig, WandbTracker

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
    """Appends to `metrics.csv`: step, epoch, split, metric, value, one metric per line."""

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / METRICS
        self._file: TextIO | None = None

    def start(self, step: int, steps: int) -> None:
        """Drop rows of later steps, which will be made again."""
        known = read_metrics(self._path) if self._path.is_file() else []
        with atomic_path(self._path) as temporary:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                kept = [row for row in known if row.step <= step]
                csv.writer(file, lineterminator="\n").writerows([Row._fields, *kept])
        self._file = open(self._path, "a", encoding="utf-8", newline="")

    def log(self, step: int, epoch: float, split: str, metrics: Mapping[str, float]) -> None:
        """Write one line per metric."""
        assert self._file is not None, "start comes first"
        csv.writer(self._file, lineterminator="\n").writerows(
            Row(step, round(epoch, 6), split, name, value) for name, value in metrics.items()
        )
        self._file.flush()

    def warn(self, message: str) -> None:
        """Warnings are no numbers."""

    def media(self, step: int, name: str, audio: Mapping[str, Tensor], rate: int) -> None:
        """Audio is no number."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


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
            self._losses[split] = f"{metrics['loss']:.4f}"
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
