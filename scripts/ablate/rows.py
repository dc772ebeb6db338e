"""The rows of an ablation: draws of candidates, and estimators that turn them into stems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hybrid.separator import POOLED_EXPONENT
from jukebox_core.evaluation.estimates import (
    Estimator,
    First,
    Masked,
    Oracle,
    RoundTrip,
    Selected,
)
from jukebox_core.neural.method import NeuralMethod, has_mask_network
from jukebox_core.separation.loading import calibration_of
from jukebox_core.separation.mask import WIENER
from jukebox_core.separation.rejection import RejectionMarginals, RejectionPair, RejectionWeights
from jukebox_core.separation.selection import LogPosterior, MinimumBayesRisk, SpectralFit
from jukebox_core.separation.settings import AFTER_SAMPLING, Settings
from lass.likelihood import EXPONENT, SMOOTHING
from lqvae.likelihood import SIGMA
from scripts._methods import METHODS, PUBLISHED_METHODS, MethodName, available
from scripts._sweep import Draw

PUBLISHED = Settings(
    sampler="ancestral",
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    sigma=0.4,
    exponent=3.0,
    smoothing=0.0,
    gaussian=False,
    symmetric=True,
    shifts=1,
)
"""The sampling of the published systems; each method takes the settings that it uses."""


_DEFAULT = Settings()
_RATIO = Settings(mask_network=False)
_CPU = torch.device("cpu")


class Row(NamedTuple):
    """One line: candidates of a draw, and the name of the estimator that they go through."""

    name: str
    draw: Draw
    estimator: str


def seeded(draw: Draw, seeds: int) -> list[Draw]:
    """The draw with every seed below `seeds`."""
    return [draw._replace(seed=seed) for seed in range(seeds)]


def estimators(models: Path) -> dict[str, Estimator]:
    """{name: estimator}; the names of those that use one method's models end with the method.

    Upstream selects among all pairs, comparing with the codec's round trip of the mixture.
    """
    own: dict[str, Estimator] = {}
    for name in _available(models):
        method = METHODS[name]
        family = method.folder(models)
        full = method.resolve(_RATIO if isinstance(method, NeuralMethod) else _DEFAULT, models)
        own[f"mask, tuned ({name})"] = Masked(full.make_mask())
        calibrated = full.make_mask(calibration_of(family, full.calibration))
        own[f"mask, tuned and calibrated ({name})"] = Masked(calibrated)
        if isinstance(method, NeuralMethod):
            if has_mask_network(models, name):
                network = method.mask(models, Settings(), _CPU)
                own[f"mask network ({name})"] = Masked(network)
        else:
            published = RejectionPair(RoundTrip(family / "vqvae"))
            own[f"rejection, published ({name})"] = Selected(published)
    return {
        "oracle": Oracle(),
        "single": First(),
        "rejection, best pair": Selected(RejectionPair()),
        "rejection, best of each source": Selected(RejectionMarginals()),
        "rejection, joint pairs": Selected.by(RejectionWeights()),
        "spectral fit": Selected.by(SpectralFit()),
        "log-posterior": Selected.by(LogPosterior()),
        "minimum Bayes risk": Selected.by(MinimumBayesRisk()),
        "mask of one": Masked(WIENER, SpectralFit()),
        "mask": Masked(WIENER),
        **own,
    }


def rows(
    models: Path,
    candidates: int,
    parts: bool,
    methods: Sequence[MethodName] | None = None,
    sources: int = 2,
) -> Iterator[Row]:
    """The rows, in the order of the tables.

    The published systems, the rows between them and the default, and the beam are for two sources.

    Args:
        models: folder of trained models.
        candidates: per chunk.
        parts: also the rows between the published and the default hybrid, and the estimators.
        methods: only their rows; None: every method's.
        sources: number of sources of the models.
    """
    for row in _all_rows(models, candidates, parts, sources):
        if methods is None or row.draw.method in methods:
            yield row


def _all_rows(models: Path, candidates: int, parts: bool, sources: int) -> Iterator[Row]:
    def draw(method: MethodName, settings: Settings = _DEFAULT) -> Draw:
        return Draw(method, settings, candidates)

    for method in (name for name in PUBLISHED_METHODS if available(name, models)):
        published, default = draw(method, PUBLISHED), draw(method)
        if sources == 2:
            yield Row(f"{method}, published: oracle, raw", published, "oracle")
            rejection = f"rejection, published ({method})"
            yield Row(f"{method}, published: rejection, raw", published, rejection)
            yield Row(f"{method}, published: refined", published, "mask")
        yield Row(f"{method}, default: oracle, raw", default, "oracle")
        yield Row(f"{method}, default: selected, raw", default, "spectral fit")
        refined = f"mask, tuned and calibrated ({method})"
        yield Row(f"{method}, default: refined", default, refined)
    yield from _neural_rows(models, candidates, sources)
    if not parts or sources != 2:
        return
    full = METHODS["hybrid"].resolve(Settings(), models)
    sampling = ("sampler", "temperature", "top_k", "top_p")
    likelihood = full.without(*sampling, "shifts", *AFTER_SAMPLING).explicit()
    settings = PUBLISHED
    yield Row("parts: as published", draw("hybrid", settings), "mask")
    changes: tuple[tuple[str, dict[str, Any]], ...] = (
        ("counts class-ordered", {"symmetric": False}),
        ("counts smoothed", {"exponent": EXPONENT, "smoothing": SMOOTHING}),
        ("times the Gaussian", {"gaussian": True, "exponent": POOLED_EXPONENT, "sigma": SIGMA}),
        ("likelihood tuned", likelihood),
        ("particles for independent draws", {name: getattr(full, name) for name in sampling}),
    )
    for name, change in changes:
        settings = replace(settings, **change)
        yield Row(f"parts: {name}", draw("hybrid", settings), "mask")
    yield Row("parts: shifted encodings", draw("hybrid"), "mask")
    yield Row("parts: the mask tuned", draw("hybrid"), "mask, tuned (hybrid)")
    yield Row("parts: spectra calibrated", draw("hybrid"), "mask, tuned and calibrated (hybrid)")
    for name in estimators(models):
        if not name.endswith(tuple(f"({method})" for method in METHODS if method != "hybrid")):
            yield Row(f"estimator: {name}", draw("hybrid"), name)


def _neural_rows(models: Path, candidates: int, sources: int) -> Iterator[Row]:
    """The rows of the methods with the neural likelihood, for models that have it."""
    for name in _available(models):
        if name in PUBLISHED_METHODS:
            continue
        draw = Draw(name, Settings(), candidates)
        yield Row(f"{name}, default: oracle, raw", draw, "oracle")
        yield Row(f"{name}, default: selected, raw", draw, "spectral fit")
        refined = f"mask, tuned and calibrated ({name})"
        yield Row(f"{name}, default: refined", draw, refined)
        if has_mask_network(models, name):
            yield Row(f"{name}, default: mask network", draw, f"mask network ({name})")
        if name == "neural":
            alone = Settings(
                prior="unigram", neural_exponent=1.0, temperature=1.0, sampler="ancestral"
            )
            drawn = Draw(name, alone, candidates)
            yield Row("neural, no priors: oracle, raw", drawn, "oracle")
            yield Row("neural, no priors: refined", drawn, refined)
            if has_mask_network(models, name):
                yield Row("neural, no priors: mask network", drawn, f"mask network ({name})")
            if sources != 2:
                continue
            best = Draw(name, replace(alone, sampler="beam", shifts=1), 1)
            yield Row("neural, no priors, most probable codes: raw", best, "oracle")
            yield Row("neural, no priors, most probable codes: refined", best, refined)


def _available(models: Path) -> list[MethodName]:
    return [name for name in METHODS if available(name, models)]
