"""The tables of an ablation: rows with intervals, paired differences between rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from jukebox_core.evaluation.bootstrap import bootstrap_mean, finite, paired_difference
from jukebox_core.evaluation.results import mean_of_sources
from scripts._methods import PUBLISHED_METHODS
from scripts._results import interval_cell, markdown_table, row_name
from scripts._sweep import Draw, Scores
from scripts.ablate.rows import Row, seeded


class Table:
    """Scores by row, source and chunk, as means over the seeds."""

    def __init__(
        self,
        rows: Sequence[Row],
        scores: Mapping[Draw, Scores],
        seeds: int,
        sources: Sequence[str],
        songs: Sequence[str],
    ):
        """Gather the scores of the rows.

        Args:
            rows: of the table.
            scores: of their draws.
            seeds: of every draw.
            sources: of the data.
            songs: the song of every chunk. If songs have several chunks, intervals resample songs;
                of a single song they resample its chunks.
        """
        self.sources = tuple(sources)
        self.songs = list(songs) if 1 < len(set(songs)) < len(songs) else None
        self.seconds = {
            row.name: float(np.mean([scores[d].seconds for d in seeded(row.draw, seeds)]))
            for row in rows
        }
        self._estimators = {row.name: row.estimator for row in rows}
        self._values: dict[str, np.ndarray] = {
            row.name: np.array(
                [
                    [scores[d].values[row.estimator][source] for source in self.sources]
                    for d in seeded(row.draw, seeds)
                ],
                dtype=float,
            )  # [seeds, sources, chunks]
            for row in rows
        }

    @property
    def rows(self) -> list[str]:
        """Names of the rows, in order."""
        return list(self._values)

    def add(self, row: str, values: Mapping[str, Sequence[float | None]]) -> None:
        """Add a row without a draw: {source: SDR of every chunk, None for a silent source}."""
        self._values[row] = np.array([[values[source] for source in self.sources]], dtype=float)

    def per_chunk(self, row: str, source: str) -> np.ndarray:
        """SDR of every chunk, `mean` for the `mean_of_sources`; NaN where a source is silent."""
        values = self._values[row].mean(0)
        return _means(values) if source == "mean" else values[self.sources.index(source)]

    def line(self, row: str) -> dict[str, Any]:
        """A row as JSON: {source: mean and interval}, spread of the seeds, seconds, every chunk."""
        intervals = {
            source: bootstrap_mean(self.per_chunk(row, source), groups=self.songs).as_json()
            for source in (*self.sources, "mean")
        }
        means = np.nanmean(self._values[row], (1, 2))
        return {
            "row": row,
            "estimator": self._estimators.get(row),
            "sdr": intervals,
            "seed_spread": float(means.std(ddof=1)) if len(means) > 1 else None,
            "seconds": self.seconds.get(row),
            "chunks": {
                source: [*map(finite, self.per_chunk(row, source).tolist())]
                for source in self.sources
            },
            **({} if self.songs is None else {"songs": self.songs}),
        }


def compare(lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Compare rows of the same chunks, as `Table.line` gives them.

    Gives paired differences with intervals, per source and for the mean: the systems against each
    other, the default against the published, every step of the parts against the previous step,
    every estimator against the default one. Comparisons with missing rows are left out.
    """
    rows = {line["row"]: line["chunks"] for line in lines}
    songs = lines[0].get("songs") if lines else None
    for first, second in _pairs_of_rows(list(rows)):
        if first in rows and second in rows:
            a, b = (_columns(rows[name]) for name in (first, second))
            gaps = {name: paired_difference(a[name], b[name], songs).as_json() for name in a}
            yield {"first": first, "second": second, "difference": gaps}


def _pairs_of_rows(rows: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The rows (first, second) to compare."""
    kinds = [(e, kind) for e in ("oracle, raw", "refined") for kind in ("published", "default")]
    for estimate, kind in [*kinds, ("selected, raw", "default")]:
        for other in ("lqvae", "lass"):
            yield f"hybrid, {kind}: {estimate}", f"{other}, {kind}: {estimate}"
    for method in PUBLISHED_METHODS:
        for second in ("published: oracle, raw", "default: oracle, raw", "published: refined"):
            yield f"{method}, default: refined", f"{method}, {second}"
        for estimate in ("oracle, raw", "refined"):
            yield f"{method}-neural, default: {estimate}", f"{method}, default: {estimate}"
    for kind in ("oracle, raw", "refined", "mask network"):
        yield f"neural, default: {kind}", f"neural, no priors: {kind}"
        yield f"hybrid-neural, default: {kind}", f"neural, default: {kind}"
    yield "hybrid-neural, default: mask network", "hybrid-neural, default: refined"
    for row in rows:
        if row.startswith("baseline:"):
            yield "hybrid, default: refined", row
            yield "hybrid-neural, default: refined", row
            yield "hybrid-neural, default: mask network", row
            if not any(other.startswith("hybrid-neural") for other in rows):
                yield "neural, default: mask network", row
    for before, after in pairwise(row for row in rows if row.startswith("parts:")):
        yield after, before
    for row in rows:
        if row.startswith("estimator:") and not (
            "mask" in row or row in ("estimator: oracle", _DEFAULT)
        ):
            yield row, _DEFAULT
    yield "estimator: mask", "estimator: mask of one"


_DEFAULT = "estimator: spectral fit"


def _columns(chunks: Mapping[str, Sequence[float | None]]) -> dict[str, np.ndarray]:
    """{source: SDR of every chunk}, and their mean."""
    columns = {source: np.array(values, dtype=float) for source, values in chunks.items()}
    return columns | {"mean": _means(np.stack(list(columns.values())))}


def _means(values: np.ndarray) -> np.ndarray:
    """`mean_of_sources` of every chunk, from [sources, chunks]."""
    return np.array([mean_of_sources(chunk) for chunk in values.T.tolist()])


def markdown(lines: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The tables of docs/results.md: rows, differences, steps, choices."""
    names = list(lines[0]["sdr"])
    text = markdown_table(["row", *names, "seeds ±", "s / chunk"], map(row_cells, lines))
    kinds = dict.fromkeys(kind_of(item) for item in comparisons)
    for kind in kinds:
        some = [difference_cells(item) for item in comparisons if kind_of(item) == kind]
        text += "\n" + markdown_table([kind, *names], some)
    return text


def row_cells(line: Mapping[str, Any]) -> list[str]:
    """A row's name, scores, spread between seeds and seconds per chunk."""
    spread = "-" if line["seed_spread"] is None else f"{line['seed_spread']:.2f}"
    seconds = "-" if line["seconds"] is None else f"{line['seconds']:.1f}"
    return [row_name(line["row"]), *map(interval_cell, line["sdr"].values()), spread, seconds]


def kind_of(item: Mapping[str, Any]) -> str:
    """`step` between consecutive parts, `choice` among estimators, or `difference`."""
    group = item["first"].partition(":")[0]
    return {"parts": "step", "estimator": "choice"}.get(group, "difference")


def difference_cells(item: Mapping[str, Any]) -> list[str]:
    """A comparison's name and intervals."""
    first, second = row_name(item["first"]), row_name(item["second"])
    name = f"{first} − {second}"
    if kind_of(item) == "step":
        name = first.removeprefix("parts: ")
    elif kind_of(item) == "choice":
        name = f"{first} − {second}".replace("estimator: ", "")
    return [name, *(interval_cell(gap, "+") for gap in item["difference"].values())]
