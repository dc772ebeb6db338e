"""How a method is run: the built-in settings, those tuned for some models, those given as flags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from jukebox_core.separation.choices import AverageName, PickName
from jukebox_core.separation.strategies import Strategy
from lass.likelihood import BACKOFF

__all__ = ["AFTERWARDS", "BackoffName", "Settings", "load_tuned", "resolve", "tuned_path"]

BackoffName = Literal["marginals", "overall", "kernel"]


@dataclass(frozen=True)
class Settings:
    """Flags of a separation that may be tuned; None: what was tuned for the models, or built in."""

    sampler: Strategy | None = None
    """How candidates are found: weighted particles (default), independent (ancestral) draws, beam
    or greedy search."""
    temperature: float | None = None
    """Of the priors; default 1."""
    top_k: int | None = None
    """Ancestral: draw among the k most probable pairs of codes at every step; 0, default: all."""
    top_p: float | None = None
    """Ancestral: draw among the most probable pairs of codes that have this mass; default 1."""
    sigma: float | None = None
    """Of the LQ-VAE's Gaussian likelihood and of the hybrid's kernel; default 0.4."""
    weight: float | None = None
    """Lambda of the counted likelihood; default 3, beside the hybrid's kernel 1."""
    backoff: float | None = None
    """Observations of a pair that the back-off is worth, default 3; 0: none, as LASS published."""
    back_off_to: BackoffName | None = None
    """What seldom counted pairs fall back on: the mean of what each code says alone (marginals,
    default), the overall frequency of codes, or, hybrid alone, the LQ-VAE's Gaussian kernel."""
    symmetric: bool | None = None
    """Count every triple for both orders of the sources; default: without a back-off, as LASS does,
    and not with one."""
    kernel: bool | None = None
    """Multiply the hybrid's counts by the LQ-VAE's Gaussian kernel; default yes."""
    shifts: int | None = None
    """Positions within a code that a window is encoded at, the candidates shared out among them;
    default 4 or what divides the candidates, with a context 1."""
    pick: PickName | None = None
    """Which candidates the raw decode takes; default spectral-fit."""
    average: AverageName | None = None
    """How candidates are weighted for the mask; default posterior-mean."""
    mask_power: float | None = None
    """Power of the ratio mask; default 2.5."""
    mask_n_fft: int | None = None
    """STFT size of the ratio mask, its hop a quarter of it; default 4096."""
    compression: float | None = None
    """Exponent that candidates' powers are averaged under; default 1: the mean power."""
    calibration: bool | None = None
    """Correct candidates' spectra for what the codec does to them; default: where scripts.calibrate
    has measured it."""


BUILT_IN: Mapping[str, Any] = {
    "sampler": "particle",
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "sigma": None,  # the likelihoods know theirs
    "weight": None,
    "backoff": BACKOFF,
    "back_off_to": "marginals",
    "symmetric": None,  # the likelihoods know
    "kernel": True,
    "shifts": None,  # see `build_separator`
    "pick": "spectral-fit",
    "average": "posterior-mean",
    "mask_power": 2.5,
    "mask_n_fft": 4096,
    "compression": 1.0,
    "calibration": None,  # where it was measured
}


AFTERWARDS = ("pick", "average", "mask_power", "mask_n_fft", "compression", "calibration")
"""The settings that say what is made of the candidates; these depend on all others."""


def tuned_path(models: Path, method: str) -> Path:
    """Where scripts.tune writes what it chose."""
    return Path(models) / "tuned" / f"{method}.json"


def load_tuned(models: Path, method: str) -> dict[str, Any]:
    """{setting: value} that was tuned for these models; empty where nothing was.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    path = tuned_path(models, method)
    if not path.is_file():
        return {}
    known = {field.name for field in fields(Settings)}
    try:
        options = json.loads(path.read_text(encoding="utf-8"))["options"]
        unknown = sorted(set(options) - known)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: delete it, or tune again") from error
    if unknown:
        raise ValueError(f"{path} holds unknown settings {', '.join(unknown)}: tune again")
    return options


def resolve(settings: Settings, models: Path, method: str, *, tuned: bool = True) -> dict[str, Any]:
    """Every setting's value: the given one, else the tuned (`tuned` False: never), else built in.

    Raises:
        ValueError: the tuned file is damaged.
    """
    given = {name: value for name, value in vars(settings).items() if value is not None}
    return {**BUILT_IN, **(load_tuned(models, method) if tuned else {}), **given}
