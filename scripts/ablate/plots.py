"""Plots of an ablation: scores of the rows, and of the chunks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jukebox_core.evaluation.figures import save_figure
from scripts._results import NAMES, SYSTEMS, row_name

_BARS, _SCATTER = "ablation.png", "sdr_scatter.png"


def plot_names(sources: Sequence[str]) -> tuple[str, ...]:
    """Names of the files that `write_plots` writes."""
    return (_BARS, _SCATTER) if len(sources) == 2 else (_BARS,)


def write_plots(folder: Path, lines: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> None:
    """ablation.png, the rows' means with intervals, and sdr_scatter.png, the refined chunks."""
    figures = {_BARS: lambda: _bars(lines), _SCATTER: lambda: _scatter(lines, sources)}
    for name in plot_names(sources):
        save_figure(figures[name](), folder / name, "ablate")


USE_THE_TRUTH = ("oracle", "codec", "ideal")


def _bars(lines: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(7.2, 0.19 * len(lines) + 0.7), layout="constrained")
    axes = figure.subplots()
    group = None
    for y, line in enumerate(lines):
        mean = line["sdr"]["mean"]
        errors = [[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]]
        uses_truth = any(word in line["row"] for word in USE_THE_TRUTH)
        colour = "tab:orange" if uses_truth else "tab:blue"
        axes.errorbar(mean["mean"], y, xerr=errors, fmt="o", ms=4, color=colour)
        before, group = group, re.split("[,:]", line["row"])[0]
        if before not in (None, group):
            axes.axhline(y - 0.5, color="grey", lw=0.5)
    axes.set_yticks(range(len(lines)), [row_name(line["row"]) for line in lines], fontsize=7)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.grid(alpha=0.3, axis="x")
    axes.tick_params(labelsize=7)
    axes.set_xlabel(
        "SDR, mean of the sources, dB (95% interval; orange uses the truth)", fontsize=8
    )
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
