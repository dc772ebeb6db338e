"""The hybrid is the LQ-VAE's objective and LASS's counts times the LQ-VAE's Gaussian."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hybrid
import lass
import lqvae
from hybrid import GaussianBase
from hybrid.likelihood import PooledLikelihood
from jukebox_core.separation.method import Parts
from jukebox_core.separation.settings import Settings
from lass.counts import count_triples, load_counts, save_counts, symmetrise
from lass.likelihood import CountLikelihood, SmoothedLikelihood
from lass.smoothing import Overall
from lqvae import LatentGaussianLikelihood, LinearisationObjective, code_sums
from lqvae.sums import save_sums
from tests.bases import probabilities

K = 9


@pytest.fixture
def parts(tmp_path):
    rng = np.random.default_rng(0)
    counts = count_triples(K, *(rng.integers(0, K, 60) for _ in range(3)))
    metadata = {"codec": "x", "sources": "bass drums"}
    save_counts(tmp_path / "counts.safetensors", counts, metadata)
    book = torch.randn(K, 4)
    save_sums(tmp_path / "sums.safetensors", code_sums(book), "x", (0.5, 0.5))
    return Parts(tmp_path, SimpleNamespace(codebook=book), "x", ("bass", "drums"))


def built(method, parts, **settings):
    return method.METHOD.likelihood(parts, method.METHOD.resolve(Settings(**settings)))


def test_the_objective_is_the_lqvae_s():
    assert hybrid.Objective is LinearisationObjective


@pytest.mark.parametrize("smoothing", (0.0, 2.0))
def test_pooled_scores_are_the_sum_of_both(parts, smoothing):
    pooled = built(hybrid, parts, exponent=1.5, smoothing=smoothing, sigma=0.7)
    counted = built(lass, parts, exponent=1.5, smoothing=smoothing)
    gaussian = built(lqvae, parts, sigma=0.7)
    both = {**counted.settings, **gaussian.settings, "gaussian": True}
    assert pooled.settings == both
    for m in range(K):
        found, expected = pooled.scores(m), counted.scores(m)
        density = gaussian.scores(m).explicit().values.view(K, K)
        if expected.pairs is None:
            assert found.pairs is None
            torch.testing.assert_close(found.values, expected.values + density.flatten())
        else:
            assert torch.equal(found.pairs, expected.pairs)
            values = expected.values + density[expected.pairs[0], expected.pairs[1]]
            torch.testing.assert_close(found.values, values)


def test_without_the_gaussian_it_is_the_counted_likelihood(parts):
    (parts.family / "sums.safetensors").unlink()
    plain, counted = built(hybrid, parts, gaussian=False), built(lass, parts)
    assert plain.settings == counted.settings
    for m in range(K):
        torch.testing.assert_close(plain.scores(m).values, counted.scores(m).values)


def test_sources_in_the_other_order_exchange_the_codes(parts):
    one = built(lass, parts)
    other = built(lass, parts._replace(sources=("drums", "bass")))
    for m in range(K):
        table = one.scores(m).values.view(K, K)
        torch.testing.assert_close(other.scores(m).values.view(K, K), table.T)


@pytest.mark.parametrize("symmetric", (None, True, False))
@pytest.mark.parametrize("pooled", (True, False))
def test_the_gaussian_as_base_pooled_or_not(parts, symmetric, pooled):
    found = built(
        hybrid,
        parts,
        smoothing_base="gaussian",
        symmetric=symmetric,
        gaussian=pooled,
        smoothing=2.0,
        sigma=0.7,
    )
    book = parts.codec.codebook
    gaussian = LatentGaussianLikelihood(book, code_sums(book), 0.7)
    counts, _ = load_counts(parts.family / "counts.safetensors")
    if symmetric:
        counts = symmetrise(counts)
    expected = SmoothedLikelihood(
        counts, GaussianBase(gaussian, counts), 1.0 if pooled else 3.0, concentration=2.0
    )
    for m in range(K):
        values = expected.scores(m).values
        if pooled:
            values = values + gaussian.scores(m).explicit().values
        torch.testing.assert_close(found.scores(m).values, values)
        assert found.scores(m).values.isfinite().all()


def test_the_gaussian_base_is_its_formula(parts):
    book, table = parts.codec.codebook, code_sums(parts.codec.codebook)
    counts, _ = load_counts(parts.family / "counts.safetensors")
    base = GaussianBase(LatentGaussianLikelihood(book, table, 0.7), counts, 0.3)
    assert base.settings == {"smoothing_base": "gaussian", "sigma": 0.7}
    seen = np.bincount(counts.mixture, counts.counts, K) + 0.5
    vectors = book.double().numpy()
    density = np.exp(-np.square(vectors[:, None] - vectors).sum(2) / (2 * 0.7**2))  # [m, sum]
    q = 0.7 * density / density.sum(0) + 0.3 * (seen / seen.sum())[:, None]
    for m in range(K):
        np.testing.assert_allclose(probabilities(base, m).view(K, K), q[m][table], rtol=1e-5)


def test_bases_and_pools_that_cannot_be_are_refused(parts):
    book = parts.codec.codebook
    counts, _ = load_counts(parts.family / "counts.safetensors")
    gaussian = LatentGaussianLikelihood(book, code_sums(book))
    GaussianBase(gaussian, counts, 1)
    for share in (0.0, -0.1, 1.001):
        with pytest.raises(ValueError, match=f"share is {share}"):
            GaussianBase(gaussian, counts, share)
    fewer = count_triples(K - 1, *[np.zeros(1, int)] * 3)
    for make in (GaussianBase, lambda g, c: PooledLikelihood(CountLikelihood(c), g)):
        with pytest.raises(ValueError, match="counts over 8 codes, a Gaussian over 9"):
            make(gaussian, fewer)


def test_another_base_distribution(parts):
    found = built(hybrid, parts, gaussian=False, smoothing_base="overall")
    counts, _ = load_counts(parts.family / "counts.safetensors")
    expected = SmoothedLikelihood(counts, Overall(counts), 3.0)
    for m in range(K):
        assert torch.equal(found.scores(m).values, expected.scores(m).values)


def test_bases_that_a_method_does_not_have_are_refused():
    with pytest.raises(ValueError, match="smoothing_base is gaussian, expected marginals or over"):
        lass.METHOD.resolve(Settings(smoothing_base="gaussian"))
    with pytest.raises(ValueError, match="smoothing_base is 'blue', expected"):
        Settings(smoothing_base="blue")


def test_tables_that_a_method_reads():
    def tables(method, **settings):
        return method.METHOD.tables(method.METHOD.resolve(Settings(**settings)))

    counts, sums = "counts.safetensors", "sums.safetensors"
    assert tables(lqvae) == (sums,) and tables(lass) == (counts,)
    assert tables(hybrid) == (counts, sums) and tables(hybrid, gaussian=False) == (counts,)
    assert tables(hybrid, gaussian=False, smoothing_base="gaussian") == (counts, sums)
