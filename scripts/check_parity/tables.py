"""Parity checks of counts and code sums, and of upstream's files of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jukebox_core.upstream.tables import read_counts, read_sums, write_counts, write_sums
from lass.counter import TripleCounter
from lass.counts import Counts, from_keys, symmetrise
from lass.likelihood import CountLikelihood
from lqvae.sums import code_sums
from scripts.check_parity.fixtures import Fixture, check
from scripts.check_parity.posterior import in_order


@check("sum_counts")
def sum_counts(fixture: Fixture) -> None:
    """Counts after some iterations, and their normalised log-likelihoods."""
    for match in fixture.matching(r"out/coords_iter(\d+)"):
        counts = _counted(fixture, int(match[1]))
        ours = _in_order(np.stack([counts.first, counts.second, counts.mixture]), counts.counts)
        theirs = _in_order(fixture.arrays[match[0]], fixture.arrays[f"out/counts_iter{match[1]}"])
        fixture.equal("TripleCounter, symmetrise", ours, theirs)
    counts = _counted(fixture, len(fixture.arrays["in/x1"]))
    for match in fixture.matching(r"out/lambda([\d.]+)/data"):
        _same_slices(fixture, counts, match[1])


def _counted(fixture: Fixture, iterations: int) -> Counts:
    """The first iterations, counted in bounded memory, for both orders of the sources."""
    k = fixture.info["l_bins"]
    with tempfile.TemporaryDirectory() as folder:
        counter = TripleCounter(k, Path(folder) / "spool", buffer=100)
        for i in range(iterations):
            counter.add(*(fixture.arrays[f"in/{name}"][i] for name in ("x1", "x2", "mix")))
        keys, seen = counter.result()
        return symmetrise(from_keys(k, np.array(keys), np.array(seen)))


def _in_order(coords: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows (first, second, mixture, count), [4, P], in the order of the coordinates [3, P]."""
    order = np.lexsort(coords[::-1])
    return np.vstack([coords, counts])[:, order].astype(np.int64)


def _same_slices(fixture: Fixture, counts: Counts, weight: str) -> None:
    likelihood = CountLikelihood(counts, float(weight), symmetric=False)
    coords, data, offsets = (
        fixture.tensor(f"out/lambda{weight}/{part}") for part in ("coords", "data", "offsets")
    )
    got, expected = [], []
    for code, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        fixture.equal("CountLikelihood.is_seen", likelihood.is_seen(code), bool(stop > start))
        if stop > start:
            scores = likelihood.scores(code)
            assert scores.pairs is not None
            row = scores.values.unsqueeze(0)
            got.append(in_order(row, scores.pairs, coords[:, start:stop], counts.n_codes)[0])
            expected.append(data[start:stop])
    fixture.close("CountLikelihood.scores", torch.cat(got), torch.cat(expected))


@check(r"sum_dist_\d+")
def sum_dist(fixture: Fixture) -> None:
    """The counts file: read, equal to the recorded counts, and written back the same."""
    table = read_counts(fixture.path)
    fixture.equal("read_counts", table.coords, fixture.tensor("coords").long())
    fixture.equal("read_counts", table.counts, fixture.tensor("data").long())
    fixture.equal("read_counts", table.n_codes, int(fixture.arrays["shape"][0]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / fixture.path.name
        write_counts(path, table)
        written = Fixture(path)
        fixture.equal("write_counts", written.arrays.keys() == fixture.arrays.keys(), True)
        for name, array in fixture.arrays.items():
            fixture.equal("write_counts", written.arrays[name], array)
            fixture.equal("write_counts", written.arrays[name].dtype == array.dtype, True)
    sibling = fixture.path.with_name("sum_counts.npz")
    iterations = fixture.name.rsplit("_", 1)[1]
    recorded = Fixture(sibling).arrays if sibling.is_file() else {}
    if f"out/coords_iter{iterations}" in recorded:
        ours = _in_order(table.coords.numpy(), table.counts.numpy())
        theirs = _in_order(*(recorded[f"out/{n}_iter{iterations}"] for n in ("coords", "counts")))
        fixture.equal("counts of the file", ours, theirs)


@check("codebook_sums")
def codebook_sums(fixture: Fixture) -> None:
    """The table of code sums, up to ties, and its file."""
    codebook = fixture.tensor("in/codebook_top")
    for match in fixture.matching(r"(out/alpha_([\d.]+)_([\d.]+))/table_ij"):
        alpha = float(match[2]), float(match[3])
        expected, margin = fixture.tensor(match[0]), fixture.tensor(f"{match[1]}/margin")
        ours = code_sums(codebook, alpha)
        fixture.codes("code_sums", ours, expected, _sum_distances(codebook, alpha), margin)
        saved = fixture.tensor(f"{match[1]}/table_as_saved")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "codebook_sum_precalc.pt"
            torch.save(saved, path)
            fixture.equal("read_sums", read_sums(path), expected)
            write_sums(path, expected)
            fixture.equal("write_sums", torch.load(path, weights_only=True), saved)


def _sum_distances(codebook: Tensor, alpha: tuple[float, float]) -> Tensor:
    """Squared distances of a0 e_i + a1 e_j to all codes, [K, K, K]."""
    codebook = codebook.double()
    sums = alpha[0] * codebook.unsqueeze(1) + alpha[1] * codebook
    return torch.cdist(sums, codebook.expand(len(codebook), -1, -1)).square()
