"""The choices among candidates by name, as configurations and command lines ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from jukebox_core.separation.rejection import (
    RejectionMarginals,
    RejectionPair,
    RejectionSelection,
)
from jukebox_core.separation.selection import (
    Jointly,
    LogPosterior,
    MinimumBayesRisk,
    Pick,
    PosteriorMean,
    Selection,
    SpectralFit,
)

__all__ = ["AVERAGES", "PICKS", "AverageName", "PickName", "make_average", "make_pick"]

PickName = Literal[
    "spectral-fit",
    "log-posterior",
    "bayes-risk",
    "rejection",
    "rejection-pair",
    "rejection-marginals",
]
AverageName = Literal["posterior-mean", "spectral-fit", "log-posterior", "bayes-risk", "rejection"]

AVERAGES: Mapping[AverageName, Selection] = {
    "posterior-mean": PosteriorMean(),
    "spectral-fit": SpectralFit(),
    "log-posterior": LogPosterior(),
    "bayes-risk": MinimumBayesRisk(),
    "rejection": RejectionSelection(),
}
"""Weights of the candidates for the refinement; all but the first take one alone."""
PICKS: Mapping[PickName, Pick] = {
    "spectral-fit": Jointly(SpectralFit()),
    "log-posterior": Jointly(LogPosterior()),
    "bayes-risk": Jointly(MinimumBayesRisk()),
    "rejection": Jointly(RejectionSelection()),
    "rejection-pair": RejectionPair(),
    "rejection-marginals": RejectionMarginals(),
}
"""Choices of the raw decode; the last two take a candidate per source, the others one for both."""


def make_average(name: AverageName) -> Selection:
    """The selection of that name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in AVERAGES:
        raise ValueError(f"average {name!r} is unknown; there are {', '.join(AVERAGES)}")
    return AVERAGES[name]


def make_pick(name: PickName) -> Pick:
    """The pick of that name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in PICKS:
        raise ValueError(f"pick {name!r} is unknown; there are {', '.join(PICKS)}")
    return PICKS[name]
