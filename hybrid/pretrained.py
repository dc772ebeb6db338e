"""The models that ship with the package: models folders (`jukebox_core.separation.loading`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

PRETRAINED = Path(__file__).parent / "weights"
"""Models of bass and drums for `hybrid-neural`, made by `python -m scripts.pretrain`."""
SONG = Path(__file__).parent / "song_weights"
"""Models of bass, drums and other for `neural`; docs/training.md has the command."""
SHIPPED: Mapping[tuple[str, ...], Path] = {
    ("bass", "drums", "other"): SONG,
    ("bass", "drums"): PRETRAINED,
}
"""{sources: models}, the default first."""


def models_of(sources: Sequence[str] | None = None) -> Path:
    """The models that ship for these sources, in any order; None: the default, `SONG`.

    Raises:
        ValueError: no models ship for these sources.
    """
    names = next(iter(SHIPPED)) if sources is None else tuple(sorted(sources))
    if names not in SHIPPED:
        raise ValueError(
            f"sources are {' '.join(names) or 'empty'}: the models that ship separate "
            + " or ".join(map(" ".join, SHIPPED))
        )
    return SHIPPED[names]
