"""The samplers by name, as configurations and command lines ask for them."""

from __future__ import annotations

from typing import Literal, get_args

from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.beam import BeamSampler, GreedySampler
from jukebox_core.separation.particles import ParticleSampler
from jukebox_core.separation.protocols import Sampler

__all__ = ["OPTIONS", "STRATEGIES", "Strategy", "make_sampler"]

Strategy = Literal["ancestral", "beam", "particle", "greedy"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

OPTIONS: dict[Strategy, tuple[str, ...]] = {
    "ancestral": ("top_k", "top_p"),
    "beam": (),
    "particle": ("threshold",),
    "greedy": (),
}
"""Options of each sampler besides the temperature."""


def make_sampler(
    name: Strategy,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    threshold: float | None = None,
) -> Sampler:
    """The sampler of that name.

    Args:
        name: `ancestral`, independent draws; `particle`, weighted draws from the posterior over
            whole sequences; `beam`, the most probable sequences; `greedy`, one sequence of the
            most probable pairs.
        temperature: divides the priors' logits.
        top_k: ancestral: pairs that may be drawn at a step; 0: all.
        top_p: ancestral: mass of the pairs that may be drawn at a step; 1: all.
        threshold: particle: the share of N under which the effective sample size leads to
            resampling; default 0.5.

    Raises:
        ValueError: the name is unknown, an option is not one of that sampler, or has no meaning.
    """
    if name not in STRATEGIES:
        raise ValueError(f"sampler {name!r} is unknown; there are {', '.join(STRATEGIES)}")
    given = {
        option: value
        for option, value, off in (
            ("top_k", top_k, 0),
            ("top_p", top_p, 1.0),
            ("threshold", threshold, None),
        )
        if value != off
    }
    for option, value in given.items():
        if option not in OPTIONS[name]:
            owner = next(other for other in STRATEGIES if option in OPTIONS[other])
            raise ValueError(
                f"{option} is {value}, but the sampler is {name}; {option} belongs to {owner}"
            )
    if name == "ancestral":
        return AncestralSampler(temperature, top_k, top_p)
    if name == "particle":
        return ParticleSampler(temperature, 0.5 if threshold is None else threshold)
    return BeamSampler(temperature) if name == "beam" else GreedySampler(temperature)
