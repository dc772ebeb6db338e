"""Plots of the report as SVG or PNG, ready to stand in a page."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.image

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from jukebox_core.audio.spectra import stft
from jukebox_core.training.tracking import Row
from scripts._results import NAMES, SYSTEMS, series, sources_of

COLOURS = {"lqvae": "#b45309", "lass": "#2563eb", "hybrid": "#047857", "mixture": "#7b828e"}
_MARKERS = {"lqvae": "^", "lass": "s", "hybrid": "o", "mixture": "x"}
_INK = "#010203"  # becomes the colour of the text around
_THEMED = {colour: f"var(--{method}, {colour})" for method, colour in COLOURS.items()}
_THEMED |= {COLOURS["mixture"]: f"var(--plain, {COLOURS['mixture']})", _INK: "currentColor"}


def scatter(results: Mapping[str, Any], estimate: str, refined: bool, title: str) -> str:
    """SDR of the second source over that of the first, a point per chunk, a colour per method."""
    sources = sources_of(results)
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    names: dict[str, str] = {}
    where = {item["chunk"]: item["track"] for item in results["chunks"]}
    lines = [(method, estimate, refined) for method in SYSTEMS] + [("mixture", "selected", False)]
    for line in lines:
        x, y = (series(results, *line, s, "sdr") for s in sources[:2])
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


def losses(runs: Mapping[str, Sequence[Row]], title: str, metric: str = "loss") -> str:
    """A metric over the steps, per run: thin for training, thick for validation."""
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    colours = [COLOURS["lass"], COLOURS["lqvae"], COLOURS["hybrid"], COLOURS["mixture"]]
    for (name, rows), colour in zip(runs.items(), colours * len(runs), strict=False):
        for split, width in (("train", 0.8), ("validation", 2.0)):
            points = [(r.step, r.value) for r in rows if (r.split, r.metric) == (split, metric)]
            if points:
                steps, values = zip(*points, strict=True)
                dot = "." if len(points) == 1 else None
                axes.plot(
                    steps, values, color=colour, lw=width, marker=dot, label=f"{name} {split}"
                )
    positive = [v for line in axes.lines for v in np.asarray(line.get_ydata(), float)]
    if positive and min(positive) > 0 and max(positive) > 20 * min(positive):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    axes.set_title(title)
    _legend(axes)
    return _svg(figure, title)


def spectrogram(audio: Tensor, rate: int) -> str:
    """Log-magnitude spectrogram of [T] as a data URI of a PNG: 80 dB, logarithmic frequency."""
    n_fft, hop = 2048, 512
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(
        audio, n_fft, hop, window=window, pad_mode="constant", return_complex=True
    ).abs()
    # Full scale: of a sine at amplitude 1. A fixed range makes all pictures of a page comparable.
    level = 20 * (spectrum / (n_fft / 4)).clamp_min(1e-6).log10()  # [F, frames]
    return _picture(level.numpy(), rate / n_fft, "magma", (-90, -10))


def uncertainty(values: Tensor, audio: Tensor, rate: int, hertz: float, seconds: float) -> str:
    """Picture of `Separator.uncertainty` [F, frames], drawn like `spectrogram`.

    Black: 0, or a bin 40 dB under the mixture's loudest; yellow: 0.5.

    Args:
        values: bins `hertz` apart, frames `seconds` apart.
        audio: [T], the mixture.
        rate: its sample rate, in Hz.
        hertz: between bins.
        seconds: between frames.
    """
    level = stft(audio, round(rate / hertz), round(rate * seconds)).abs()
    loud = level > 1e-2 * level.max()
    return _picture((values.float() * loud).numpy(), hertz, "inferno", (0, 0.5))


def _picture(values: np.ndarray, hertz: float, colours: str, scale: tuple[float, float]) -> str:
    """[F, frames] over logarithmic frequency, from 40 Hz to the last bin's."""
    last = len(values) - 1
    wanted = np.geomspace(40, last * hertz, 96) / hertz
    picture = png(values[wanted.round().astype(int).clip(max=last)], colours, scale)
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def png(values: np.ndarray, colours: str, scale: tuple[float, float]) -> bytes:
    """A pixel for each of [rows, columns], row 0 at the bottom; `colours` is Matplotlib's name."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(
        buffer, values[::-1], cmap=colours, vmin=scale[0], vmax=scale[1], format="png"
    )
    return buffer.getvalue()


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
    """The figure as an <svg> element in the page's font and colours; it refers to nothing outside.

    salt: makes the figure's names differ from those of others on a page.
    names: {gid of an artist: what is said where the pointer rests on it}.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for gid, name in (names or {}).items():
        text = text.replace(f'<g id="{gid}">', f"<g><title>{html.escape(name)}</title>")
    used = set(re.findall(r"#([\w-]+)", text))  # names that several figures of a page may share
    text = re.sub(r' id="([\w-]+)"', lambda at: at[0] if at[1] in used else "", text)
    text = re.sub(r"(font(?:-family)?: [^;\"]*?)'[^;\"]*", r"\1inherit", text)
    for colour, themed in _THEMED.items():
        text = text.replace(colour, themed)
    return text
