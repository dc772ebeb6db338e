"""Held-out information of a likelihood equals its definition, written as loops."""

import math

import numpy as np
import pytest
import torch

from hybrid.kernel import Kernel
from lass.backoff import Marginals, Overall
from lass.counts import count_triples
from lass.information import pair_logs
from lass.likelihood import CountLikelihood, SmoothedLikelihood
from lqvae.likelihood import LatentGaussianLikelihood
from lqvae.sums import code_sums

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
        "smoothed": SmoothedLikelihood(counts, Marginals(counts), 1.0, strength=2.0),
        "gaussian": gaussian,
        "counted": CountLikelihood(counts, 1.0, symmetric=False),
    }[name]
    table = log_table(likelihood)
    found = pair_logs(likelihood, first, second, mixture, others).information((0.5, 2.0))
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


@pytest.mark.parametrize("name", ("overall", "marginals", "kernel"))
def test_back_offs_are_distributions_over_the_mixture_codes(parts, name):
    counts, gaussian, _, _ = parts
    backoff = {
        "overall": lambda: Overall(counts),
        "marginals": lambda: Marginals(counts),
        "kernel": lambda: Kernel(gaussian),
    }[name]()
    given = torch.stack([backoff.given(m) for m in range(K)])
    torch.testing.assert_close(given.sum(0), torch.ones(K * K))
    given[0] += 1  # what a caller writes stays with the caller
    torch.testing.assert_close(backoff.given(0), given[0] - 1)


def test_the_kernel_is_the_normalised_gaussian(parts):
    _, gaussian, _, _ = parts
    kernel = Kernel(gaussian)
    table = log_table(gaussian).exp()
    for m in range(K):
        torch.testing.assert_close(
            kernel.given(m).double().view(K, K), table[:, :, m], rtol=1e-5, atol=1e-7
        )


def test_a_guess_without_knowledge_costs_the_logarithm_of_the_codes(parts):
    counts, _, (first, second, mixture), others = parts
    flat = SmoothedLikelihood(
        count_triples(K, *[np.arange(K)] * 3), Overall(counts), 1.0, strength=1e12
    )
    flat.backoff.given = lambda code: torch.full((K * K,), 1 / K)
    found = pair_logs(flat, first, second, mixture, others).information()
    assert found.bits_per_code == pytest.approx(math.log2(K), abs=1e-4)
    assert found.pair_bits[1.0] == pytest.approx(0, abs=1e-4)
