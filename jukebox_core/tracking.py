"""Where a run's numbers go: a CSV file always, the terminal, Weights & Biases if wanted."""

from __future__ import annotations

import csv
import json
import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TextIO
from urllib.parse import urlparse

from tqdm import tqdm

from jukebox_core.files import atomic_path, write_json

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
WANDB_RUN = "wandb.json"


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

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: WANDB_MODE if set, else online where there is a key or a log-in, else offline."""
    project: str = "latent-separation"
    entity: str | None = None
    """User or team; default: that of the log-in."""
    name: str | None = None
    """Name of the run; default: its folder's."""
    tags: tuple[str, ...] = ()

    def resolved(self) -> str:
        """The mode, `auto` decided."""
        if self.mode != "auto":
            return self.mode
        chosen = os.environ.get("WANDB_MODE", "")
        if chosen in ("online", "offline", "disabled"):
            return chosen
        return "online" if os.environ.get("WANDB_API_KEY") or _logged_in() else "offline"


class WandbTracker:
    """Logs to Weights & Biases. It may fail at any time: training goes on without it."""

    def __init__(self, folder: str | Path, config: WandbConfig, meta: Mapping[str, Any]):
        """Start or continue the run whose id the run folder holds."""
        self._mode = config.resolved()
        self._folder = Path(folder)
        self._run: Any = None
        if self._mode == "disabled":
            return
        try:
            self._run = self._start(config, dict(meta))
        except Exception as error:  # noqa: BLE001 - whatever it is, training matters more
            self._give_up(error)

    def start(self, step: int, steps: int) -> None:
        """Nothing to prepare."""

    def log(self, step: int, epoch: float, split: str, metrics: Mapping[str, float]) -> None:
        """Log under `split/metric`."""
        if self._run is None:
            return
        try:
            values = {f"{split}/{name}": value for name, value in metrics.items()}
            self._run.log(values | {"epoch": epoch, "step": step})
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def warn(self, message: str) -> None:
        """Raise an alert, where there is somebody to read it."""
        if self._run is None or self._mode != "online":
            return
        try:
            self._run.alert(title="training", text=message)
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def close(self) -> None:
        """Finish; say how to upload an offline run."""
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            run.finish()
        except Exception as error:  # noqa: BLE001
            self._give_up(error)
            return
        if self._mode == "offline":
            print(f"W&B is offline; upload with: wandb sync {Path(run.dir).parent}", flush=True)

    def _start(self, config: WandbConfig, meta: dict[str, Any]) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        path = self._folder / WANDB_RUN
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or self._folder.name,
            tags=config.tags or None,
            id=known.get("id"),
            resume="allow" if known and self._mode == "online" else None,
            mode="online" if self._mode == "online" else "offline",
            dir=self._folder,
            config=meta,
            settings=wandb.Settings(silent=True, console="off", init_timeout=60),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        write_json(path, {"id": run.id})
        return run

    def _give_up(self, error: Exception) -> None:
        self._run = None
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: W&B failed, going on without it ({reason})", file=sys.stderr, flush=True)


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

    def close(self) -> None:
        """Close all."""
        for part in self._parts:
            part.close()


def _logged_in() -> bool:
    """Whether `wandb login` has left a key for the server in use."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
