"""Weights & Biases: a run's numbers, sound and pictures, where it is wanted and while it works."""

from __future__ import annotations

import json
import netrc
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from jukebox_core.checks import one_line, require_types
from jukebox_core.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WandbConfig", "WandbTracker"]

WANDB_RUN = "wandb.json"
_NOT_IN_PROJECTS = "/\\#?%:"


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

    def __post_init__(self) -> None:
        """Refuse names that Weights & Biases does not accept."""
        require_types(self)
        for name in ("project", "entity", "name"):
            value = getattr(self, name)
            if value is not None and not 1 <= len(value.strip()) <= 128:
                raise ValueError(f"wandb {name} is {value!r}, expected 1 to 128 characters")
        if set(self.project) & set(_NOT_IN_PROJECTS):
            raise ValueError(
                f"wandb project is {self.project!r}, expected none of {_NOT_IN_PROJECTS}"
            )
        for index, tag in enumerate(self.tags):
            if not 1 <= len(tag) <= 64:
                raise ValueError(f"wandb tags[{index}] is {tag!r}, expected 1 to 64 characters")

    def resolved(self) -> str:
        """The mode, `auto` decided."""
        if self.mode != "auto":
            return self.mode
        chosen = os.environ.get("WANDB_MODE", "")
        if chosen in ("online", "offline", "disabled"):
            return chosen
        return "online" if os.environ.get("WANDB_API_KEY") or _logged_in() else "offline"


class WandbTracker:
    """Logs to Weights & Biases. It may fail at any time: training goes on without it.

    A run that goes on keeps its id. Offline every start writes a folder of its own under that id;
    `wandb sync` of them all, in one command, makes one run of them.
    """

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

    def media(self, step: int, name: str, audio: Mapping[str, Tensor], rate: int) -> None:
        """Log every waveform under `name/label`, and the spectrograms of all as one picture."""
        if self._run is None:
            return
        try:
            import wandb

            from jukebox_core.training.audio_logging import pixels, spectrograms

            values: dict[str, Any] = {
                f"{name}/{label}": wandb.Audio(waveform.detach().float().cpu().numpy(), rate)
                for label, waveform in audio.items()
            }
            values[f"{name}/spectrogram"] = wandb.Image(pixels(spectrograms(audio, rate)))
            self._run.log(values | {"step": step})
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
            last = Path(run.dir).parent
            before = {path for path in last.parent.glob(f"offline-run-*-{run.id}*") if path != last}
            folders = shlex.join(str(path) for path in [*sorted(before), last])
            print(f"W&B is offline; upload with: wandb sync {folders}", flush=True)

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
            resume="allow" if known else None,  # offline it is `wandb sync` that heeds it
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
        reason = one_line(error)
        print(f"warning: W&B failed, going on without it ({reason})", file=sys.stderr, flush=True)


def _logged_in() -> bool:
    """Whether `wandb login` has left a key for the server in use."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
