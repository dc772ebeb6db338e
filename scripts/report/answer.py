"""The report's answer in sentences, and where the scores come from."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from jukebox_core.evaluation.bootstrap import Interval
from jukebox_core.evaluation.results import as_interval, difference, find_row, paired, sources_of
from scripts._results import ESTIMATES, NAMES, SYSTEMS, default_line
from scripts.report.intervals import Scale, span, strip, ticks
from scripts.report.page import value_of


def headline(results: Mapping[str, Any]) -> str:
    """Return the section with the answer: sentences, a card per system, paired differences."""
    answer, beside = _answers(results)
    data = results["meta"].get("data", {})
    return (
        f'<section id="answer"><h2>Answer</h2><p class="answer">{answer}</p>{_cards(results)}'
        f"{_differences(results)}<p>{beside}</p>"
        f'<p class="note">Mean SDR, higher is better, of {value_of(data, "chunks")} chunks of '
        f"{value_of(data, 'songs')} songs (split: {value_of(data, 'split')}), separated without "
        "the truth and refined by a mask of "
        f"the mixture; mean of the sources. {about_data(results)}</p></section>"
    )


_COMPARED = (("hybrid", "lqvae"), ("hybrid", "lass"), ("hybrid-neural", "hybrid"))


def _cards(results: Mapping[str, Any]) -> str:
    def scores(method: str, names: Sequence[str]) -> dict[str, Interval]:
        rows = {n: find_row(results, method, "selected", True, n, "sdr") for n in names}
        return {name: own for name, row in rows.items() if (own := as_interval(row)).n}

    means = {m: own["mean"] for m in SYSTEMS if (own := scores(m, ["mean"]))}
    scale = Scale.over(x for mean in means.values() for x in mean[:3])
    cards = []
    for method, mean in means.items():
        own = scores(method, sources_of(results))
        each = [f"{html.escape(source)} {score.mean:.2f}" for source, score in own.items()]
        cards.append(
            f'<div class="card" style="--c:var(--{method})"><h3>{NAMES[method]}</h3>'
            f'<p class="big">{mean.mean:.2f} <small>dB SDR</small></p>'
            f'<div class="span" style="width:100%">{span(mean, scale)}</div>'
            f"<p>95%: {mean.low:.2f} to {mean.high:.2f}<br>{', '.join(each)}</p></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _differences(results: Mapping[str, Any]) -> str:
    """Return differences of systems: a point per chunk, the mean and its interval."""
    lines = []
    for question in (("selected", True), ("oracle", False)):
        for one, other in _COMPARED:
            first, second = (one, *question), (other, *question)
            if values := paired(results, first, second):
                gap = difference(results, first, second)
                lines.append((one, other, ESTIMATES[question], values, gap))
    if not lines:
        return ""
    scale = Scale.over(value for *_, values, _ in lines for value in values)
    rows = "".join(
        f"<div><b>{NAMES[one]} &minus; {NAMES[other]}</b><br>"
        f'<span class="note">{words}</span></div>'
        f'<div class="value"><b>{gap.mean:+.2f} dB</b><br>'
        f'<span class="note">{gap.low:+.2f} to {gap.high:+.2f}</span></div>'
        f'<div class="strip-cell" style="--c:var(--{other})">{strip(values, gap, scale)}</div>'
        for one, other, words, values, gap in lines
    )
    return (
        f'<div class="paired">{rows}{ticks(scale)}<div class="ends note"><span>&larr; the other is '
        "better</span><span>the first is better &rarr;</span></div></div>"
        '<p class="note">A small point is a chunk: the SDR of the first system minus the SDR of '
        "the other one. Large points are means, lines their 95% intervals.</p>"
    )


def _answers(results: Mapping[str, Any]) -> tuple[str, str]:
    """Compare the systems, and one system with the baselines."""
    sentences = [_comparison(results, *pair) for pair in _COMPARED]
    answer = " ".join(text for text in sentences if text) or (
        "The question is open: the results lack the hybrid or both other systems."
    )
    methods = {row["method"] for row in results["rows"]}
    systems = [method for method in reversed(SYSTEMS) if method in methods]
    plain = [
        _comparison(results, method, other)
        for method in systems[:1]
        for other in ("mixture", "hpss", "nmf", "supervised")
    ]
    return answer, " ".join(text for text in plain if text)


def _comparison(results: Mapping[str, Any], first: str, second: str) -> str:
    """Return a sentence on the paired difference; empty if a method is missing."""
    interval = difference(results, default_line(first), default_line(second))
    if interval.n == 0:
        return ""
    low, high = round(interval.low, 2), round(interval.high, 2)  # as shown
    verdict = "worse than" if high < 0 else "not distinguishable from"
    verdict = "better than" if low > 0 else verdict
    names = NAMES | {
        "hybrid": "the hybrid",
        "hybrid-neural": "the hybrid with the neural likelihood",
        "mixture": "the mixture taken as both estimates",
        "supervised": "the supervised mask estimator",
    }
    subject = names[first][0].upper() + names[first][1:]
    return (
        f"{subject} is <strong>{verdict} {names[second]}</strong> here: "
        f"{interval.mean:+.2f} dB (95% interval {interval.low:+.2f} to {interval.high:+.2f}, "
        f"{interval.n} paired chunks)."
    )


def about_data(results: Mapping[str, Any]) -> str:
    """Describe the songs and models of the scores."""
    meta = results["meta"]
    presets = {m.get("preset") for m in meta.get("models", {}).values()} - {None}
    names = html.escape(", ".join(sorted(map(str, presets))))
    sizes = f" Models: preset {names}." if presets else ""
    name = value_of(meta.get("data", {}), "folder")
    origin = {
        True: "composed and rendered by scripts.make_synthetic, so these are not scores on "
        "Slakh2100",
        False: "recorded as not generated",
        None: "whose manifest does not record the origin of the songs, so these are scores on "
        "Slakh2100 only if you prepared them from it",
    }[meta.get("data", {}).get("generated")]
    return (
        f"Songs: folder <code>{name}</code>, {origin}.{sizes} Scores do not carry "
        "over to other data sets; look at the order and the differences. The intervals cover the "
        "choice of chunks, not the randomness of training. The project's "
        "<code>docs/results.md</code> has results on more songs, two trainings and other music."
    )
