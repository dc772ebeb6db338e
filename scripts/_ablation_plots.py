"""Pictures of an ablation: what every row scores, and where each chunk lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jukebox_core.files import atomic_path
from scripts._results import NAMES, SYSTEMS

__all__ = ["write_plots"]


def write_plots(folder: Path, lines: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> None:
    """ablation.png, the rows' means with intervals, and sdr_scatter.png, the refined chunks."""
    _save(_bars(lines), folder / "ablation.png")
    if len(sources) == 2:
        _save(_scatter(lines, sources), folder / "sdr_scatter.png")


def _bars(lines: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(7.2, 0.28 * len(lines) + 1.0), layout="constrained")
    axes = figure.subplots()
    for y, line in enumerate(lines):
        found = line["sdr"]["mean"]
        errors = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
        colour = "tab:orange" if "oracle" in line["row"] else "tab:blue"
        axes.errorbar(found["mean"], y, xerr=errors, fmt="o", ms=4, color=colour)
    axes.set_yticks(range(len(lines)), [line["row"] for line in lines], fontsize=7)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.set_xlabel("SDR, mean of the sources, dB (95% interval; orange uses the truth)")
    return figure


def _scatter(lines: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> Figure:
    figure = Figure(figsize=(4.8, 4.5), layout="constrained")
    axes = figure.subplots()
    for method in SYSTEMS:
        for line in lines:
            if line["row"] == f"{method}, default: refined":
                x, y = (line["chunks"][source] for source in sources)
                axes.scatter(x, y, s=12, alpha=0.7, label=NAMES[method])
    axes.axline((0, 0), slope=1, color="grey", lw=0.5)
    axes.set(xlabel=f"SDR {sources[0]}, dB", ylabel=f"SDR {sources[1]}, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:])
