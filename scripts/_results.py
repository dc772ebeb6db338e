"""Labels of methods and estimates, tables as text, and the marks of a report."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jukebox_core.evaluation.results import Line, find_row, sources_of
from jukebox_core.files import marked

REPORT_TITLE = "LQ-VAE, LASS and their hybrid: separating music in a latent space"
REPORT_MARK = '<meta name="generator" content="latent-separation report">'
is_report = marked("<!doctype html>", REPORT_MARK, f"<title>{html.escape(REPORT_TITLE)}</title>")
"""For `files.check_replaceable`: recognise a report; old reports have only the title."""

NAMES = {
    "mixture": "Mixture",
    "hpss": "HPSS",
    "nmf": "NMF",
    "supervised": "Supervised mask (LSTM)",
    "codec": "Codec ceiling",
    "codec_lass": "Codec ceiling (LASS)",
    "irm": "Ideal ratio mask",
    "lqvae": "LQ-VAE",
    "lass": "LASS",
    "hybrid": "Hybrid",
    "lqvae-neural": "LQ-VAE + neural",
    "lass-neural": "LASS + neural",
    "hybrid-neural": "Hybrid + neural",
    "neural": "Neural",
}
SYSTEMS = ("lqvae", "lass", "hybrid", "lqvae-neural", "lass-neural", "hybrid-neural", "neural")
SHOWN = (("oracle", False), ("selected", False), ("selected", True))
ESTIMATES = {
    ("oracle", False): "oracle pick, raw",
    ("oracle", True): "oracle pick, refined",
    ("selected", False): "own pick, raw",
    ("selected", True): "what you get",
    ("single", False): "first candidate, raw",
    ("single", True): "first candidate, refined",
}
"""{(estimate, refined): label}."""
REFERENCE_NOTE = "Slakh2100, oracle of 64, Colab T4; context only"
REFERENCE_TABLE = {
    "lqvae": {"bass": 3.41, "drums": 5.41, "seconds": 254.77},
    "lass": {"bass": 3.22, "drums": 4.78, "seconds": 148.57},
    "hybrid": {"bass": 4.72, "drums": 5.15, "seconds": 148.4},
}


def reference_table(sources: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """Return the reference report's scores, which are of mixtures of bass and drums alone."""
    return REFERENCE_TABLE if {*sources} == {"bass", "drums"} else {}


def default_line(method: str) -> Line:
    """Return the line of what users get: a system refined, a baseline as it is."""
    return method, "selected", method in SYSTEMS


def table_lines(results: Mapping[str, Any]) -> list[Line]:
    """Return the lines of the table: systems first, then the baselines."""
    rows = results["rows"]
    there = list(dict.fromkeys((row["method"], row["estimate"], row["refined"]) for row in rows))
    systems = [(m, *shown) for m in SYSTEMS for shown in SHOWN if (m, *shown) in there]
    baselines = [line for name in NAMES for line in there if line[0] == name not in SYSTEMS]
    return systems + baselines


def line_name(method: str, estimate: str, refined: bool) -> tuple[str, str]:
    """Return the labels of a line: the method and the estimate."""
    name = NAMES.get(method, method)
    if method not in SYSTEMS:
        return name, "uses the truth" if estimate == "oracle" else "-"
    return name, ESTIMATES[estimate, refined]


def cell(row: Mapping[str, Any] | None) -> str:
    """Format a row as `4.21 [3.80, 4.60]`, or `-` without a score."""
    if row is None or row["mean"] is None:
        return "-"
    return f"{row['mean']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"


def interval_cell(interval: Mapping[str, float | None], sign: str = "") -> str:
    """Mean and interval of dB, as the documents write it; `-` without a score."""
    if interval["mean"] is None:
        return "-"
    mean, low, high = (format(interval[key], f"{sign}.2f") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def format_table(results: Mapping[str, Any], metric: str = "sdr") -> str:
    """Format the scores with their 95% intervals, beside the reference report's scores.

    Args:
        results: the content of results.json.
        metric: one of `scores.METRICS`.
    """
    sources = sources_of(results)
    table = reference_table(sources)
    beside = sources if table else ()
    head = ["method", "estimate", *sources, "mean", "s / chunk", *(f"{s} *" for s in beside)]
    body = []
    for line in table_lines(results):
        rows = [find_row(results, *line, source, metric) for source in (*sources, "mean")]
        seconds = results.get("seconds_per_chunk", {}).get(line[0])
        time = "-" if seconds is None else f"{seconds:.2f}"
        reference = table.get(line[0], {}) if line[1:] == ("oracle", False) else {}
        scores = (f"{reference[name]:.2f}" if name in reference else "" for name in beside)
        body.append([*line_name(*line), *map(cell, rows), time, *scores])
    meta = results["meta"]
    chunks, songs = (meta.get("data", {}).get(name, "?") for name in ("chunks", "songs"))
    title = f"{metric} in dB, mean and 95% interval; chunks: {chunks}, songs: {songs}"
    title += ", bootstrap over songs" if "song_of" in meta else ""
    notes = [f"* reference report: {REFERENCE_NOTE}"] if beside else []
    notes += meta.get("notes", [])
    return "\n".join([title, "", text_table([head, *body]), "", *notes])


def text_table(lines: Sequence[Sequence[str]], left: int = 2) -> str:
    """Format cells as aligned text; the first line is the head, the first `left` columns names."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'<' if i < left else '>'}{w}}}" for i, w in enumerate(widths))
    text = [form.format(*line).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Format cells as a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *body)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]) + "\n"


def row_name(row: str) -> str:
    """Return a row's name with the label of its system."""
    method, comma, rest = row.partition(",")
    return NAMES[method] + comma + rest if method in SYSTEMS else row
