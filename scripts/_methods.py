"""The methods by name: the only table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import hybrid
import lass
import lqvae
from jukebox_core.checkpoints import WEIGHTS
from jukebox_core.checks import one_line
from jukebox_core.separation.method import Method
from jukebox_core.separation.settings import Settings

PublishedName = Literal["lqvae", "lass", "hybrid"]
MethodName = Literal[
    "lqvae", "lass", "hybrid", "lqvae-neural", "lass-neural", "hybrid-neural", "neural"
]
METHODS: Mapping[MethodName, Method] = {
    "lqvae": lqvae.METHOD,
    "lass": lass.METHOD,
    "hybrid": hybrid.METHOD,
    "lqvae-neural": lqvae.NEURAL,
    "lass-neural": lass.NEURAL,
    "hybrid-neural": hybrid.NEURAL,
    "neural": hybrid.NEURAL_ONLY,
}
PUBLISHED_METHODS: tuple[PublishedName, ...] = get_args(PublishedName)
"""The systems that this project compares, without the neural likelihood."""
RECOMMENDED: MethodName = "hybrid-neural"
"""The project's own system."""


def available(name: MethodName, models: Path) -> bool:
    """Whether the models have the method's family, and its neural likelihood if it needs one."""
    family = Path(models) / METHODS[name].family
    return family.is_dir() and all(
        (family / run / WEIGHTS).is_file() for run in METHODS[name].runs()
    )


MethodFlag: TypeAlias = MethodName | Literal["auto"]


def method_of(flag: MethodFlag, models: Path) -> MethodName:
    """The method of that name; auto: the best one for the models.

    With a neural likelihood it is the recommended method, or `neural` if there are neither tables
    of pairs nor priors; without one it is the hybrid.
    """
    if flag != "auto":
        return flag
    if not available(RECOMMENDED, models):
        return "hybrid"
    return RECOMMENDED if hybrid.neural_method(Path(models)) is hybrid.NEURAL else "neural"


def shipped_models(
    flag: MethodFlag, sources: Sequence[str] | None = None, settings: Settings | None = None
) -> Path:
    """The models that ship for these sources; None: the first that have all parts of the method.

    Raises:
        FileNotFoundError: no models that ship have all parts of the method with these settings.
        ValueError: no models ship for these sources.
    """
    if flag == "auto" or sources is not None:
        return hybrid.models_of(sources)
    for models in hybrid.SHIPPED.values():
        try:
            METHODS[flag].check(models, settings)
        except FileNotFoundError as error:
            missing = error
        else:
            return models
    raise missing


def complete_methods(
    models: Path, settings: Settings | None = None
) -> tuple[dict[MethodName, tuple[str, ...]], dict[MethodName, str]]:
    """{complete method: sources}, and {other: what it lacks}, by the order of the table.

    The neural likelihood is an addition: a method that lacks it is in neither.

    Raises:
        FileNotFoundError: the folder has no complete method.
    """
    complete: dict[MethodName, tuple[str, ...]] = {}
    lacking: dict[MethodName, str] = {}
    for name, method in METHODS.items():
        try:
            complete[name] = method.check(models, settings)
        except (ValueError, OSError) as error:
            if name in PUBLISHED_METHODS or available(name, models):
                lacking[name] = one_line(error)
    if not complete:
        raise FileNotFoundError(
            f"models is {models}, which has the parts of no method: {next(iter(lacking.values()))}"
        )
    return complete, lacking


def default_methods(models: Path) -> tuple[MethodName, ...]:
    """The published systems and the recommended one, as far as the models have their families.

    If there is no family, all published systems: to load them tells what is missing. `neural`
    replaces all methods of its family if it is the best one.
    """
    if (best := method_of("auto", models)) == "neural":
        family = METHODS[best].family
        others = (name for name in PUBLISHED_METHODS if METHODS[name].family != family)
        return (*(name for name in others if available(name, models)), best)
    names = (name for name in (*PUBLISHED_METHODS, RECOMMENDED) if available(name, models))
    return tuple(names) or PUBLISHED_METHODS
