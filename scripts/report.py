"""One self-contained page of a run's results: answer, table, plots, audio.

    python -m scripts.report --runs runs/demo --output runs/demo/report.html

RUNS holds what scripts.demo makes: results.json (with results_audio/ beside it) and
models/{reconstruction,linearisation}/{vqvae,prior_SOURCE}/metrics.csv. What is missing is named in
the page. The page asks for nothing from outside: audio, plots and style are in it.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jukebox_core.files import atomic_path
from jukebox_core.tracking import METRICS as METRICS_FILE
from jukebox_core.tracking import Row, read_metrics
from scripts import _report_plots as plots
from scripts._cli import program
from scripts._report_audio import examples, missing
from scripts._report_style import STYLE
from scripts._results import (
    MUSEVAL,
    NAMES,
    SEED_NOTE,
    SEED_TABLE,
    SYSTEMS,
    cell,
    difference,
    find_row,
    line_name,
    load_results,
    sources_of,
    table_lines,
)

TITLE = "LQ-VAE, LASS and their hybrid: separating music in a latent space"
QUESTION = (
    "LQ-VAE trains its codec so that sums of latents are latents of sums and scores pairs of codes "
    "by a Gaussian; LASS leaves the codec as it is and counts which codes mix to which. "
    "Does the hybrid, the LQ-VAE's codec with LASS's counts, separate better than either?"
)
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
    page = build_page(args.runs)
    with atomic_path(args.output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(args.output)


def build_page(runs: Path) -> str:
    """The page of a folder of runs.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file in it is not what its name says.
    """
    if not runs.is_dir():
        raise FileNotFoundError(f"there is no folder {runs}")
    parts = []
    path = runs / "results.json"
    if path.is_file():
        results = load_results(path)
        parts += [_headline(results), _table(results), _scatters(results), _other_metrics(results)]
        parts += [_curves(runs), examples(results, path.parent), _method(results)]
        parts += [_again(results)]
    else:
        parts += [missing("There are no scores yet: results.json is missing."), _curves(runs)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(TITLE)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{html.escape(TITLE)}</h1><p class="lead">{html.escape(QUESTION)}</p></header>'
        f"\n{body}\n</main>\n</body>\n</html>\n"
    )


def _headline(results: Mapping[str, Any]) -> str:
    """The answer, from the data alone."""
    cards = []
    for method in SYSTEMS:
        row = find_row(results, method, "selected", True, "mean", "sdr")
        if row is None or row["mean"] is None:
            continue
        parts = []
        for source in sources_of(results):
            found = find_row(results, method, "selected", True, source, "sdr")
            if found and found["mean"] is not None:
                parts.append(f"{html.escape(source)} {found['mean']:.2f}")
        cards.append(
            f'<div class="card" style="--c:{plots.COLOURS[method]}"><h3>{NAMES[method]}</h3>'
            f'<p class="big">{row["mean"]:.2f} <small>dB</small></p>'
            f"<p>95%: {row['ci_low']:.2f} to {row['ci_high']:.2f}<br>{', '.join(parts)}</p></div>"
        )
    answer, beside = _answers(results)
    data = results["meta"].get("data", {})
    return (
        f'<section><h2>Answer</h2><p class="answer">{answer}</p>'
        f'<div class="cards">{"".join(cards)}</div><p>{beside}</p>'
        f"<p>Mean SDR (chunks: {_n(data, 'chunks')}, songs: {_n(data, 'songs')}, "
        f"split: {html.escape(str(data.get('split', '?')))}), separated without any reference and "
        f"refined as a mask of the mixture; both sources averaged. {_about_data(results)}</p>"
        "</section>"
    )


def _answers(results: Mapping[str, Any]) -> tuple[str, str]:
    """The hybrid beside the other two, and a system beside what needs no training."""
    found = [_comparison(results, "hybrid", other) for other in ("lqvae", "lass")]
    answer = " ".join(text for text in found if text) or (
        "The scores do not hold the hybrid and another of the three: the question is open here."
    )
    methods = {row["method"] for row in results["rows"]}
    systems = [method for method in reversed(SYSTEMS) if method in methods]
    plain = [_comparison(results, m, other) for m in systems[:1] for other in ("mixture", "hpss")]
    return answer, " ".join(text for text in plain if text)


def _comparison(results: Mapping[str, Any], first: str, second: str) -> str:
    """A sentence on the paired difference; none where a method is missing."""
    interval = difference(results, first, second)
    if interval.n == 0:
        return ""
    if interval.low > 0:
        verdict = "better than"
    elif interval.high < 0:
        verdict = "worse than"
    else:
        verdict = "not distinguishable from"
    names = NAMES | {"hybrid": "The hybrid", "mixture": "the mixture taken as both estimates"}
    return (
        f"{names[first]} is <strong>{verdict} {names[second]}</strong> here: "
        f"{interval.mean:+.2f} dB (95% interval {interval.low:+.2f} to {interval.high:+.2f}, "
        f"{interval.n} paired chunks)."
    )


def _about_data(results: Mapping[str, Any]) -> str:
    """What the scores are of; they are not those of another data set."""
    meta = results["meta"]
    presets = {m.get("preset") for m in meta.get("models", {}).values()} - {None}
    sizes = (
        f" Models: preset {html.escape(', '.join(sorted(map(str, presets))))}." if presets else ""
    )
    name = html.escape(str(meta.get("data", {}).get("folder", "?")))
    origin = {
        True: "composed and rendered by scripts.make_synthetic, so these are not scores on "
        "Slakh2100",
        False: "recorded as not generated",
        None: "whose manifest does not say where the songs are from, so take these as scores on "
        "Slakh2100 only if you prepared it from there",
    }[meta.get("data", {}).get("generated")]
    return (
        f"Data: the prepared data set <code>{name}</code>, {origin}.{sizes} Scores of one data set "
        "say nothing about another: only the order and the differences are the subject here. The "
        "intervals are over chunks: that another training would end elsewhere is not in them."
    )


def _table(results: Mapping[str, Any], metric: str = "sdr") -> str:
    sources = sources_of(results)
    head = "".join(f"<th>{html.escape(s)}</th>" for s in (*sources, "mean"))
    body = []
    for method, estimate, refined in table_lines(results):
        name, what = line_name(method, estimate, refined)
        cells = "".join(
            f"<td>{cell(find_row(results, method, estimate, refined, source, metric))}</td>"
            for source in (*sources, "mean")
        )
        seconds = results.get("seconds_per_chunk", {}).get(method)
        shown = "-" if seconds is None else f"{seconds:.2f}"
        mark = ' class="main"' if (estimate, refined) == ("selected", True) else ""
        body.append(f"<tr{mark}><th>{name}</th><td>{what}</td>{cells}<td>{shown}</td></tr>")
    seeds = "".join(
        f"<tr><th>{NAMES[method]}</th><td>{row['bass']:.2f}</td><td>{row['drums']:.2f}</td>"
        f"<td>{row['seconds']:.1f}</td></tr>"
        for method, row in SEED_TABLE.items()
    )
    return (
        '<section><h2>Scores</h2><div class="beside"><div class="scroll"><table><caption>'
        "SDR of whole chunks in dB, mean [95% interval]</caption><thead><tr><th>method</th>"
        f"<th>estimate</th>{head}<th>s / chunk</th></tr></thead><tbody>{''.join(body)}</tbody>"
        '</table></div><div class="scroll"><table class="seed"><caption>The original report '
        f"({SEED_NOTE})</caption><thead><tr><th>method</th><th>bass</th><th>drums</th><th>s</th>"
        f"</tr></thead><tbody>{seeds}</tbody></table></div></div>"
        "<p><em>oracle</em>: the best candidate per source, chosen with the truth, as in the "
        "original report; <em>selected</em>: what a user gets. The original's data, models and "
        "machine were others: its numbers are context, not a comparison.</p></section>"
    )


def _other_metrics(results: Mapping[str, Any]) -> str:
    """The means of the other metrics, folded away."""
    labels = {
        "sdr_seed": "SDR, museval windows",
        MUSEVAL: "SDR by museval",
        "si_sdr": "SI-SDR",
        "si_sdri": "SI-SDR gain",
    }
    there = {row["metric"] for row in results["rows"]}
    metrics = {name: label for name, label in labels.items() if name in there}
    sources = (*sources_of(results), "mean")
    head = "".join(
        f"<th>{label}<br>{html.escape(s)}</th>" for label in metrics.values() for s in sources
    )
    body = []
    for method, estimate, refined in table_lines(results):
        rows = [
            find_row(results, method, estimate, refined, s, metric)
            for metric in metrics
            for s in sources
        ]
        cells = "".join(
            f"<td>{'-' if row is None or row['mean'] is None else format(row['mean'], '.2f')}</td>"
            for row in rows
        )
        name, what = line_name(method, estimate, refined)
        body.append(f"<tr><th>{name}</th><td>{what}</td>{cells}</tr>")
    return (
        "<section><details><summary>Other metrics</summary><div class='scroll'><table><thead><tr>"
        f"<th>method</th><th>estimate</th>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
        "</table></div></details></section>"
    )


def _scatters(results: Mapping[str, Any]) -> str:
    if len(sources_of(results)) < 2:
        return ""
    pictures = [
        plots.scatter(results, "oracle", False, "Oracle, raw"),
        plots.scatter(results, "selected", True, "Selected, refined"),
    ]
    figures = "".join(f"<figure>{picture}</figure>" for picture in pictures)
    return (
        f'<section><h2>Both sources at once</h2><div class="plots">{figures}</div><p>A small mark '
        "is a chunk, a large one a method's mean; crosses: the mixture as the estimate. A good "
        "separation lies up and to the right.</p></section>"
    )


def _curves(runs: Path) -> str:
    """Loss curves of codecs and priors."""
    figures, absent = [], []
    groups: dict[str, dict[str, list[Row]]] = {}
    for family, name in FAMILIES.items():
        folder = runs / "models" / family
        found = sorted(path.name for path in folder.glob("prior_*")) or [
            "prior_bass",
            "prior_drums",
        ]
        for run in ("vqvae", *found):
            path = folder / run / METRICS_FILE
            if not path.is_file():
                absent.append(f"{family}/{run}")
                continue
            title = "Codecs" if run == "vqvae" else f"Priors of the {name}"
            label = family if run == "vqvae" else run.removeprefix("prior_")
            groups.setdefault(title, {})[label] = read_metrics(path)
    for title, rows in groups.items():
        figures.append(f"<figure>{plots.losses(rows, title)}</figure>")
    note = missing(f"No training curves of: {', '.join(absent)}.") if absent else ""
    return (
        f'<section><h2>Training</h2><div class="plots">{"".join(figures)}</div>{note}'
        "<p>Thin lines: training; thick lines: validation. The two codecs' losses are made of "
        "different terms and are not comparable with each other.</p></section>"
    )


def _method(results: Mapping[str, Any]) -> str:
    """How the scores came about."""
    meta = results["meta"]
    data, machine = meta.get("data", {}), meta.get("machine", {})
    facts = {
        "Data": f"{_n(data, 'chunks')} chunks of {_n(data, 'chunk_samples')} samples from "
        f"{_n(data, 'songs')} of {_n(data, 'songs_in_split')} songs, {_n(data, 'sample_rate')} Hz; "
        f"silent is {data.get('silence_rule', '?')}",
        "Prepared with": data.get("settings", {}),
        "Candidates": meta.get("candidates", {}),
        "Training steps": {m: v.get("steps") for m, v in meta.get("models", {}).items()},
        "Seed": meta.get("seed"),
        "Values without a score": meta.get("skipped_values"),
        "Machine": machine,
        "Date": meta.get("date"),
    } | dict(meta.get("definitions", {}))
    items = "".join(
        f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(_plain(value))}</dd>"
        for name, value in facts.items()
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in meta.get("notes", []))
    return (
        "<section><details><summary>How the scores are defined and measured</summary>"
        f"<dl>{items}</dl><ul>{notes}</ul></details></section>"
    )


def _again(results: Mapping[str, Any]) -> str:
    meta = results["meta"]
    command = html.escape(str(meta.get("command", "python -m scripts.evaluate --help")))
    commit = html.escape(str(meta.get("git_commit") or "not known"))
    return (
        "<section><h2>Make it again</h2><p>Everything, from generated songs on:</p>"
        "<pre><code>make demo</code></pre><p>These scores and this page, from trained models:</p>"
        f"<pre><code>{command}\npython -m scripts.report --runs RUNS --output RUNS/report.html"
        f"</code></pre><p>Commit: <code>{commit}</code></p></section>"
    )


def _n(values: Mapping[str, Any], name: str) -> str:
    return html.escape(str(values.get(name, "?")))


def _plain(value: Any) -> str:
    """Nested values as words."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_plain(inner)}" for name, inner in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
