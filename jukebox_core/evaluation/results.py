"""Results of an evaluation: read them, average them over chunks, compare estimates in pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from jukebox_core.evaluation.bootstrap import Interval, bootstrap_mean, finite

Line: TypeAlias = tuple[str, str, bool]
"""(method, estimate, refined): one line of the table."""
_FORMER_NAMES = {'"sdr_seed"': '"sdr_bsseval"'}  # of version 0.1


def load_results(path: str | Path) -> dict[str, Any]:
    """Read the results of an evaluation, also of version 0.1.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has other content.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; an evaluation writes it")
    try:
        text = path.read_text(encoding="utf-8")
        for former, name in _FORMER_NAMES.items():
            text = text.replace(former, name)
        results = json.loads(text)
        for key, kind in {"meta": dict, "rows": list, "chunks": list}.items():
            if not isinstance(results[key], kind):
                raise TypeError(key)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} does not hold the results of an evaluation") from error
    return results


def make_rows(
    chunks: Sequence[Mapping[str, Any]],
    sources: Sequence[str],
    seed: int = 0,
    songs: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Average the chunks: a row with a 95% bootstrap interval per line, source and metric.

    The source `mean` is the mean over the sources of a chunk: of two sources, both must have a
    score; of more, those count that have one.

    Args:
        chunks: items of the results' `chunks`.
        sources: of the data set.
        seed: of the resamples.
        songs: {track: its song}, to resample songs; None: resample chunks.
    """
    groups: dict[Line, list[Mapping[str, Any]]] = {}
    for item in chunks:
        groups.setdefault((item["method"], item["estimate"], item["refined"]), []).append(item)
    rows = []
    for (method, estimate, refined), items in groups.items():
        clusters = None if songs is None else [songs[item["track"]] for item in items]
        for source in (*sources, "mean"):
            for metric in items[0]["values"][sources[0]]:
                per_chunk = [chunk_value(item, source, metric) for item in items]
                interval = bootstrap_mean(per_chunk, seed, clusters)
                rows.append(
                    {
                        "method": method,
                        "estimate": estimate,
                        "refined": refined,
                        "source": source,
                        "metric": metric,
                        "mean": finite(interval.mean),
                        "ci_low": finite(interval.low),
                        "ci_high": finite(interval.high),
                        "n": interval.n,
                    }
                )
    return rows


def chunk_value(item: Mapping[str, Any], source: str, metric: str) -> float:
    """Return a score of one item of `chunks`; NaN if it has none."""
    if source != "mean":
        value = item["values"][source][metric]
        return math.nan if value is None else float(value)
    return mean_of_sources([chunk_value(item, name, metric) for name in item["values"]])


def mean_of_sources(values: Sequence[float]) -> float:
    """Return the mean score of a chunk's sources, of which some may be silent: NaN.

    Of more than two sources the silent ones are left out; of two, none may be silent. NaN if there
    is no score.
    """
    if len(values) > 2:
        values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def series(
    results: Mapping[str, Any], method: str, estimate: str, refined: bool, source: str, metric: str
) -> dict[int, float]:
    """Return {chunk: score} of one line of the table."""
    return {
        item["chunk"]: chunk_value(item, source, metric)
        for item in results["chunks"]
        if (item["method"], item["estimate"], item["refined"]) == (method, estimate, refined)
    }


def paired(
    results: Mapping[str, Any],
    first: Line,
    second: Line,
    source: str = "mean",
    metric: str = "sdr",
) -> list[float]:
    """Return `first - second` for every chunk that has a score of both."""
    return list(_gaps(results, first, second, source, metric).values())


def _gaps(
    results: Mapping[str, Any], first: Line, second: Line, source: str, metric: str
) -> dict[int, float]:
    """{chunk: `first - second`}."""
    a, b = (series(results, *line, source, metric) for line in (first, second))
    gaps = {i: a[i] - b[i] for i in sorted(set(a) & set(b))}
    return {i: gap for i, gap in gaps.items() if not math.isnan(gap)}


def difference(
    results: Mapping[str, Any],
    first: Line,
    second: Line,
    source: str = "mean",
    metric: str = "sdr",
) -> Interval:
    """Return the mean of `first - second` over the chunks, with its 95% interval.

    The bootstrap resamples what the results' own intervals resample: chunks, or songs.
    """
    gaps = _gaps(results, first, second, source, metric)
    groups = None
    if songs := results.get("meta", {}).get("song_of"):
        tracks = {item["chunk"]: item["track"] for item in results["chunks"]}
        groups = [songs[tracks[i]] for i in gaps]
    return bootstrap_mean(list(gaps.values()), groups=groups)


def as_interval(row: Mapping[str, Any] | None) -> Interval:
    """Return a row's mean with its interval; NaN without a row or a score."""
    if row is None or row["mean"] is None:
        return Interval(math.nan, math.nan, math.nan, 0)
    return Interval(row["mean"], row["ci_low"], row["ci_high"], row["n"])


def find_row(
    results: Mapping[str, Any], method: str, estimate: str, refined: bool, source: str, metric: str
) -> dict[str, Any] | None:
    """Return the row with these properties; None if there is none."""
    names = ("method", "estimate", "refined", "source", "metric")
    row = dict(zip(names, (method, estimate, refined, source, metric), strict=True))
    return next((other for other in results["rows"] if row.items() <= other.items()), None)


def sources_of(results: Mapping[str, Any]) -> list[str]:
    """Return the sources, without `mean`."""
    return [s for s in dict.fromkeys(row["source"] for row in results["rows"]) if s != "mean"]
