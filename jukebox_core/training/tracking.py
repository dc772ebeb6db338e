"""Logging of a run: the interface, the CSV file and the terminal.

`audio_logging` and `wandb` have further trackers.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from jukebox_core.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor


METRICS = "metrics.csv"


class Tracker:
    """Receives the log of a run; this one passes it on to its parts, if any."""

    parts: Sequence[Tracker] = ()

    def __init__(self, parts: Sequence[Tracker] = ()):
        self.parts = parts

    def start(self, step: int, steps: int) -> None:
        """Training starts, or continues after `step` of `steps`."""
        for part in self.parts:
            part.start(step, steps)

    def log(self, step: int, epoch: float, split: str, metrics: Mapping[str, float]) -> None:
        """Log metrics of a split (`train` or `validation`) after `step` steps."""
        for part in self.parts:
            part.log(step, epoch, split, metrics)

    def warn(self, message: str) -> None:
        """Report something that a person should look at."""
        for part in self.parts:
            part.warn(message)

    def log_audio(self, step: int, name: str, audio: Mapping[str, Tensor], rate: int) -> None:
        """Log waveforms {label: [T]} to compare, such as an input and its reconstruction."""
        for part in self.parts:
            part.log_audio(step, name, audio, rate)

    def close(self) -> None:
        """The run ends or pauses."""
        for part in self.parts:
            part.close()


class Row(NamedTuple):
    """One line of metrics.csv."""

    step: int
    epoch: float
    split: str
    metric: str
    value: float


def read_metrics(path: str | Path) -> list[Row]:
    """Read a metrics.csv without a last line that a crash cut short.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is not a metrics file, or damaged.
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


class CsvTracker(Tracker):
    """Appends to `metrics.csv`: step, epoch, split, metric, value, one metric per line.

    If the disk is full, lines wait in memory for the next attempt.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / METRICS
        self._size: int | None = None  # bytes written; None before the start
        self._pending = ""

    def start(self, step: int, steps: int) -> None:
        """Drop rows of later steps, which training will write again."""
        rows = read_metrics(self._path) if self._path.is_file() else []
        kept = [row for row in rows if row.step <= step]
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
                file.seek(self._size)  # overwrite a failed attempt
                file.write(data)
        except OSError:
            return
        self._size += len(data)
        self._pending = ""

    def close(self) -> None:
        """Check that everything is written.

        Raises:
            OSError: the last lines could not be written.
        """
        if self._pending:
            raise OSError(f"{self._path} could not be written to the end: is the disk full?")


def _lines(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class ConsoleTracker(Tracker):
    """A progress bar on a terminal; elsewhere only warnings, on stderr."""

    def __init__(self, name: str):
        self._name = name
        self._losses: dict[str, str] = {}
        self._bar: tqdm[Any] | None = None

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
        """Print one line on stderr, beside the bar."""
        tqdm.write(f"warning: {message}", file=sys.stderr)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
