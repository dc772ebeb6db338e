"""Held-out information of a likelihood equals its definition, written as loops."""

import math

import numpy as np
import pytest
import torch

from hybrid.smoothing import SHARE, GaussianBase
from jukebox_core.evaluation.likelihood import held_out_bits
from lass.counts import count_triples
from lass.likelihood import CountLikelihood, SmoothedLikelihood
from lass.smoothing import BaseFactors, Marginals, Overall
from lqvae.likelihood import LatentGaussianLikelihood
from lqvae.sums import code_sums
from tests.bases import probabilities

K = 6


@pytest.fixture
def parts():
    rng = np.random.default_rng(3)
    counts = count_triples(K, *(rng.integers(0, K, 150) for _ in range(3)))
    gaussian = LatentGaussianLikelihood(book := torch.randn(K, 4), code_sums(book), 0.8)
    held_out = [torch.from_numpy(rng.integers(0, K, 20)) for _ in range(3)]
    others = torch.from_numpy(rng.integers(0, K, (2, 9)))
    return counts, gaussian, held_out, others


def log_table(likelihood):
    """log p(m | z1, z2), [K, K, K], m last; -inf where no score is stored."""
    table = torch.full((K, K, K), -torch.inf, dtype=torch.float64)
    for m in range(K):
        scores = likelihood.scores(m).explicit()
        first, second = (
            scores.pairs
            if scores.pairs is not None
            else (torch.arange(K * K) // K, torch.arange(K * K) % K)
        )
        table[first, second, m] = scores.values.double()
    return table.log_softmax(2)


@pytest.mark.parametrize("name", ("smoothed", "gaussian", "counted"))
def test_information_equals_its_definition(parts, name):
    counts, gaussian, (first, second, mixture), others = parts
    likelihood = {
        "smoothed": SmoothedLikelihood(counts, Marginals(counts), 1.0, concentration=2.0),
        "gaussian": gaussian,
        "counted": CountLikelihood(counts, 1.0, symmetric=False),
    }[name]
    table = log_table(likelihood)
    found = held_out_bits(likelihood, first, second, mixture, others, (0.5, 2.0))
    own = [float(table[i, j, m]) for i, j, m in zip(first, second, mixture, strict=True)]
    possible = [not math.isinf(x) and not math.isnan(x) for x in own]
    assert found.n == 20
    assert found.impossible == pytest.approx(1 - sum(possible) / 20)
    if all(possible):
        assert found.bits_per_code == pytest.approx(-sum(own) / 20 / math.log(2))
    else:
        assert name == "counted" and found.bits_per_code == math.inf
    for weight, bits in found.pair_bits.items():
        total = 0.0
        for x, m, kept in zip(own, mixture, possible, strict=True):
            if kept:
                powers = [math.exp(weight * x)] + [
                    0.0 if math.isnan(y := float(table[i, j, m])) else math.exp(weight * y)
                    for i, j in others.T
                ]
                total += math.log2(powers[0] / (sum(powers) / len(powers)))
        assert bits == pytest.approx(total / sum(possible))


@pytest.mark.parametrize("name", ("overall", "marginals", "gaussian"))
def test_bases_are_distributions_over_the_mixture_codes(parts, name):
    counts, gaussian, _, _ = parts
    base = {
        "overall": lambda: Overall(counts),
        "marginals": lambda: Marginals(counts),
        "gaussian": lambda: GaussianBase(gaussian, counts),
    }[name]()
    q = torch.stack([probabilities(base, m) for m in range(K)])
    torch.testing.assert_close(q.sum(0), torch.ones(K * K))


def gaussian_table(book, sums, sigma, share, counts):
    """q(m | z1, z2) of the Gaussian base, float64 [K, K, K], m last, as loops."""
    seen = np.full(K, 0.5)
    for m, n in zip(counts.mixture, counts.counts, strict=True):
        seen[m] += n
    table = np.zeros((K, K, K))
    codes = book.double().numpy()
    for i in range(K):
        for j in range(K):
            squares = ((codes[sums[i, j]] - codes) ** 2).sum(1)
            near = np.exp(-(squares - squares.min()) / (2 * sigma**2))
            table[i, j] = (1 - share) * near / near.sum() + share * seen / seen.sum()
    return table


@pytest.mark.parametrize("scale", (1.0, 200.0))  # far apart, the Gaussian alone is 0 or 1
@pytest.mark.parametrize("share", (None, 0.3))
def test_the_base_is_the_gaussian_and_a_share_of_the_overall_frequency(parts, scale, share):
    counts = parts[0]
    book = scale * torch.randn(K, 4)
    sums = code_sums(book)
    gaussian = LatentGaussianLikelihood(book, sums, 0.8)
    base = (
        GaussianBase(gaussian, counts) if share is None else GaussianBase(gaussian, counts, share)
    )
    table = gaussian_table(book, sums, 0.8, SHARE if share is None else share, counts)
    np.testing.assert_allclose(table.sum(2), 1, rtol=1e-12)
    for m in range(K):
        np.testing.assert_allclose(probabilities(base, m).view(K, K), table[:, :, m], rtol=1e-5)
    if scale > 1:
        assert (gaussian.log_density.softmax(0) == 0).any()
    assert (table > 0).all()


def test_every_code_costs_a_finite_number_of_bits(parts):
    counts, _, (first, second, mixture), others = parts
    book = 200 * torch.randn(K, 4)
    sums = code_sums(book)
    base = GaussianBase(LatentGaussianLikelihood(book, sums, 0.8), counts)
    likelihood = SmoothedLikelihood(counts, base, 1.0, concentration=2.0)
    seen = np.zeros((K, K, K))
    np.add.at(seen, (counts.first, counts.second, counts.mixture), counts.counts)
    table = gaussian_table(book, sums, 0.8, SHARE, counts)
    p = (seen + 2 * table) / (seen.sum(2, keepdims=True) + 2)
    np.testing.assert_allclose(p.sum(2), 1, rtol=1e-12)
    for m in range(K):
        np.testing.assert_allclose(
            likelihood.scores(m).values.view(K, K), np.log(p[:, :, m]), rtol=1e-5, atol=1e-5
        )
    found = held_out_bits(likelihood, first, second, mixture, others)
    assert found.impossible == 0
    assert found.bits_per_code == pytest.approx(-np.log2(p[first, second, mixture]).mean())


def test_an_invalid_share_is_refused(parts):
    counts, gaussian, _, _ = parts
    for share in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="^share is .* above 0 and at most 1"):
            GaussianBase(gaussian, counts, share)
    with pytest.raises(ValueError, match="2 codes.* 6"):
        GaussianBase(gaussian, count_triples(2, *[np.arange(2)] * 3))


def test_a_guess_without_knowledge_costs_the_logarithm_of_the_codes(parts):
    counts, _, (first, second, mixture), others = parts
    flat = SmoothedLikelihood(
        count_triples(K, *[np.arange(K)] * 3), Overall(counts), 1.0, concentration=1e12
    )
    flat.base.factors = lambda code: BaseFactors(torch.full((K,), 1 / K), torch.zeros(K))
    found = held_out_bits(flat, first, second, mixture, others)
    assert found.bits_per_code == pytest.approx(math.log2(K), abs=1e-4)
    assert found.pair_bits[1.0] == pytest.approx(0, abs=1e-4)
