"""The hybrid is the LQ-VAE's objective and LASS's counts, pooled with the kernel."""

import numpy as np
import pytest
import torch

import hybrid
from hybrid.smoothing import GaussianBase
from lass.counts import count_triples, load_counts, save_counts, symmetrise
from lass.likelihood import SmoothedLikelihood
from lass.likelihood import build_likelihood as build_counted
from lass.smoothing import Overall
from lqvae import LatentGaussianLikelihood, LinearisationObjective, code_sums
from lqvae.sums import save_sums

K = 9


@pytest.fixture
def tables(tmp_path):
    rng = np.random.default_rng(0)
    counts = count_triples(K, *(rng.integers(0, K, 60) for _ in range(3)))
    save_counts(tmp_path / "counts", counts, {"codec": "x", "sources": "bass drums"})
    book = torch.randn(K, 4)
    save_sums(tmp_path / "sums", code_sums(book), "x", (0.5, 0.5))
    return tmp_path / "counts", tmp_path / "sums", book


def test_the_objective_is_the_lqvae_s():
    assert hybrid.Objective is LinearisationObjective


@pytest.mark.parametrize("backoff", (0.0, 2.0))
def test_pooled_scores_are_the_sum_of_both(tables, backoff):
    counts, sums, book = tables
    pooled = hybrid.build_likelihood(counts, sums, book, weight=1.5, backoff=backoff, sigma=0.7)
    counted = build_counted(counts, weight=1.5, backoff=backoff)
    kernel = LatentGaussianLikelihood(book, code_sums(book), 0.7)
    for m in range(K):
        found, wanted = pooled.scores(m), counted.scores(m)
        density = kernel.scores(m).explicit().values.view(K, K)
        if wanted.pairs is None:
            assert found.pairs is None
            torch.testing.assert_close(found.values, wanted.values + density.flatten())
        else:
            assert torch.equal(found.pairs, wanted.pairs)
            expected = wanted.values + density[wanted.pairs[0], wanted.pairs[1]]
            torch.testing.assert_close(found.values, expected)


def test_without_the_kernel_it_is_the_counted_likelihood(tables):
    counts, _, _ = tables
    alone, counted = hybrid.build_likelihood(counts), build_counted(counts, backoff=3.0)
    for m in range(K):
        torch.testing.assert_close(alone.scores(m).values, counted.scores(m).values)


def test_sources_in_the_other_order_exchange_the_codes(tables):
    counts, _, _ = tables
    one = build_counted(counts, backoff=1.0, sources=("bass", "drums"))
    other = build_counted(counts, backoff=1.0, sources=("drums", "bass"))
    for m in range(K):
        table = one.scores(m).values.view(K, K)
        torch.testing.assert_close(other.scores(m).values.view(K, K), table.T)


@pytest.mark.parametrize("symmetric", (None, True, False))
@pytest.mark.parametrize("pooled", (True, False))
def test_it_falls_back_on_the_kernel_pooled_or_not(tables, symmetric, pooled):
    counts, sums, book = tables
    found = hybrid.build_likelihood(
        *tables, back_off_to="kernel", symmetric=symmetric, pooled=pooled, backoff=2.0, sigma=0.7
    )
    gaussian = LatentGaussianLikelihood(book, code_sums(book), 0.7)
    loaded, _ = load_counts(counts)
    if symmetric:
        loaded = symmetrise(loaded)
    expected = SmoothedLikelihood(
        loaded, GaussianBase(gaussian, loaded), 1.0 if pooled else 3.0, strength=2.0
    )
    for m in range(K):
        wanted = expected.scores(m).values
        if pooled:
            wanted = wanted + gaussian.scores(m).explicit().values
        torch.testing.assert_close(found.scores(m).values, wanted)
        assert found.scores(m).values.isfinite().all()


def test_tables_that_are_not_pooled_change_nothing_but_the_back_off(tables):
    counts, sums, book = tables
    found = hybrid.build_likelihood(*tables, pooled=False, back_off_to="overall")
    loaded, _ = load_counts(counts)
    expected = SmoothedLikelihood(loaded, Overall(loaded), 3.0)
    for m in range(K):
        assert torch.equal(found.scores(m).values, expected.scores(m).values)


def test_back_offs_that_are_not_there_are_refused(tables):
    counts, _, _ = tables
    with pytest.raises(ValueError, match="is kernel, expected marginals or overall here"):
        hybrid.build_likelihood(counts, back_off_to="kernel")
    with pytest.raises(ValueError, match="is blue, expected marginals or overall or kernel"):
        hybrid.build_likelihood(*tables, back_off_to="blue")
    hybrid.build_likelihood(counts, backoff=0.0, back_off_to="kernel")  # nothing to fall back on
