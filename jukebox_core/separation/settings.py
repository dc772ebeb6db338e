"""The settings of a separation, their defaults, and the values tuned for a folder of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from jukebox_core.checks import require, require_choice
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.calibration import Calibration
from jukebox_core.separation.likelihood import check_exponent, check_sigma, check_smoothing
from jukebox_core.separation.mask import RatioMask, check_compression, check_n_fft, check_power
from jukebox_core.separation.samplers import OPTIONS, SAMPLERS, SamplerName, make_sampler
from jukebox_core.separation.samples import Sampler
from jukebox_core.separation.sampling_task import check_temperature
from jukebox_core.separation.selection import (
    SELECTIONS,
    WEIGHTS,
    Selection,
    SelectionName,
    Weighting,
    WeightsName,
)
from jukebox_core.separation.truncation import check_top_k, check_top_p

QualityName = Literal["fast", "default", "best"]
SmoothingBase = Literal["marginals", "overall", "gaussian"]
PriorName = Literal["autoregressive", "unigram"]


@dataclass(frozen=True)
class Settings:
    """Settings of a separation. Unset: the value tuned for the models, else the default."""

    sampler: SamplerName | None = None
    """Search for candidates: particle (default): weighted draws from the posterior over whole
    sequences; ancestral: independent draws; beam: beam search."""
    temperature: float | None = None
    """Temperature of the priors, the inverse of their weight (exponent); default 1."""
    top_k: int | None = None
    """Ancestral: draw among the k most probable pairs of codes per step; default 0: all."""
    top_p: float | None = None
    """Ancestral: draw among the fewest pairs of codes with this total probability; default 1."""
    sigma: float | None = None
    """Standard deviation of the LQ-VAE's Gaussian likelihood, also in the hybrid; default 0.4."""
    exponent: float | None = None
    """Exponent (lambda) of the counted likelihood; default 3, or 1 with the hybrid's Gaussian."""
    smoothing: float | None = None
    """Pseudocounts per pair of codes (Dirichlet smoothing); default 3. 0: no smoothing,
    as published for LASS."""
    smoothing_base: SmoothingBase | None = None
    """Base distribution of the smoothing: the mean of p(m | z1) and p(m | z2) (marginals, default),
    p(m) (overall) or, only in the hybrid, the LQ-VAE's Gaussian (gaussian)."""
    symmetric: bool | None = None
    """Count every triple for both orders of the sources; default: True without smoothing (as in
    LASS), else False."""
    gaussian: bool | None = None
    """Multiply the hybrid's counted likelihood by the LQ-VAE's Gaussian; default True."""
    neural_exponent: float | None = None
    """Exponent of the neural likelihood; default 1."""
    prior: PriorName | None = None
    """With the neural likelihood: the autoregressive priors (default), or the frequencies of the
    codes (unigram)."""
    shifts: int | None = None
    """Number of time offsets below one code at which a window is encoded; the candidates are split
    among them. Default: 4, or a smaller number that divides the candidates."""
    selection: SelectionName | None = None
    """Criterion by which the raw decode (--no-refine) takes its candidate; default spectral-fit."""
    weights: WeightsName | None = None
    """Weights of the candidates for the mask; default posterior-mean."""
    mask_power: float | None = None
    """Power of the ratio mask; default 2.5."""
    mask_n_fft: int | None = None
    """STFT size of the ratio mask, in samples; the hop is a quarter of it; default 4096."""
    compression: float | None = None
    """Exponent of the power mean over the candidates' power spectra; default 1: the mean."""
    mask_network: bool | None = None
    """With the neural likelihood: masks of the network trained on its candidates, instead of the
    ratio mask; default: if there is one."""
    calibration: bool | None = None
    """Calibrate candidates' spectra for the codec's errors; default: if there is a calibration."""

    def __post_init__(self) -> None:
        """Refuse values that no method can use, whatever the models."""
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                check(name, value)

    def explicit(self) -> dict[str, Any]:
        """The settings that have a value."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def over(self, other: Settings) -> Settings:
        """These settings; those without a value are taken from `other`."""
        return replace(other, **self.explicit())

    def without(self, *names: str) -> Settings:
        """These settings with some unset."""
        return replace(self, **dict.fromkeys(names))

    def make_sampler(self) -> Sampler:
        """The sampler; here and below, settings without a value are `DEFAULTS`."""
        full: Any = self.over(DEFAULTS)
        options = {name: getattr(full, name, None) for name in OPTIONS[full.sampler]}
        options = {name: value for name, value in options.items() if value is not None}
        return make_sampler(full.sampler, full.temperature, **options)

    def make_selection(self) -> Selection:
        """The selection of the raw decode's candidates."""
        full: Any = self.over(DEFAULTS)
        return SELECTIONS[full.selection]

    def make_weights(self) -> Weighting:
        """The weighting of the candidates for the mask."""
        full: Any = self.over(DEFAULTS)
        return WEIGHTS[full.weights]

    def make_mask(self, calibration: Calibration | None = None) -> RatioMask:
        """The ratio mask."""
        full: Any = self.over(DEFAULTS)
        hop = full.mask_n_fft // 4
        return RatioMask(full.mask_power, full.mask_n_fft, hop, full.compression, calibration)


class Quality(NamedTuple):
    """How much a separation tries.

    candidates: per window; None: the number of the models' preset. shifts: at most so many, see
    `Settings`.
    """

    candidates: int | None = None
    shifts: int = 4


QUALITIES: Mapping[QualityName, Quality] = {
    "fast": Quality(8, 1),
    "default": Quality(),
    "best": Quality(128, 8),
}
"""Times and scores of each: docs/inference.md."""


def _check_mask_n_fft(name: str, value: Any) -> None:
    check_n_fft(name, value)
    if value % 4:
        raise ValueError(f"{name} is {value}, expected a multiple of 4")


def _one_of(*choices: Any) -> Callable[[str, Any], None]:
    return lambda name, value: require_choice(name, value, choices)


_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "sampler": _one_of(*SAMPLERS),
    "temperature": check_temperature,
    "top_k": check_top_k,
    "top_p": check_top_p,
    "sigma": check_sigma,
    "exponent": check_exponent,
    "smoothing": check_smoothing,
    "smoothing_base": _one_of(*get_args(SmoothingBase)),
    "symmetric": _one_of(True, False),
    "gaussian": _one_of(True, False),
    "neural_exponent": check_exponent,
    "prior": _one_of(*get_args(PriorName)),
    "shifts": lambda name, value: require(name, value, whole=True, at_least=1),
    "selection": _one_of(*get_args(SelectionName)),
    "weights": _one_of(*get_args(WeightsName)),
    "mask_power": check_power,
    "mask_n_fft": _check_mask_n_fft,
    "compression": check_compression,
    "mask_network": _one_of(True, False),
    "calibration": _one_of(True, False),
}

DEFAULTS = Settings(
    sampler="particle",
    temperature=AncestralSampler.temperature,
    top_k=AncestralSampler.top_k,
    top_p=AncestralSampler.top_p,
    selection="spectral-fit",
    weights="posterior-mean",
    mask_power=RatioMask.power,
    mask_n_fft=RatioMask.n_fft,
    compression=RatioMask.compression,
)
"""Defaults that all methods share; a method adds the defaults of its likelihood. Without a value:
`shifts`, which depends on the number of candidates, `mask_network` and `calibration`, which depend
on the models.
"""

AFTER_SAMPLING = (
    "selection",
    "weights",
    "mask_power",
    "mask_n_fft",
    "compression",
    "mask_network",
    "calibration",
)
"""Settings that the candidates do not depend on."""

_FORMER_NAMES = {
    "weight": "exponent",
    "backoff": "smoothing",
    "back_off_to": "smoothing_base",
    "kernel": "gaussian",
    "pick": "selection",
    "average": "weights",
}
"""{name in files of version 0.1: name}."""


def tuned_path(models: Path, method: str) -> Path:
    """The file of the settings tuned for a method and its models."""
    return Path(models) / "tuned" / f"{method}.json"


def load_tuned(models: Path, method: str) -> Settings:
    """The settings tuned for a method and its models; without values if there is no such file.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    path = tuned_path(models, method)
    if not path.is_file():
        return Settings()
    try:
        options = json.loads(path.read_text(encoding="utf-8"))["options"]
        options = {_FORMER_NAMES.get(name, name): value for name, value in dict(options).items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: delete it, or tune again") from error
    if options.get("smoothing_base") == "kernel":
        options["smoothing_base"] = "gaussian"
    unknown = sorted(options.keys() - {field.name for field in fields(Settings)})
    if unknown:
        raise ValueError(f"{path} holds unknown settings {', '.join(unknown)}: tune again")
    try:
        return Settings(**options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
