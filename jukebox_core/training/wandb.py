"""Logging to Weights & Biases, optional and never fatal."""

from __future__ import annotations

import json
import netrc
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from jukebox_core.checks import one_line, require_types
from jukebox_core.files import write_json
from jukebox_core.training.tracking import Tracker

if TYPE_CHECKING:
    from torch import Tensor


WANDB_RUN = "wandb.json"
_NOT_IN_PROJECTS = "/\\#?%:"


@dataclass(frozen=True)
class WandbConfig:
    """Settings of Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: WANDB_MODE if set, else online with an API key or a login, else offline."""
    project: str = "latent-separation"
    entity: str | None = None
    """User or team; None: the one logged in."""
    name: str | None = None
    """Name of the run; None: the name of its folder."""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
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
        """The mode, with `auto` resolved."""
        if self.mode != "auto":
            return self.mode
        if (mode := os.environ.get("WANDB_MODE", "")) in ("online", "offline", "disabled"):
            return mode
        return "online" if os.environ.get("WANDB_API_KEY") or _logged_in() else "offline"


class WandbTracker(Tracker):
    """Logs to Weights & Biases. If it fails, training continues without it.

    A continued run keeps its id. Offline, every start writes another folder with that id; one
    `wandb sync` of all folders joins them into one run.
    """

    def __init__(self, folder: str | Path, config: WandbConfig, meta: Mapping[str, Any]):
        """Start or continue the run whose id the run folder holds."""
        self._mode = config.resolved()
        self._folder = Path(folder)
        self._run: Any = None
        if self._mode == "disabled":
            return
        with self._not_fatal():
            self._run = self._start(config, dict(meta))

    def log(self, step: int, epoch: float, split: str, metrics: Mapping[str, float]) -> None:
        """Log under `split/metric`."""
        if self._run is None:
            return
        with self._not_fatal():
            values = {f"{split}/{name}": value for name, value in metrics.items()}
            self._run.log(values | {"epoch": epoch, "step": step})

    def warn(self, message: str) -> None:
        """Raise an alert, if online."""
        if self._run is None or self._mode != "online":
            return
        with self._not_fatal():
            self._run.alert(title="training", text=message)

    def log_audio(self, step: int, name: str, audio: Mapping[str, Tensor], rate: int) -> None:
        """Log every waveform under `name/label`, and all spectrograms as one image."""
        if self._run is None:
            return
        with self._not_fatal():
            import wandb

            from jukebox_core.training.audio_logging import pixels, spectrograms

            values: dict[str, Any] = {
                f"{name}/{label}": wandb.Audio(waveform.detach().float().cpu().numpy(), rate)
                for label, waveform in audio.items()
            }
            values[f"{name}/spectrogram"] = wandb.Image(pixels(spectrograms(audio, rate)))
            self._run.log(values | {"step": step})

    def close(self) -> None:
        """Finish; print how to upload an offline run."""
        if self._run is None:
            return
        run, self._run = self._run, None
        with self._not_fatal():
            run.finish()
            if self._mode == "offline":
                last = Path(run.dir).parent
                all_starts = last.parent.glob(f"offline-run-*-{run.id}*")
                folders = [*sorted(path for path in all_starts if path != last), last]
                print(f"W&B is offline; upload with: wandb sync {shlex.join(map(str, folders))}")

    def _start(self, config: WandbConfig, meta: dict[str, Any]) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        path = self._folder / WANDB_RUN
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or self._folder.name,
            tags=config.tags or None,
            id=stored.get("id"),
            resume="allow" if stored else None,  # offline, `wandb sync` applies it
            mode="online" if self._mode == "online" else "offline",
            dir=self._folder,
            config=meta,
            settings=wandb.Settings(silent=True, console="off", init_timeout=60),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        write_json(path, {"id": run.id})
        return run

    @contextmanager
    def _not_fatal(self) -> Iterator[None]:
        """Turn any error of the block into a warning, and stop logging."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - no error may stop the training
            self._run = None
            print(
                f"warning: W&B failed, training continues without it ({one_line(error)})",
                file=sys.stderr,
                flush=True,
            )


def _logged_in() -> bool:
    """Whether `wandb login` has stored a key for the server in use."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
