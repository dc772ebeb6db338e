"""Parity checks of counts and code sums, and of upstream's files of them."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jukebox_core.upstream.tables import (
    CountTable,
    read_counts,
    read_sums,
    write_counts,
    write_sums,
)
from lass.counter import TripleCounter
from lass.counts import Counts, from_keys, symmetrise
from lass.likelihood import CountLikelihood
from lqvae.sums import code_sums
from scripts.check_parity.fixtures import FORWARD, Fixture, Report, check
from scripts.check_parity.posterior import in_order


@check("sum_counts")
def sum_counts(fixture: Fixture, report: Report) -> None:
    """Counts after some iterations, and their normalised log-likelihoods."""
    k = fixture.info["l_bins"]
    for key in fixture.arrays:
        if match := re.fullmatch(r"out/coords_iter(\d+)", key):
            counts = _counted(fixture, k, int(match[1]))
            _same_counts(fixture, report, counts, match[1])
    counts = _counted(fixture, k, len(fixture.arrays["in/x1"]))
    for key in fixture.arrays:
        if match := re.fullmatch(r"out/lambda([\d.]+)/data", key):
            _same_slices(fixture, report, counts, match[1])


def _counted(fixture: Fixture, k: int, iterations: int) -> Counts:
    """The first iterations, counted in bounded memory, for both orders of the sources."""
    with tempfile.TemporaryDirectory() as folder:
        counter = TripleCounter(k, Path(folder) / "spool", buffer=100)
        for i in range(iterations):
            counter.add(*(fixture.arrays[f"in/{name}"][i] for name in ("x1", "x2", "mix")))
        keys, seen = counter.result()
        return symmetrise(from_keys(k, np.array(keys), np.array(seen)))


def _same_counts(fixture: Fixture, report: Report, counts: Counts, iterations: str) -> None:
    coords = fixture.arrays[f"out/coords_iter{iterations}"]
    ours = np.stack([counts.first, counts.second, counts.mixture, counts.counts])
    theirs = np.concatenate([coords, fixture.arrays[f"out/counts_iter{iterations}"][None]])
    ours, theirs = (x[:, np.lexsort(x[2::-1])] for x in (ours, theirs))
    report.equal("TripleCounter, symmetrise", ours, theirs)


def _same_slices(fixture: Fixture, report: Report, counts: Counts, weight: str) -> None:
    likelihood = CountLikelihood(counts, float(weight), symmetric=False)
    coords = fixture.tensor(f"out/lambda{weight}/coords")
    data = fixture.tensor(f"out/lambda{weight}/data")
    offsets = fixture.arrays[f"out/lambda{weight}/offsets"]
    got, expected = [], []
    for code, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        report.equal("CountLikelihood.is_seen", likelihood.is_seen(code), bool(stop > start))
        if stop > start:
            scores = likelihood.scores(code)
            assert scores.pairs is not None
            row = scores.values.unsqueeze(0)
            got.append(in_order(row, scores.pairs, coords[:, start:stop], counts.n_codes)[0])
            expected.append(data[start:stop])
    report.close("CountLikelihood.scores", torch.cat(got), torch.cat(expected), FORWARD)


@check(r"sum_dist_\d+")
def sum_dist(fixture: Fixture, report: Report) -> None:
    """The counts file: read, equal to the recorded counts, and written back the same."""
    table = read_counts(fixture.path)
    report.equal("read_counts", table.coords, fixture.tensor("coords").long())
    report.equal("read_counts", table.counts, fixture.tensor("data").long())
    report.equal("read_counts", table.n_codes, int(fixture.arrays["shape"][0]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / fixture.path.name
        write_counts(path, table)
        written = Fixture(path)
        same = set(written.arrays) == set(fixture.arrays)
        report.error("write_counts", float(not same), 0.0)
        for name, array in fixture.arrays.items():
            report.equal("write_counts", written.arrays[name], array)
            report.error("write_counts", float(written.arrays[name].dtype != array.dtype), 0.0)
    sibling = fixture.path.with_name("sum_counts.npz")
    iterations = fixture.name.rsplit("_", 1)[1]
    if sibling.is_file():
        recorded = Fixture(sibling)
        if f"out/coords_iter{iterations}" in recorded:
            _equal_tables(report, table, recorded, iterations)


def _equal_tables(report: Report, table: CountTable, recorded: Fixture, iterations: str) -> None:
    coords, counts = table.coords.numpy(), table.counts.numpy()
    expected = recorded.arrays[f"out/coords_iter{iterations}"]
    order, expected_order = (np.lexsort(x[::-1]) for x in (coords, expected))
    expected = expected[:, expected_order].astype(np.int64)
    report.equal(
        "counts of the file", coords[:, order], expected[:, expected_order].astype(np.int64)
    )
    seen = recorded.arrays[f"out/counts_iter{iterations}"][expected_order]
    report.equal("counts of the file", counts[order], seen)


@check("codebook_sums")
def codebook_sums(fixture: Fixture, report: Report) -> None:
    """The table of code sums, up to ties, and its file."""
    codebook = fixture.tensor("in/codebook_top")
    for key in fixture.arrays:
        match = re.fullmatch(r"out/alpha_([\d.]+)_([\d.]+)/table_ij", key)
        if not match:
            continue
        alpha = float(match[1]), float(match[2])
        prefix = key.rsplit("/", 1)[0]
        expected, margin = fixture.tensor(key), fixture.tensor(f"{prefix}/margin")
        ours = code_sums(codebook, alpha)
        report.codes("code_sums", ours, expected, _sum_distances(codebook, alpha), margin)
        saved = fixture.tensor(f"{prefix}/table_as_saved")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "codebook_sum_precalc.pt"
            torch.save(saved, path)
            report.equal("read_sums", read_sums(path), expected)
            write_sums(path, expected)
            report.equal("write_sums", torch.load(path, weights_only=True), saved)


def _sum_distances(codebook: Tensor, alpha: tuple[float, float]) -> Tensor:
    """Squared distances of a0 e_i + a1 e_j to all codes, [K, K, K]."""
    codebook = codebook.double()
    sums = alpha[0] * codebook.unsqueeze(1) + alpha[1] * codebook
    return torch.cdist(sums, codebook.expand(len(codebook), -1, -1)).square()
