"""Write one self-contained page of a run's results: answer, tables, plots, audio.

    python -m scripts.report --runs runs/demo --output runs/demo/report.html

RUNS is a folder as scripts.demo writes it: results.json (with results_audio/) and
models/{reconstruction,linearisation}/{vqvae,prior_SOURCE}/metrics.csv. The page names missing files
and contains its audio, plots and style, so that it loads nothing.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import scripts
from jukebox_core.evaluation.results import load_results, sources_of
from jukebox_core.files import check_replaceable, write_text
from jukebox_core.training.tracking import METRICS as METRICS_FILE
from jukebox_core.training.tracking import Row, read_metrics
from scripts._cli import program
from scripts._results import REPORT_TITLE, is_report
from scripts.report import plots, tables
from scripts.report.answer import headline
from scripts.report.page import document, missing, value_of
from scripts.report.players import listen

QUESTION = (
    "LQ-VAE trains its codec so that latents add up like signals, and scores pairs of codes by a "
    "Gaussian; LASS leaves the codec as it is and counts which codes mix to which. "
    "Does the hybrid, the LQ-VAE's codec with LASS's counts times the LQ-VAE's Gaussian, separate "
    "better than either?"
)
SECTIONS = {
    "answer": "Answer",
    "method": "Method",
    "scores": "Scores",
    "plots": "Plots",
    "listen": "Listen",
    "parts": "Parts",
    "training": "Training",
    "measured": "Definitions",
    "again": "Reproduce",
}
PICTURE = Path(__file__).parents[2] / "images" / "how_it_works.svg"
FAMILIES = {
    "reconstruction": "plain codec (LASS)",
    "linearisation": "linear codec (LQ-VAE, hybrid)",
}


@dataclass(frozen=True)
class Args:
    """Flags of scripts.report."""

    runs: Path
    """Folder with results.json and models/."""
    output: Path
    """HTML file to write."""


@program
def main(args: Args) -> None:
    """Write the page."""
    check_replaceable(args.output, is_report, "a report")
    write_text(args.output, build_page(args.runs))
    print(args.output)


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Name the file in the errors of a block that takes values from it.

    Raises:
        ValueError: the file does not hold `what`.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path} does not hold {what} ({error!r})") from error


def build_page(runs: Path) -> str:
    """Return the page of a folder of runs.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a file has unexpected content.
    """
    if not runs.is_dir():
        raise FileNotFoundError(f"there is no folder {runs}")
    path = runs / "results.json"
    if path.is_file():
        results = load_results(path)
        with _reading(path, "the results of an evaluation"):
            parts = [headline(results), _how(), tables.scores(results), _scatters(results)]
            parts += [listen(results, path.parent)]
            last = [_method(results), _again(results, runs)]
        parts += [_ablation(runs), _curves(runs), *last]
    else:
        parts = [missing("There are no scores: results.json is missing."), _curves(runs)]
    body = "\n".join(parts)
    links = "".join(
        f'<a href="#{name}">{words}</a>'
        for name, words in SECTIONS.items()
        if f'id="{name}"' in body
    )
    return document(
        REPORT_TITLE,
        f'<header class="hero"><h1>{html.escape(REPORT_TITLE)}</h1>'
        f'<p class="lead">{html.escape(QUESTION)}</p></header>'
        f'<nav aria-label="Sections">{links}</nav>\n<main>\n{body}\n</main>',
    )


def _how() -> str:
    """Return the picture of the method; empty without the checkout's images."""
    if not PICTURE.is_file():
        return ""
    return (
        '<section id="method"><h2>How a mixture is separated</h2>'
        f'<figure class="how">{PICTURE.read_text(encoding="utf-8")}</figure></section>'
    )


def _ablation(runs: Path) -> str:
    """Return the section of the ablation in RUNS/ablation, if there is one."""
    path = runs / "ablation" / "ablation.json"
    if not path.is_file():
        return ""
    with _reading(path, "the tables of an ablation"):
        return tables.ablation(json.loads(path.read_text(encoding="utf-8")))


def _scatters(results: Mapping[str, Any]) -> str:
    if len(sources_of(results)) != 2:
        return ""
    lines = {"Oracle pick, raw": ("oracle", False), "What you get": ("selected", True)}
    pictures = (plots.scatter(results, *line, title) for title, line in lines.items())
    figures = "".join(f"<figure>{picture}</figure>" for picture in pictures)
    return (
        f'<section id="plots"><h2>Both sources at once</h2><div class="plots">{figures}</div>'
        "<p>A small mark is a chunk, a large mark a method's mean; crosses show the mixture as "
        "the estimate. A good separation lies at the top right. Rest on a mark to see its "
        "song.</p></section>"
    )


def _curves(runs: Path) -> str:
    """Return the section with the loss curves of codecs and priors."""
    absent = []
    groups: dict[str, dict[str, list[Row]]] = {}
    for family, name in FAMILIES.items():
        folder = runs / "models" / family
        priors = sorted(path.name for path in folder.glob("prior_*"))
        for run in ("vqvae", *(priors or ["prior_bass", "prior_drums"])):
            path = folder / run / METRICS_FILE
            if not path.is_file():
                absent.append(f"{family}/{run}")
                continue
            title = "Codecs" if run == "vqvae" else f"Priors of the {name}"
            label = family if run == "vqvae" else run.removeprefix("prior_")
            groups.setdefault(title, {})[label] = read_metrics(path)
    figures = "".join(f"<figure>{plots.losses(r, title)}</figure>" for title, r in groups.items())
    note = missing(f"No training curves of: {', '.join(absent)}.") if absent else ""
    return (
        f'<section id="training"><h2>Training</h2><div class="plots">{figures}</div>{note}'
        "<p>Thin lines: training; thick lines: validation. The losses of the two codecs consist of "
        "different terms and cannot be compared.</p></section>"
    )


def _method(results: Mapping[str, Any]) -> str:
    """Return the section on how the scores are measured."""
    meta = results["meta"]
    data = meta.get("data", {})
    n = partial(value_of, data)
    facts = {
        "Data": f"{n('chunks')} chunks of {n('chunk_samples')} samples from {n('songs')} of "
        f"{n('songs_in_split')} songs, {n('sample_rate')} Hz; silent is "
        f"{data.get('silence_rule', '?')}",
        "Prepared with": data.get("settings", {}),
        "Candidates": meta.get("candidates", {}),
        "Training steps": {m: v.get("steps") for m, v in meta.get("models", {}).items()},
        "Seed": meta.get("seed"),
        "Values without a score": meta.get("skipped_values"),
        "Machine": meta.get("machine", {}),
        "Date": meta.get("date"),
    } | dict(meta.get("definitions", {}))
    items = "".join(
        f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(_plain(value))}</dd>"
        for name, value in facts.items()
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in meta.get("notes", []))
    return (
        '<section id="measured"><h2>How the scores are defined and measured</h2>'
        f"<details><summary>Definitions, settings, machine</summary><dl>{items}</dl></details>"
        f"<ul>{notes}</ul></section>"
    )


def _again(results: Mapping[str, Any], runs: Path) -> str:
    meta = results["meta"]
    command = html.escape(str(meta.get("command", "python -m scripts.evaluate --help")))
    commit = html.escape(str(meta.get("git_commit") or "unknown"))
    folder = html.escape(shlex.quote(runs.as_posix()))
    return (
        '<section id="again"><h2>Reproduce</h2>'
        "<p>For a run of the demo, everything again, songs included:</p>"
        f"<pre><code>{scripts.COMMAND}demo</code></pre>"
        "<p>These scores and this page, from trained models:</p>"
        f"<pre><code>{command}\n{scripts.COMMAND}report --runs {folder} "
        f"--output {folder}/report.html</code></pre><p>Commit: <code>{commit}</code></p></section>"
    )


def _plain(value: Any) -> str:
    """Format nested values as text."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_plain(inner)}" for name, inner in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)
