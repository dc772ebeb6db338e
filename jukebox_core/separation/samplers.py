"""The samplers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from jukebox_core.checks import require_choice
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.beam import BeamSampler
from jukebox_core.separation.particles import ParticleSampler
from jukebox_core.separation.samples import Sampler

SamplerName = Literal["particle", "ancestral", "beam"]
"""particle: weighted draws from the posterior over whole sequences; ancestral: independent draws;
beam: the most probable sequences."""
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)

_CLASSES: Mapping[SamplerName, Callable[..., Sampler]] = {
    "particle": ParticleSampler,
    "ancestral": AncestralSampler,
    "beam": BeamSampler,
}
OPTIONS: Mapping[SamplerName, tuple[str, ...]] = {
    "particle": ("threshold",),
    "ancestral": ("top_k", "top_p"),
    "beam": (),
}
"""Options of each sampler besides the temperature."""


def make_sampler(name: SamplerName, temperature: float = 1.0, **options: Any) -> Sampler:
    """The sampler of that name; temperature and options as in its class.

    Raises:
        ValueError: the name is unknown, an option belongs to another sampler, or a value is out of
            range.
    """
    require_choice("sampler", name, SAMPLERS)
    for option, value in options.items():
        if option not in OPTIONS[name]:
            owner = next((other for other in SAMPLERS if option in OPTIONS[other]), "no sampler")
            raise ValueError(
                f"{option} is {value}, but the sampler is {name}; {option} belongs to {owner}"
            )
    return _CLASSES[name](temperature=temperature, **options)
