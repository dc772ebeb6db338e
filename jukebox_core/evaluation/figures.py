"""Write Matplotlib figures with a mark by which a later run recognises them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from jukebox_core.files import atomic_path, marked

_PNG = b"\x89PNG\r\n\x1a\n"
_SOFTWARE = b"tEXtSoftware\0"

is_png_of_matplotlib = marked(_PNG, _SOFTWARE + b"Matplotlib")
"""For `files.check_replaceable`: Matplotlib's mark, the only one in old PNG files."""


def save_figure(figure: Figure, path: Path, program: str) -> None:
    """Write a figure as PNG or SVG (by suffix), marked with the name of the program."""
    suffix = path.suffix[1:]
    field = "Creator" if suffix == "svg" else "Software"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=suffix, metadata={field: _name(program)})


def is_figure_of(program: str) -> Callable[[Path], bool]:
    """For `files.check_replaceable`: recognise files that `save_figure` wrote for a program."""
    name = _name(program).encode()
    png, svg = marked(_PNG, _SOFTWARE + name), marked("<?xml", b"<dc:title>" + name)
    return lambda path: png(path) or svg(path)


def _name(program: str) -> str:
    return f"latent-separation {program}"
