"""Plots of the report as SVG for a page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.figure import Figure

from jukebox_core.evaluation.results import series, sources_of
from jukebox_core.training.tracking import Row
from scripts._results import NAMES, SYSTEMS

COLOURS = {
    "lqvae": "#b45309",
    "lass": "#2563eb",
    "hybrid": "#047857",
    "lqvae-neural": "#d97706",
    "lass-neural": "#0891b2",
    "hybrid-neural": "#7c3aed",
    "neural": "#be185d",
    "mixture": "#7b828e",
}
_MARKERS = {
    "lqvae": "^",
    "lass": "s",
    "hybrid": "o",
    "lqvae-neural": "v",
    "lass-neural": "D",
    "hybrid-neural": "*",
    "neural": "P",
    "mixture": "x",
}
_INK = "#010203"  # replaced by the colour of the surrounding text
_THEMED = {colour: f"var(--{method}, {colour})" for method, colour in COLOURS.items()}
_PLAIN: Any = {"text.parse_math": False}  # dollar signs in names
_THEMED |= {COLOURS["mixture"]: f"var(--plain, {COLOURS['mixture']})", _INK: "currentColor"}


@matplotlib.rc_context(_PLAIN)
def scatter(results: Mapping[str, Any], estimate: str, refined: bool, title: str) -> str:
    """Plot the SDR of the second of two sources against the first, a point per chunk."""
    sources = sources_of(results)
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    names: dict[str, str] = {}
    where = {item["chunk"]: item["track"] for item in results["chunks"]}
    lines = [(method, estimate, refined) for method in SYSTEMS] + [("mixture", "selected", False)]
    for line in lines:
        x, y = (series(results, *line, s, "sdr") for s in sources)
        if not x:
            continue
        name, colour, marker = NAMES[line[0]], COLOURS[line[0]], _MARKERS[line[0]]
        for i in x:
            point = f"point-{line[0]}-{i}"
            names[point] = f"{name}, {where[i]}: {sources[0]} {x[i]:.1f}, {sources[1]} {y[i]:.1f}"
            axes.plot(
                x[i], y[i], marker, ms=4.5, alpha=0.6, color=colour, markeredgewidth=1, gid=point
            )
        mean = (float(np.nanmean(list(values.values()))) for values in (x, y))
        axes.plot(
            *mean, marker, ms=11, color=colour, label=name, ls="none", markeredgewidth=2, zorder=4
        )
    axes.set_xlabel(f"{sources[0]} SDR (dB)")
    axes.set_ylabel(f"{sources[1]} SDR (dB)")
    axes.set_title(title)
    _legend(axes)
    return _svg(figure, title, names)


@matplotlib.rc_context(_PLAIN)
def losses(runs: Mapping[str, Sequence[Row]], title: str, metric: str = "loss") -> str:
    """Plot a metric over the steps of each run: thin for training, thick for validation."""
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    colours = [COLOURS["lass"], COLOURS["lqvae"], COLOURS["hybrid"], COLOURS["mixture"]]
    for (name, rows), colour in zip(runs.items(), colours * len(runs), strict=False):
        for split, width in (("train", 0.8), ("validation", 2.0)):
            points = [(r.step, r.value) for r in rows if (r.split, r.metric) == (split, metric)]
            if points:
                steps, values = zip(*points, strict=True)
                dot = "." if len(points) == 1 else None
                label = f"{name} {split}"
                axes.plot(steps, values, color=colour, lw=width, marker=dot, label=label)
    positive = [v for line in axes.lines for v in np.asarray(line.get_ydata(), float)]
    if positive and min(positive) > 0 and max(positive) > 20 * min(positive):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    axes.set_title(title)
    _legend(axes)
    return _svg(figure, title)


def _legend(axes: Any) -> None:
    for spine in axes.spines.values():
        spine.set_color(_INK)
    axes.tick_params(colors=_INK)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(_INK)
    axes.grid(alpha=0.25)
    axes.set_facecolor("none")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK, markerscale=0.7)


def _svg(figure: Figure, salt: str, names: Mapping[str, str] | None = None) -> str:
    """Return the figure as an <svg> element in the page's font and colours.

    Args:
        figure: is drawn.
        salt: makes the ids of this figure unique in the page.
        names: {gid of an artist: its tooltip}.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for gid, name in (names or {}).items():
        text = text.replace(f'<g id="{gid}">', f"<g><title>{html.escape(name)}</title>")
    used = set(re.findall(r"#([\w-]+)", text))  # ids that are referred to
    text = re.sub(r' id="([\w-]+)"', lambda at: at[0] if at[1] in used else "", text)
    text = re.sub(r"(font(?:-family)?: [^;\"]*?)'[^;\"]*", r"\1inherit", text)
    for colour, themed in _THEMED.items():
        text = text.replace(colour, themed)
    return text
