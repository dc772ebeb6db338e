"""The interfaces of the likelihoods.

A pair likelihood scores pairs of source codes given one code of the mixture; a source likelihood
reads the mixture's waveform and scores every source's codes by themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from jukebox_core.checks import require

_SMALLEST, _LARGEST = 1e-15, 1e15  # so that squares, and products with counts, fit in float32


class PairScores(NamedTuple):
    """log p(mixture code | z1, z2), up to a constant, for one mixture code.

    One of three forms:
    - all pairs: values [K * K] in row-major order, z1 the row;
    - stored pairs alone: values [P] and pairs [2, P], the codes (z1, z2) of every value;
    - all pairs, few values: values [U] and lookup [K * K]; pair p has the score values[lookup[p]].
    """

    values: Tensor
    pairs: Tensor | None = None
    lookup: Tensor | None = None

    def explicit(self) -> PairScores:
        """The same scores with one value per pair."""
        return self if self.lookup is None else PairScores(self.values[self.lookup])


@runtime_checkable
class Likelihood(Protocol):
    """Scores pairs of source codes against a mixture code."""

    n_codes: int

    def scores(self, mixture_code: int) -> PairScores:
        """Log-likelihoods of the pairs of codes that may have given `mixture_code`."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """The values that it was made with, ready for JSON."""
        ...


class SourceLikelihood(Protocol):
    """Scores every source's codes against the mixture's waveform."""

    n_codes: int
    alpha: dict[str, float]
    """{source: gain in the mixtures that it is for}."""

    def log_factors(self, mixtures: Tensor) -> dict[str, Tensor]:
        """Log-factors {source: [B, T, K]} of the codes at every step of mixtures [B, T * hop].

        A posterior is proportional to the priors, the pair likelihood and exp(log-factors).
        """
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """The values that it was made with, ready for JSON."""
        ...


def check_sigma(name: str, value: object) -> None:
    """Raise ValueError unless it is a valid standard deviation; the message calls it `name`."""
    require(name, value, at_least=_SMALLEST, at_most=_LARGEST)


def check_exponent(name: str, value: object) -> None:
    """Raise ValueError unless it is a valid exponent; the message calls it `name`."""
    require(name, value, at_least=_SMALLEST, at_most=_LARGEST)


def check_smoothing(name: str, value: object, *, or_none: bool = True) -> None:
    """Raise ValueError unless it is a number of pseudo-observations, or 0 for no smoothing."""
    if not or_none or value != 0 or isinstance(value, bool):
        hint = "or 0 for no smoothing" if or_none else ""
        require(name, value, at_least=_SMALLEST, at_most=_LARGEST, hint=hint)
