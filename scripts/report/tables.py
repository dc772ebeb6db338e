"""Tables of the report: scores with intervals, other metrics, what each part adds."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from jukebox_core.evaluation.bootstrap import Interval
from jukebox_core.evaluation.results import as_interval, find_row, sources_of
from jukebox_core.evaluation.scores import MUSEVAL
from scripts._results import (
    NAMES,
    REFERENCE_NOTE,
    REFERENCE_TABLE,
    SYSTEMS,
    line_name,
    row_name,
    table_lines,
)
from scripts.report.intervals import Scale, span
from scripts.report.page import head_cells, table


def scores(results: Mapping[str, Any], metric: str = "sdr") -> str:
    """Return the section with the scores of all methods and estimates."""
    sources = (*sources_of(results), "mean")
    lines = table_lines(results)
    means = [find_row(results, *line, "mean", metric) for line in lines]
    scale = Scale.over(x for row in means for x in as_interval(row)[:3])
    body, before = [], None
    for line, mean in zip(lines, means, strict=True):
        name, what = line_name(*line)
        group = line[0] if line[0] in SYSTEMS else "baselines"
        classes = ["main"] * (line[1:] == ("selected", True)) + ["first"] * (group != before)
        before = group
        cells = "".join(
            f"<td>{_cell(as_interval(find_row(results, *line, source, metric)))}</td>"
            for source in sources
        )
        seconds = results.get("seconds_per_chunk", {}).get(line[0])
        picture = span(as_interval(mean), scale, hollow=line[1] == "oracle")
        body.append(
            f'<tr class="{" ".join(classes)}" style="--c:{_colour(line[0])}"><th>{name}</th>'
            f'<td class="left">{what}</td>{cells}'
            f'<td class="span">{picture}</td>'
            f"<td>{'-' if seconds is None else format(seconds, '.2f')}</td></tr>"
        )
    caption = (
        "SDR of whole chunks in dB, mean [95% interval]; the picture shows the mean of the "
        "sources, hollow if the estimate uses the truth"
    )
    head = (
        f'<th>method</th><th class="left">estimate</th>{head_cells(sources)}'
        f"{_scale_cell(scale)}<th>s / chunk</th>"
    )
    return (
        f'<section id="scores"><h2>Scores</h2>{table(caption, head, body)}'
        "<p><em>What you get</em> averages all candidates into a mask of the mixture. "
        "<em>Raw</em> is one candidate as the codec decodes it: the <em>own pick</em> fits the "
        "mixture's spectrum best; the <em>oracle pick</em> is the best per source by comparison "
        "with the truth, as in the reference report. Seconds are wall-clock time, possibly beside "
        "other programs; <code>benchmarks.bench_methods</code> compares the costs.</p>"
        f"{_reference_table()}{_other_metrics(results)}</section>"
    )


def _reference_table() -> str:
    rows = [
        f'<tr style="--c:{_colour(method)}"><th>{NAMES[method]}</th><td>{row["bass"]:.2f}</td>'
        f"<td>{row['drums']:.2f}</td><td>{row['seconds']:.1f}</td></tr>"
        for method, row in REFERENCE_TABLE.items()
    ]
    return (
        "<details open><summary>The reference report</summary>"
        f"{table(REFERENCE_NOTE, head_cells(['method', 'bass', 'drums', 's']), rows)}"
        "<p>Its data, models and machine differ from these: take its numbers as context, not as a "
        "comparison.</p></details>"
    )


def _other_metrics(results: Mapping[str, Any]) -> str:
    """Return the means of the other metrics, collapsed."""
    labels = {
        "sdr_bsseval": "SDR, museval windows",
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
    for line in table_lines(results):
        rows = [find_row(results, *line, s, metric) for metric in metrics for s in sources]
        cells = "".join(
            f"<td>{'-' if row is None or row['mean'] is None else format(row['mean'], '.2f')}</td>"
            for row in rows
        )
        name, what = line_name(*line)
        body.append(
            f'<tr style="--c:{_colour(line[0])}"><th>{name}</th><td class="left">{what}</td>'
            f"{cells}</tr>"
        )
    return (
        "<details><summary>Other metrics</summary><div class='scroll'><table><thead><tr>"
        f'<th>method</th><th class="left">estimate</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div></details>"
    )


def ablation(content: Mapping[str, Any]) -> str:
    """Return the section of an ablation: what each part adds, and the paired differences.

    Raises:
        KeyError: the content is not an ablation.
    """
    added = [
        (html.escape(line["row"].removeprefix("parts: ")), line["sdr"])
        for line in content["rows"]
        if line["row"].startswith("parts: ")
    ]
    sources = [*(name for name in content["rows"][0]["sdr"] if name != "mean"), "mean"]
    sweep = content["study"]
    caption = (
        f"{sweep['chunks']} chunks, {sweep['candidates']} candidates, samplings: {sweep['seeds']}; "
        "SDR in dB, refined"
    )
    differences = [
        (
            " &minus; ".join(html.escape(row_name(item[key])) for key in ("first", "second")),
            item["difference"],
        )
        for item in content["comparisons"]
    ]
    return (
        '<section id="parts"><h2>What each part adds</h2><p>The parts are added one by one, from '
        "the published hybrid to what you get.</p>"
        f"{_spans(caption, sources, added) if added else ''}"
        "<details><summary>Paired differences</summary>"
        f"{_spans('in dB, mean [95% interval]', sources, differences, '+')}</details></section>"
    )


def _spans(
    caption: str,
    sources: Sequence[str],
    lines: Sequence[tuple[str, Mapping[str, Any]]],
    sign: str = "",
) -> str:
    """Return a table of {source: mean and interval} per line; pictures show the last source.

    The names of the lines are HTML.
    """
    scores = [[Interval(**values[source]) for source in sources] for _, values in lines]
    scale = Scale.over(x for row in scores for x in row[-1][:3])
    body = [
        f"<tr><th>{name}</th>{''.join(f'<td>{_cell(score, sign)}</td>' for score in row)}"
        f'<td class="span" style="--c:var(--hybrid)">{span(row[-1], scale)}</td></tr>'
        for (name, _), row in zip(lines, scores, strict=True)
    ]
    head = f"<th></th>{head_cells(sources)}{_scale_cell(scale)}"
    return table(html.escape(caption), head, body)


def _cell(interval: Interval, sign: str = "") -> str:
    if interval.n == 0:
        return "-"
    low, high = (format(x, f"{sign}.2f") for x in (interval.low, interval.high))
    return f"{format(interval.mean, f'{sign}.2f')} <i>[{low}, {high}]</i>"


def _scale_cell(scale: Scale) -> str:
    return f'<th class="left">{scale.low:g} to {scale.high:g} dB</th>'


def _colour(method: str) -> str:
    return f"var(--{method})" if method in SYSTEMS else "var(--plain)"
