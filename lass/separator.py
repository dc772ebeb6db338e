"""LASS as a separation method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from jukebox_core.neural.method import NeuralMethod
from jukebox_core.separation.chain import Chain
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.method import Method, Parts
from jukebox_core.separation.partial_sums import steps_of, table_of_step, tables_of
from jukebox_core.separation.settings import Settings
from lass.counts import Counts, CountsFile, load_counts
from lass.likelihood import EXPONENT, SMOOTHING, counted_likelihood
from lass.link import CountLink
from lass.smoothing import BASES, MakeBase

COUNTS = "counts.safetensors"


class LASS(Method):
    """The codec and priors of the reconstruction family, a likelihood counted over their codes."""

    name = "lass"
    family = "reconstruction"
    settings = ("exponent", "smoothing", "smoothing_base", "symmetric")

    def defaults(self, settings: Settings) -> Settings:
        """Smoothed counts; without smoothing symmetric ones, as published."""
        smoothing = SMOOTHING if settings.smoothing is None else settings.smoothing
        return Settings(
            exponent=EXPONENT,
            smoothing=smoothing,
            smoothing_base="marginals",
            symmetric=not smoothing,
        )

    def unused(self, settings: Settings) -> dict[str, str]:
        """The base distribution without smoothing.

        Raises:
            ValueError: the base distribution is the hybrid's.
        """
        if not settings.smoothing:
            return {"smoothing_base": f"smoothing is {settings.smoothing:g}"}
        if settings.smoothing_base not in BASES:
            raise ValueError(
                f"smoothing_base is {settings.smoothing_base}, expected {' or '.join(BASES)} for "
                f"{self.name}, which has no Gaussian"
            )
        return {}

    def tables(self, settings: Settings, sources: int = 2) -> tuple[str, ...]:
        """The counts."""
        return tables_of(COUNTS, sources)

    def check_tables(self, family: Path, settings: Settings) -> None:
        """Open the counts."""
        for table in self.tables(settings, len(self.priors(family, settings))):
            CountsFile(family / table)

    def likelihood(self, parts: Parts, settings: Settings) -> Likelihood:
        """The counted likelihood of the family's codec."""
        device = parts.codec.codebook.device
        base = BASES[settings.smoothing_base or "marginals"]
        *partial, last = counts_of(parts)
        counted = counted_likelihood(last, settings, base, device)
        return chain_of_counts(partial, [base] * len(partial), counted, settings, device)


def counts_of(parts: Parts) -> list[Counts]:
    """The counts of every step to the mixture.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a table is damaged, or belongs to another codec or other sources.
    """
    equal = dict.fromkeys(parts.sources, 1.0)  # only the names are used
    return [
        load_counts(
            parts.family / table_of_step(COUNTS, step.size, step.of),
            parts.codec_fingerprint,
            step.names,
        )[0]
        for step in steps_of(equal)
    ]


def chain_of_counts(
    partial: Sequence[Counts],
    bases: Sequence[MakeBase],
    last: Likelihood,
    settings: Settings,
    device: torch.device,
) -> Likelihood:
    """The mixture's likelihood, after the counted sums of all but the last source, if any.

    Args:
        partial: counts of the sums of the first 2 .. S - 1 sources.
        bases: make the base distribution of each.
        last: the mixture's likelihood.
        settings: `smoothing` is used.
        device: of the scores.

    Raises:
        ValueError: there are such sums, but no smoothing: pairs that were never counted have none.
    """
    if not partial:
        return last
    if not settings.smoothing:
        raise ValueError(
            f"smoothing is {settings.smoothing}, expected above 0 for more than two sources: the "
            "sum of a pair that was never counted would have no code"
        )
    links = [
        CountLink(counts, base(counts, device), settings.smoothing, device)
        for counts, base in zip(partial, bases, strict=True)
    ]
    return Chain(links, last)


METHOD = LASS()
load_separator = METHOD.load_separator

NEURAL = NeuralMethod(METHOD)
load_neural_separator = NEURAL.load_separator
