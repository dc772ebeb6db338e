"""Reading the scores that scripts.evaluate writes: rows, the table, the original's scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jukebox_core.evaluation.bootstrap import Interval, bootstrap_mean

METRICS = ("sdr_seed", "sdr", "si_sdr", "si_sdri")
MUSEVAL = "sdr_museval"  # a fifth, with --museval
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
}
SYSTEMS = ("lqvae", "lass", "hybrid")
SHOWN = (("oracle", False), ("selected", False), ("selected", True))
ESTIMATES = {
    ("oracle", False): "oracle pick, raw",
    ("oracle", True): "oracle pick, refined",
    ("selected", False): "own pick, raw",
    ("selected", True): "what you get",
    ("single", False): "first candidate, raw",
    ("single", True): "first candidate, refined",
}
"""How people call an estimate and whether it is refined, everywhere the same."""
SEED_NOTE = "Slakh2100, oracle of 64, Colab T4; context only"
SEED_TABLE = {
    "lqvae": {"bass": 3.41, "drums": 5.41, "seconds": 254.77},
    "lass": {"bass": 3.22, "drums": 4.78, "seconds": 148.57},
    "hybrid": {"bass": 4.72, "drums": 5.15, "seconds": 148.4},
}


def load_results(path: str | Path) -> dict[str, Any]:
    """The JSON of scripts.evaluate.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; scripts.evaluate writes it")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        for key, kind in {"meta": dict, "rows": list, "chunks": list}.items():
            if not isinstance(results[key], kind):
                raise TypeError(key)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold the results of scripts.evaluate") from error
    return results


@contextmanager
def describing(path: Path, problem: str) -> Iterator[None]:
    """Name the file in the errors of a block that reads values from it.

    Raises:
        ValueError: `PATH PROBLEM` if the values are not as expected.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path} {problem} ({error!r})") from error


def make_rows(
    chunks: Sequence[Mapping[str, Any]], sources: Sequence[str], seed: int = 0
) -> list[dict[str, Any]]:
    """Means with 95% bootstrap intervals per method, estimate, source and metric.

    The source `mean` is the mean over the sources of a chunk, for chunks where all have a score.
    """
    groups: dict[tuple[str, str, bool], list[Mapping[str, Any]]] = {}
    for item in chunks:
        groups.setdefault((item["method"], item["estimate"], item["refined"]), []).append(item)
    rows = []
    for (method, estimate, refined), items in groups.items():
        for source in (*sources, "mean"):
            for metric in items[0]["values"][sources[0]]:
                per_chunk = [chunk_value(item, source, metric) for item in items]
                interval = bootstrap_mean(per_chunk, seed=seed)
                rows.append(
                    {
                        "method": method,
                        "estimate": estimate,
                        "refined": refined,
                        "source": source,
                        "metric": metric,
                        "mean": _number(interval.mean),
                        "ci_low": _number(interval.low),
                        "ci_high": _number(interval.high),
                        "n": interval.n,
                    }
                )
    return rows


def chunk_value(item: Mapping[str, Any], source: str, metric: str) -> float:
    """A value of one item of `chunks`; NaN where there is none."""
    if source != "mean":
        value = item["values"][source][metric]
        return math.nan if value is None else float(value)
    values = [chunk_value(item, name, metric) for name in item["values"]]
    return sum(values) / len(values)


def series(
    results: Mapping[str, Any], method: str, estimate: str, refined: bool, source: str, metric: str
) -> dict[int, float]:
    """{chunk: value} of one way to estimate."""
    return {
        item["chunk"]: chunk_value(item, source, metric)
        for item in results["chunks"]
        if (item["method"], item["estimate"], item["refined"]) == (method, estimate, refined)
    }


def paired(
    results: Mapping[str, Any],
    first: tuple[str, str, bool],
    second: tuple[str, str, bool],
    source: str = "mean",
    metric: str = "sdr",
) -> list[float]:
    """`first - second` of every chunk that both have a score of; (method, estimate, refined)."""
    a, b = (series(results, *line, source, metric) for line in (first, second))
    gaps = [a[i] - b[i] for i in sorted(set(a) & set(b))]
    return [gap for gap in gaps if not math.isnan(gap)]


def difference(
    results: Mapping[str, Any],
    first: str,
    second: str,
    source: str = "mean",
    metric: str = "sdr",
    how: tuple[str, bool] | None = None,
) -> Interval:
    """The mean of `first - second` over the chunks, paired.

    how: (estimate, refined) of both; default: what each gives without the truth, a system's
    refined, a baseline's (the mixture, HPSS) as it is.
    """
    a, b = ((method, *(how or ("selected", method in SYSTEMS))) for method in (first, second))
    return bootstrap_mean(paired(results, a, b, source, metric))


def as_interval(row: Mapping[str, Any] | None) -> Interval:
    """A row of `rows` as a mean with its interval; NaN where there is none."""
    if row is None or row["mean"] is None:
        return Interval(math.nan, math.nan, math.nan, 0)
    return Interval(row["mean"], row["ci_low"], row["ci_high"], row["n"])


def find_row(
    results: Mapping[str, Any], method: str, estimate: str, refined: bool, source: str, metric: str
) -> dict[str, Any] | None:
    """The row of `rows` with these properties."""
    wanted = {
        "method": method,
        "estimate": estimate,
        "refined": refined,
        "source": source,
        "metric": metric,
    }
    return next((row for row in results["rows"] if wanted.items() <= row.items()), None)


def table_lines(results: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(method, estimate, refined) of the table's lines: systems first, then the baselines."""
    there = list(
        dict.fromkeys((row["method"], row["estimate"], row["refined"]) for row in results["rows"])
    )
    systems = [(m, *shown) for m in SYSTEMS for shown in SHOWN if (m, *shown) in there]
    baselines = [line for name in NAMES for line in there if line[0] == name not in SYSTEMS]
    return systems + baselines


def line_name(method: str, estimate: str, refined: bool) -> tuple[str, str]:
    """How a line is called: the method, and what was chosen."""
    name = NAMES.get(method, method)
    if method not in SYSTEMS:
        return name, "uses the truth" if estimate == "oracle" else "-"
    return name, ESTIMATES[estimate, refined]


def sources_of(results: Mapping[str, Any]) -> list[str]:
    """The sources, without `mean`."""
    return [s for s in dict.fromkeys(row["source"] for row in results["rows"]) if s != "mean"]


def cell(row: Mapping[str, Any] | None) -> str:
    """`4.21 [3.80, 4.60]`, or `-`."""
    if row is None or row["mean"] is None:
        return "-"
    return f"{row['mean']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"


def format_table(results: Mapping[str, Any], metric: str = "sdr") -> str:
    """The scores as aligned text, with 95% intervals, beside the original report's.

    Args:
        results: what scripts.evaluate wrote.
        metric: `sdr`, `sdr_seed`, `si_sdr` or `si_sdri`.
    """
    sources = sources_of(results)
    head = ["method", "estimate", *sources, "mean", "s / chunk"]
    head += [f"{name} *" for name in sources]
    body = []
    for method, estimate, refined in table_lines(results):
        rows = [
            find_row(results, method, estimate, refined, source, metric)
            for source in (*sources, "mean")
        ]
        seconds = results.get("seconds_per_chunk", {}).get(method)
        seed = SEED_TABLE.get(method, {}) if (estimate, refined) == ("oracle", False) else {}
        body.append(
            [
                *line_name(method, estimate, refined),
                *map(cell, rows),
                "-" if seconds is None else f"{seconds:.2f}",
                *(f"{seed[name]:.2f}" if name in seed else "" for name in sources),
            ]
        )
    meta = results["meta"]
    data = meta.get("data", {})
    title = (
        f"{metric} in dB, mean and 95% interval; chunks: {data.get('chunks', '?')}, "
        f"songs: {data.get('songs', '?')}"
    )
    notes = [f"* original report: {SEED_NOTE}", *meta.get("notes", [])]
    return "\n".join([title, "", *aligned([head, *body]), "", *notes])


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    out = []
    for number, line in enumerate(lines):
        left = [text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)]
        right = [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)]
        out.append("  ".join(left + right).rstrip())
        if number == 0:
            out.append("  ".join("-" * width for width in widths))
    return out


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
