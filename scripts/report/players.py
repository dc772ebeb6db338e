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
from scripts._results import NAMES, SYSTEMS, series
from scripts.report import plots
from scripts.report.page import missing

__all__ = ["PLAYERS", "examples", "listen"]

PLAYERS = (
    "Press a picture to hear it, another one to switch: the position stays, to the sample. Stems "
    "stand as loud as in the mixture. Keys: <kbd>Tab</kbd> to the pictures, arrows to switch, "
    "<kbd>Space</kbd> to play and pause, <kbd>Shift</kbd> with arrows to move half a second, "
    "<kbd>Home</kbd> to the start. Spectrograms: 40 Hz to half the sample rate, logarithmic, one "
    "scale of loudness for all."
)
"""How to listen, as HTML."""
_UNDECIDED = (
    "<em>Undecided</em>: how far the candidates disagree on whose a sound is, from black (they "
    "agree, which does not make them right, or it is quiet) to yellow (half of them say one "
    "source, half the other)."
)
_ICONS = (
    '<svg class="start" viewBox="0 0 16 16" aria-hidden="true"><path d="M3 1.5v13l11-6.5z"/></svg>'
    '<svg class="stop" viewBox="0 0 16 16" aria-hidden="true">'
    '<path d="M3 1.5h3.5v13H3zM9.5 1.5H13v13H9.5z"/></svg>'
)


def listen(results: Mapping[str, Any], folder: Path) -> str:
    """The section with the examples of an evaluation; `folder` holds the results."""
    songs = examples(results, folder)
    if not songs:
        return (
            f'<section id="listen"><h2>Listen</h2>{missing("No examples were written.")}</section>'
        )
    return f'<section id="listen"><h2>Listen</h2><p>{PLAYERS} {_UNDECIDED}</p>{songs}</section>'


def examples(results: Mapping[str, Any], folder: Path) -> str:
    """A synchronised player per song: a row per system, a column per source, spectrograms."""
    rate = results["meta"].get("data", {}).get("sample_rate", 1)
    songs = []
    for example in results["meta"].get("examples", []):
        files = example["files"]
        unsure = example.get("uncertainty", {})  # results of before it was there have none
        mixture = folder / files["mixture"]
        rows = [_row("Mixture", _track(mixture, "Mixture", "mixture", wide=True))]
        rows.append(_row("Truth", _tracks(results, example, folder, "truth") + _unsure("")))
        there = [method for method in SYSTEMS if method in files]
        for m in there:
            picture = _uncertainty(folder / unsure[m], mixture) if m in unsure else _unsure("")
            rows.append(_row(NAMES[m], _tracks(results, example, folder, m) + picture, m))
        for m in ("nmf", "supervised"):
            if m in files:
                tracks = _tracks(results, example, folder, m, refined=False)
                rows.append(_row(NAMES[m], tracks + _unsure("")))
        best = "".join(
            _row(NAMES[m], _tracks(results, example, folder, m, "_oracle") + _unsure(""), m)
            for m in there
            if m + "_oracle" in files
        )
        if best:
            rows.append(
                "<details><summary>Raw decodes, the best candidate chosen with the truth</summary>"
                f"{best}</details>"
            )
        title = f"{html.escape(example['track'])}, from {example['start'] / rate:.1f} s"
        songs.append(_song(f"song-{example['chunk']}", title, mixture, rows, len(files["truth"])))
    return "".join(songs)


def _song(name: str, title: str, mixture: Path, rows: list[str], columns: int) -> str:
    """A player of everything in its rows."""
    about = soundfile.info(mixture) if mixture.is_file() else None
    seconds = about.duration if about else 0.0
    return (
        f'<article class="song" id="{name}" data-seconds="{seconds:.4f}" '
        f'style="--columns:{columns}"><div class="transport" role="group" aria-label="{title}">'
        f'<button type="button" class="play" aria-label="Play">{_ICONS}</button>'
        f'<div class="now" aria-live="polite"></div><h3>{title}</h3>'
        f'<input class="seek" type="range" min="0" max="{seconds:.4f}" step="any" value="0" '
        'aria-label="Position in seconds"><span class="clock"></span>'
        '<label class="again"><input type="checkbox" checked> loop</label></div>'
        f"{''.join(rows)}</article>"
    )


def _row(title: str, players: str, method: str = "") -> str:
    colour = f' style="--c:var(--{method})"' if method else ""
    return f'<div class="row"{colour}><h4>{title}</h4>{players}</div>'


def _tracks(
    results: Mapping[str, Any],
    example: Mapping[str, Any],
    folder: Path,
    method: str,
    suffix: str = "",
    refined: bool = True,
) -> str:
    """A track per source."""
    how = ("oracle", False) if suffix else ("selected", refined)
    system = NAMES.get(method, "Truth") + (", best raw candidate" if suffix else "")
    return "".join(
        _track(
            folder / path,
            f"{system}: {source}",
            source,
            _score(results, example, (method, *how), source),
        )
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


def _track(path: Path, name: str, label: str, score: str = "", wide: bool = False) -> str:
    """Audio and its spectrogram, both inside the page."""
    name, label = html.escape(name), html.escape(label)
    place = "track wide" if wide else "track"
    if not path.is_file():
        return f"<div>{missing(f'{path.name} is missing.')}</div>"
    samples, rate = audio_io.load(path)
    mono = audio_io.to_mono(samples)
    return (
        f'<div class="{place}" data-name="{name}">'
        f'<button type="button" class="tile" aria-label="{name} {score}" aria-pressed="false">'
        f'<span class="about"><span>{label}</span><span class="score">{score}</span></span>'
        f'<span class="picture"><img alt="" src="{plots.spectrogram(mono, rate)}"></span></button>'
        f'<audio controls preload="none" src="{_mp3(mono, rate)}"></audio></div>'
    )


def _uncertainty(path: Path, mixture: Path) -> str:
    """A picture of where the candidates disagree."""
    for needed in (path, mixture):
        if not needed.is_file():
            return _unsure(missing(f"{needed.name} is missing."))
    samples, rate = audio_io.load(mixture)
    with np.load(path) as stored:
        values, hertz, seconds = (stored[name] for name in ("uncertainty", "hertz", "seconds"))
    picture = plots.uncertainty(
        torch.from_numpy(values), audio_io.to_mono(samples), rate, float(hertz), float(seconds)
    )
    return _unsure(
        '<span class="about">undecided</span><span class="picture">'
        f'<img alt="where the candidates disagree" src="{picture}"></span>'
    )


def _unsure(inside: str) -> str:
    return f'<div class="unsure">{inside}</div>'


def _mp3(audio: Tensor, rate: int) -> str:
    """[T] as a data URI."""
    buffer = io.BytesIO()
    samples = audio.numpy().clip(-1, 1).astype(np.float32)
    soundfile.write(buffer, samples, rate, format="MP3", subtype="MPEG_LAYER_III")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
