"""Players of the report: audio as MP3 inside the page, each with its spectrogram."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jukebox_core import audio as audio_io
from jukebox_core.arrays import read_arrays
from jukebox_core.audio import pictures
from jukebox_core.audio.mp3 import mp3
from jukebox_core.evaluation.results import Line, series
from jukebox_core.files import data_uri
from scripts._results import NAMES, SYSTEMS, default_line
from scripts.report.page import missing

_HELP = (
    "Press a picture to hear it, another one to switch: playback continues at the same sample. "
    "Stems are as loud as in the mixture. Keys: <kbd>Tab</kbd> to the pictures, arrows to switch, "
    "<kbd>Space</kbd> to play and pause, <kbd>Shift</kbd> with arrows to move half a second, "
    "<kbd>Home</kbd> to the start. Spectrograms reach from 40 Hz to half the sample rate on a "
    "logarithmic scale, with the same colours for the same level. <em>Uncertainty</em>: how "
    "unsure a system is which source a sound belongs to, from black (it is sure, which does not "
    "make it right, or the sound is quiet) to yellow (two sources are equally likely)."
)
_ICONS = (
    '<svg class="start" viewBox="0 0 16 16" aria-hidden="true"><path d="M3 1.5v13l11-6.5z"/></svg>'
    '<svg class="stop" viewBox="0 0 16 16" aria-hidden="true">'
    '<path d="M3 1.5h3.5v13H3zM9.5 1.5H13v13H9.5z"/></svg>'
)
_EMPTY = '<div class="uncertainty"></div>'  # keeps the rows of a song on one grid


def listen(results: Mapping[str, Any], folder: Path) -> str:
    """Return the section with the examples of an evaluation; `folder` holds results.json."""
    examples = results["meta"].get("examples", [])
    songs = "".join(_song(results, example, folder) for example in examples)
    body = f"<p>{_HELP}</p>{songs}" if songs else missing("There are no examples.")
    return f'<section id="listen"><h2>Listen</h2>{body}</section>'


def _song(results: Mapping[str, Any], example: Mapping[str, Any], folder: Path) -> str:
    """Return a synchronised player: a row per system, a column per source."""
    files = example["files"]
    maps = example.get("uncertainty", {})  # results of early versions have none
    mixture = _inside(folder, files["mixture"])

    def row(
        title: str, name: str, line: Line | None = None, end: str = _EMPTY, detail: str = ""
    ) -> str:
        colour = f' style="--c:var(--{line[0]})"' if line and line[0] in SYSTEMS else ""
        tracks = ""
        for source, path in files[name].items():
            score = _score(results, example, line, source)
            tracks += _track(_inside(folder, path), f"{title}{detail}: {source}", source, score)
        return f'<div class="row"{colour}><h4>{title}</h4>{tracks}{end}</div>'

    systems = [m for m in SYSTEMS if m in files]
    first = _track(mixture, "Mixture", "mixture", wide=True)
    rows = [f'<div class="row"><h4>Mixture</h4>{first}</div>', row("Truth", "truth")]
    for m in systems:
        end = _uncertainty(_inside(folder, maps[m]), mixture) if m in maps else _EMPTY
        rows.append(row(NAMES[m], m, default_line(m), end))
    rows += [row(NAMES[m], m, default_line(m)) for m in ("nmf", "supervised") if m in files]
    best = [
        row(NAMES[m], f"{m}_oracle", (m, "oracle", False), detail=", best raw candidate")
        for m in systems
        if f"{m}_oracle" in files
    ]
    if best:
        summary = "<summary>Raw decodes of the best candidate, chosen with the truth</summary>"
        rows.append(f"<details>{summary}{''.join(best)}</details>")
    rate = results["meta"].get("data", {}).get("sample_rate", 1)
    title = f"{html.escape(example['track'])}, from {example['start'] / rate:.1f} s"
    about = audio_io.info(mixture) if mixture.is_file() else None
    seconds = about.frames / about.rate if about else 0.0
    chunk = html.escape(str(example["chunk"]))
    return (
        f'<article class="song" id="song-{chunk}" data-seconds="{seconds:.4f}" '
        f'style="--columns:{len(files["truth"])}"><div class="transport" role="group" '
        f'aria-label="{title}"><button type="button" class="play" aria-label="Play">{_ICONS}'
        f'</button><div class="now" aria-live="polite"></div><h3>{title}</h3>'
        f'<input class="seek" type="range" min="0" max="{seconds:.4f}" step="any" value="0" '
        'aria-label="Position in seconds"><span class="clock"></span>'
        '<label class="again"><input type="checkbox" checked> loop</label></div>'
        f"{''.join(rows)}</article>"
    )


def _inside(folder: Path, name: str) -> Path:
    """Return the path of an example's file.

    Raises:
        ValueError: it is outside the folder: the page would embed a file that is not of the run.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the file {name!r} of an example is outside the folder of the results")
    return path


def _score(
    results: Mapping[str, Any], example: Mapping[str, Any], line: Line | None, source: str
) -> str:
    """Format the SDR of an example; empty for the truth and where there is no score."""
    values = {} if line is None else series(results, *line, source, "sdr")
    value = values.get(example["chunk"], math.nan)
    return "" if math.isnan(value) else f"{value:.2f} dB"


def _track(path: Path, name: str, label: str, score: str = "", wide: bool = False) -> str:
    """Return audio and its spectrogram, both inside the page."""
    name, label = html.escape(name), html.escape(label)
    place = "track wide" if wide else "track"
    if not path.is_file():
        return f"<div>{missing(f'{path.name} is missing.')}</div>"
    samples, rate = audio_io.load(path)
    picture = data_uri(pictures.spectrogram(_levels(samples, rate)), "image/png")
    sound = data_uri(mp3(audio_io.to_mono(samples), rate), "audio/mpeg")
    return (
        f'<div class="{place}" data-name="{name}">'
        f'<button type="button" class="tile" aria-label="{name} {score}" aria-pressed="false">'
        f'<span class="label"><span>{label}</span><span class="score">{score}</span></span>'
        f'<span class="picture"><img alt="" src="{picture}"></span></button>'
        f'<audio controls preload="none" src="{sound}"></audio></div>'
    )


def _uncertainty(path: Path, mixture: Path) -> str:
    """Return the picture of a system's uncertainty (npz, see `Separator.uncertainty`)."""
    for file in (path, mixture):
        if not file.is_file():
            return f'<div class="uncertainty">{missing(f"{file.name} is missing.")}</div>'
    samples, rate = audio_io.load(mixture)
    stored = read_arrays(path, "uncertainty")
    values = torch.from_numpy(stored["uncertainty"]).float()
    rows = pictures.log_rows(values, float(stored["hertz"]), rate / 2, "mean")
    picture = data_uri(pictures.uncertainty(rows, _levels(samples, rate)), "image/png")
    return (
        '<div class="uncertainty"><span class="label">uncertainty</span>'
        f'<span class="picture"><img alt="uncertainty" src="{picture}"></span></div>'
    )


def _levels(samples: torch.Tensor, rate: int) -> torch.Tensor:
    return pictures.levels([samples], samples.shape[-1], rate, rate / 2)
