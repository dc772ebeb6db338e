"""How a method is run: the built-in settings, those tuned for some models, those given as flags."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from jukebox_core.checks import require, require_choice
from jukebox_core.separation.ancestral import check_temperature
from jukebox_core.separation.choices import AverageName, PickName
from jukebox_core.separation.mask import check_compression, check_n_fft, check_power
from jukebox_core.separation.samplers import OPTIONS, STRATEGIES, Strategy
from jukebox_core.separation.truncation import check_top_k, check_top_p
from lass.likelihood import BACKOFF, check_backoff, check_weight
from lqvae.likelihood import check_sigma

__all__ = [
    "AFTERWARDS",
    "LIKELIHOOD",
    "BackoffName",
    "Settings",
    "load_tuned",
    "resolve",
    "resolve_each",
    "tuned_path",
]

M = TypeVar("M", bound=str)

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

    def __post_init__(self) -> None:
        """Refuse values that no method can use, whatever the models."""
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                check(name, value)

    def given(self) -> dict[str, Any]:
        """The settings that have a value."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _check_mask_n_fft(name: str, value: Any) -> None:
    check_n_fft(name, value)
    if value % 4:
        raise ValueError(f"{name} is {value}, expected a multiple of 4")


def _one_of(*choices: Any) -> Any:
    return lambda name, value: require_choice(name, value, choices)


_CHECKS: Mapping[str, Any] = {
    "sampler": _one_of(*STRATEGIES),
    "temperature": check_temperature,
    "top_k": check_top_k,
    "top_p": check_top_p,
    "sigma": check_sigma,
    "weight": check_weight,
    "backoff": check_backoff,
    "back_off_to": _one_of(*get_args(BackoffName)),
    "symmetric": _one_of(True, False),
    "kernel": _one_of(True, False),
    "shifts": lambda name, value: require(name, value, whole=True, at_least=1),
    "pick": _one_of(*get_args(PickName)),
    "average": _one_of(*get_args(AverageName)),
    "mask_power": check_power,
    "mask_n_fft": _check_mask_n_fft,
    "compression": check_compression,
    "calibration": _one_of(True, False),
}

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

LIKELIHOOD: Mapping[str, tuple[str, ...]] = {
    "lqvae": ("sigma",),
    "lass": ("weight", "backoff", "back_off_to", "symmetric"),
    "hybrid": ("sigma", "weight", "backoff", "back_off_to", "symmetric", "kernel"),
}
"""{method: the settings of its likelihood}; all methods use all other settings."""


def _without_effect(
    chosen: Mapping[str, Any], method: str, refine: bool | None, context: int | str
) -> dict[str, str]:
    """{setting: why it has no effect}, given the other values of `chosen`."""
    why: dict[str, str] = {}
    for name in {name for names in LIKELIHOOD.values() for name in names}:
        if name not in LIKELIHOOD[method]:
            why[name] = f"the method is {method}"
    for name in ("top_k", "top_p"):
        if name not in OPTIONS[chosen["sampler"]]:
            why[name] = f"the sampler is {chosen['sampler']}"
    if chosen["average"] != "posterior-mean":
        why["compression"] = f"average is {chosen['average']}, which takes one candidate"
    if not chosen["backoff"]:
        why.setdefault("back_off_to", f"backoff is {chosen['backoff']:g}")
    backs_off_to_kernel = chosen["backoff"] and chosen["back_off_to"] == "kernel"
    if method == "hybrid" and not chosen["kernel"] and not backs_off_to_kernel:
        why["sigma"] = "kernel is False and nothing backs off to it"
    if refine is False:
        masks = ("average", "mask_power", "mask_n_fft", "compression", "calibration")
        why |= dict.fromkeys(masks, "refine is False")
    if refine is True and context == 0:
        why["pick"] = "refine is True and context is 0"
    return why


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
        options = dict(options)
        unknown = sorted(set(options) - known)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: delete it, or tune again") from error
    if unknown:
        raise ValueError(f"{path} holds unknown settings {', '.join(unknown)}: tune again")
    try:
        return Settings(**options).given()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def resolve(
    settings: Settings,
    models: Path,
    method: str,
    *,
    tuned: bool = True,
    refine: bool | None = None,
    context: int | str = 0,
    strict: bool = True,
) -> dict[str, Any]:
    """Every setting's value: the given one, else the tuned, else the built-in one.

    None means that the part that uses the setting decides, or that the setting has no effect.

    Args:
        settings: the given settings.
        models: the models folder.
        method: a method's name.
        tuned: whether tuned values are used.
        refine: whether masks are made (True), raw decodes (False), or both (None).
        context: codes before a window that the priors see, or `max`.
        strict: refuse a given setting that has no effect; otherwise it is left out.

    Raises:
        ValueError: a given setting has no effect, or the tuned file is damaged.
    """
    chosen, idle = _chosen(settings, models, method, tuned, refine, context)
    for name, value in settings.given().items():
        if strict and name in idle:
            raise ValueError(_no_effect(name, value, [idle[name]]))
    return {name: None if name in idle else value for name, value in chosen.items()}


def resolve_each(
    settings: Settings,
    models: Path,
    methods: Iterable[M],
    *,
    refine: bool | None = None,
) -> dict[M, Settings]:
    """Split settings that are given for several methods: each method gets those that it uses.

    Args:
        settings: the given settings.
        models: the models folder.
        methods: names of methods.
        refine: as in `resolve`.

    Raises:
        ValueError: a given setting has no effect on any of the methods, or a tuned file is damaged.
    """
    idle = {method: _chosen(settings, models, method, refine=refine)[1] for method in methods}
    for name, value in settings.given().items():
        if idle and all(name in why for why in idle.values()):
            raise ValueError(_no_effect(name, value, [why[name] for why in idle.values()]))
    return {
        method: replace(settings, **{name: None for name in why}) for method, why in idle.items()
    }


def _chosen(
    settings: Settings,
    models: Path,
    method: str,
    tuned: bool = True,
    refine: bool | None = None,
    context: int | str = 0,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every setting's value, and {setting: why it has no effect}."""
    known = load_tuned(models, method) if tuned else {}
    chosen = {**BUILT_IN, **known, **settings.given()}
    if method == "lass" and chosen["backoff"] and chosen["back_off_to"] == "kernel":
        raise ValueError(
            "back_off_to is kernel, expected marginals or overall for lass: only the hybrid has a "
            "kernel"
        )
    return chosen, _without_effect(chosen, method, refine, context)


def _no_effect(name: str, value: Any, reasons: Iterable[str]) -> str:
    why = " and ".join(dict.fromkeys(reasons))
    return f"{name} is {value}, but {why}: it would have no effect"
