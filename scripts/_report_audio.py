"""The report's players: audio as MP3 inside the page, each with its spectrogram."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from jukebox_core import audio as audio_io
from scripts import _report_plots as plots
from scripts._report_style import SWITCH
from scripts._results import NAMES, SYSTEMS, series

__all__ = ["examples", "missing"]


def examples(results: Mapping[str, Any], folder: Path) -> str:
    """Players with spectrograms: a row per signal, a column per source."""
    examples = results["meta"].get("examples", [])
    if not examples:
        return "<section><h2>Listen</h2>" + missing("No examples were written.") + "</section>"
    rate = results["meta"].get("data", {}).get("sample_rate", 1)
    blocks = []
    for example in examples:
        files = example["files"]
        unsure = example.get("uncertainty", {})  # results of before it was there have none
        blank = '<div class="unsure"></div>' if unsure else ""  # columns stay in line
        rows = [_row("Mixture", _player(folder / files["mixture"], "mixture") + blank)]
        rows.append(_row("Truth", _players(results, example, folder, "truth") + blank))
        there = [method for method in SYSTEMS if method in files]
        for m in there:
            picture = (
                _uncertainty(folder / unsure[m], folder / files["mixture"]) if m in unsure else ""
            )
            rows.append(_row(NAMES[m], _players(results, example, folder, m) + picture))
        best = [
            _row(NAMES[m], _players(results, example, folder, m, "_oracle"))
            for m in there
            if m + "_oracle" in files
        ]
        folded = (
            "<details><summary>Raw decodes, the best candidate chosen with the truth</summary>"
            f"{''.join(best)}</details>"
        )
        blocks.append(
            f"<article><h3>{html.escape(example['track'])}, from {example['start'] / rate:.1f} s"
            f"</h3>{''.join(rows)}{folded if best else ''}</article>"
        )
    return (
        "<section><h2>Listen</h2><p>Stems as they stand in the mixture; the systems' are selected "
        "and refined. A player that starts goes on where another one of the song is. "
        "Spectrograms: 40 Hz to half the sample rate, logarithmic. <em>Undecided</em>: how far the "
        "candidates disagree on whose a sound is, from black (they agree, which does not make them "
        "right, or it is quiet) to yellow (half of them say one source, half the other).</p>"
        f"{''.join(blocks)}<script>{SWITCH}</script></section>"
    )


def _row(title: str, players: str) -> str:
    return f'<div class="row"><h4>{title}</h4>{players}</div>'


def _players(
    results: Mapping[str, Any],
    example: Mapping[str, Any],
    folder: Path,
    method: str,
    suffix: str = "",
) -> str:
    """A player per source."""
    how = ("oracle", False) if suffix else ("selected", True)
    return "".join(
        _player(folder / path, source, _score(results, example, (method, *how), source))
        for source, path in example["files"][method + suffix].items()
    )


def _score(
    results: Mapping[str, Any],
    example: Mapping[str, Any],
    line: tuple[str, str, bool],
    source: str,
) -> str:
    """The SDR of an example; nothing where it has none, as the truth."""
    value = series(results, *line, source, "sdr").get(example["chunk"], math.nan)
    return "" if math.isnan(value) else f"{value:.2f} dB"


def _player(path: Path, label: str, score: str = "") -> str:
    """An audio element with its spectrogram, both inside the page."""
    label = html.escape(label)
    if not path.is_file():
        return f'<div class="player">{missing(f"{path.name} is missing.")}</div>'
    samples, rate = audio_io.load(path)
    mono = audio_io.to_mono(samples)
    return (
        f'<div class="player"><span>{label}</span><span class="score">{score}</span>'
        f'<img alt="spectrogram of {label}" src="{plots.spectrogram(mono, rate)}">'
        f'<audio controls preload="none" src="{_mp3(mono, rate)}"></audio></div>'
    )


def _uncertainty(path: Path, mixture: Path) -> str:
    """A picture of where the candidates disagree."""
    for needed in (path, mixture):
        if not needed.is_file():
            return f'<div class="unsure">{missing(f"{needed.name} is missing.")}</div>'
    samples, rate = audio_io.load(mixture)
    with np.load(path) as stored:
        values, hertz, seconds = (stored[name] for name in ("uncertainty", "hertz", "seconds"))
    picture = plots.uncertainty(
        torch.from_numpy(values), audio_io.to_mono(samples), rate, float(hertz), float(seconds)
    )
    return (
        '<div class="unsure"><span>undecided</span>'
        f'<img alt="where the candidates disagree" src="{picture}"></div>'
    )


def _mp3(audio: Tensor, rate: int) -> str:
    """[T] as a data URI."""
    buffer = io.BytesIO()
    samples = audio.numpy().clip(-1, 1).astype(np.float32)
    soundfile.write(buffer, samples, rate, format="MP3", subtype="MPEG_LAYER_III")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def missing(text: str) -> str:
    """A remark that something is not there."""
    return f'<p class="missing">{html.escape(text)}</p>'
