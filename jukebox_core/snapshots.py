"""Weights of earlier steps beside a run's last ones: the best by validation, the last few.

    RUN/best/            weights.safetensors, meta.json of the least validation loss
    RUN/steps/00000500/  the same of every checkpoint, as many as are to be kept

Each is a run folder to load models from; none has a training state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from jukebox_core.checkpoints import META, WEIGHTS, save_model
from jukebox_core.files import atomic_folder, remove_owned

__all__ = ["BEST", "STEPS", "Snapshots"]

BEST, STEPS = "best", "steps"
_OWNED = {WEIGHTS: None, META: None}


class Snapshots:
    """Writes them, and deletes what is older than was asked for."""

    def __init__(self, folder: Path, keep: int = 0, *, best: bool = False):
        """Nothing is written yet.

        Args:
            folder: the run folder.
            keep: how many checkpoints' weights stay.
            best: whether the best by validation stay.

        Raises:
            ValueError: `keep` is negative.
        """
        if keep < 0:
            raise ValueError(f"{keep} checkpoints to keep, expected 0 or more")
        self._folder = Path(folder)
        self._keep = keep
        self._best = best
        self.least = math.inf
        """The least validation loss so far."""

    def improves(self, loss: float) -> bool:
        """Whether the best are to be written anew; remembers the loss."""
        if not self._best or not loss < self.least:
            return False
        self.least = loss
        return True

    def save_best(self, model: nn.Module, meta: Mapping[str, Any]) -> None:
        """Replace the best weights."""
        with atomic_folder(self._folder / BEST, _OWNED) as temporary:
            save_model(temporary, model, meta)

    def save_step(self, step: int, save: Callable[[Path], None]) -> None:
        """Keep a checkpoint's weights, which `save` writes into a folder."""
        if not self._keep:
            return
        steps = self._folder / STEPS
        with atomic_folder(steps / f"{step:08}", _OWNED) as temporary:
            save(temporary)
        kept = sorted(path for path in steps.iterdir() if path.name.isdigit())
        for old in kept[: -self._keep]:
            remove_owned(old, _OWNED)
