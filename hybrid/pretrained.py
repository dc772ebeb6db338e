"""The models that ship with the package: models folders (`jukebox_core.separation.loading`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

PRETRAINED = Path(__file__).parent / "weights"
"""Of bass and drums alone, for hybrid-neural; `python -m scripts.pretrain` makes them."""
SONG = Path(__file__).parent / "song_weights"
"""Of a whole song's bass, drums and other, for neural; docs/training.md has the command."""
SHIPPED: Mapping[tuple[str, ...], Path] = {
    ("bass", "drums", "other"): SONG,
    ("bass", "drums"): PRETRAINED,
}
"""All of them by their sources, those of a whole song first."""


def models_of(sources: Sequence[str] | None = None) -> Path:
    """The folder of the models that ship for these sources, in any order; None: a whole song.

    Raises:
        ValueError: none ship for them.
    """
    names = next(iter(SHIPPED)) if sources is None else tuple(sorted(sources))
    if names not in SHIPPED:
        raise ValueError(
            f"sources are {' '.join(names) or 'empty'}: models that ship with the package separate "
            + " or ".join(map(" ".join, SHIPPED))
        )
    return SHIPPED[names]
