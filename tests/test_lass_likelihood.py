"""The counted likelihood against a dense table computed the obvious way."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lass
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.method import Parts
from jukebox_core.separation.settings import Settings
from lass.counts import count_triples, save_counts, symmetrise
from lass.likelihood import CountLikelihood, SmoothedLikelihood
from lass.smoothing import BASES, Marginals, Overall

K = 7


def triples(seed=0, n=300):
    rng = np.random.default_rng(seed)
    first, second, mixture = (rng.integers(0, K, n) for _ in range(3))
    mixture[mixture == 4] = 3  # mixture code 4 is never seen
    return first, second, mixture


def built(folder, sources=("bass", "drums"), **settings):
    """LASS's likelihood of the counts in a folder."""
    parts = Parts(folder, SimpleNamespace(codebook=torch.zeros(K, 2)), "x", sources)
    return lass.METHOD.likelihood(parts, lass.METHOD.resolve(Settings(**settings)))


def dense(first, second, mixture, exponent, symmetric):
    table = np.zeros((K, K, K))
    for i, j, m in zip(first, second, mixture, strict=True):
        table[i, j, m] += 1
        if symmetric:
            table[j, i, m] += 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return exponent * np.log(table / table.sum(2, keepdims=True))


@pytest.mark.parametrize("symmetric", (True, False))
@pytest.mark.parametrize("exponent", (1.0, 3.0))
def test_sparse_scores_equal_the_dense_table_on_its_support(symmetric, exponent):
    codes = triples()
    likelihood = CountLikelihood(count_triples(K, *codes), exponent, symmetric=symmetric)
    expected = dense(*codes, exponent, symmetric)
    for m in range(K):
        if m == 4:
            continue
        scores = likelihood.scores(m)
        found = np.full((K, K), -np.inf)
        found[scores.pairs[0], scores.pairs[1]] = scores.values
        support = np.isfinite(expected[:, :, m])
        assert np.isfinite(found[support]).all() and (found[~support] == -np.inf).all()
        np.testing.assert_allclose(found[support], expected[:, :, m][support], rtol=1e-6, atol=1e-6)


def test_an_unseen_mixture_code_leaves_the_choice_to_the_priors():
    likelihood = CountLikelihood(count_triples(K, *triples()))
    assert not likelihood.is_seen(4) and likelihood.is_seen(3)
    assert likelihood.unseen == 0
    for times in (1, 2):
        scores = likelihood.scores(4)
        assert scores.pairs is None
        torch.testing.assert_close(scores.values, torch.zeros(K * K))
        assert likelihood.unseen == times
    likelihood.scores(3)
    assert likelihood.unseen == 2


def test_scores_are_views_and_satisfy_the_protocol():
    likelihood = CountLikelihood(count_triples(K, *triples()))
    assert isinstance(likelihood, Likelihood) and likelihood.n_codes == K
    one, again = likelihood.scores(2), likelihood.scores(2)
    assert one.values.data_ptr() == again.values.data_ptr()
    assert one.values.dtype == torch.float32 and one.pairs.dtype == torch.int64
    assert one.pairs.shape == (2, len(one.values))


def test_counts_that_are_symmetric_already_stay_the_same_likelihood():
    counts = symmetrise(count_triples(K, *triples()))
    once, twice = CountLikelihood(counts, symmetric=False), CountLikelihood(counts)
    for m in range(K):
        torch.testing.assert_close(once.scores(m).values, twice.scores(m).values)


def test_built_from_a_file_in_the_order_of_the_priors(tmp_path):
    codes = triples()
    path = tmp_path / "counts.safetensors"
    save_counts(path, count_triples(K, *codes), {"codec": "x", "sources": "bass drums"})
    swapped = built(tmp_path, ("drums", "bass"), exponent=2.0, smoothing=0.0)
    expected = dense(codes[1], codes[0], codes[2], 2.0, True)
    scores = swapped.scores(2)
    np.testing.assert_allclose(
        scores.values, expected[scores.pairs[0], scores.pairs[1], 2], rtol=1e-6, atol=1e-6
    )
    with pytest.raises(ValueError, match="exponent is 0.0"):
        built(tmp_path, exponent=0.0)


def test_smoothing_that_cannot_be_is_refused():
    counts = count_triples(K, *triples())
    with pytest.raises(ValueError, match="concentration is 0.0"):
        SmoothedLikelihood(counts, Marginals(counts), 1.0, concentration=0.0)
    with pytest.raises(ValueError, match="a base distribution over 3"):
        SmoothedLikelihood(counts, Overall(count_triples(3, *[np.zeros(1, int)] * 3)), 1.0)


@pytest.mark.parametrize(
    ("smoothing", "setting", "symmetric"),
    (
        (0.0, None, True),  # as published
        (0.0, True, True),
        (0.0, False, False),
        (2.5, None, False),
        (2.5, True, True),
        (2.5, False, False),
    ),
)
@pytest.mark.parametrize("base", BASES)
def test_counts_and_base_follow_the_settings(tmp_path, smoothing, setting, symmetric, base):
    counts = count_triples(K, *triples())
    path = tmp_path / "counts.safetensors"
    save_counts(path, counts, {"codec": "x", "sources": "bass drums"})
    settings = {"smoothing_base": base} if smoothing else {}
    likelihood = built(tmp_path, exponent=2.0, smoothing=smoothing, symmetric=setting, **settings)
    known = {"exponent": 2.0, "smoothing": smoothing, "symmetric": symmetric, **settings}
    assert likelihood.settings == known
    assert likelihood.symmetric is symmetric
    table = np.zeros((K, K, K))
    np.add.at(table, (counts.first, counts.second, counts.mixture), counts.counts)
    if symmetric:
        table = table + table.transpose(1, 0, 2)
    overall = table.sum((0, 1)) + 0.5
    q = np.broadcast_to(overall / overall.sum(), (K, K, K))
    if base == "marginals":
        sides = [table.sum(axis) + 10 * q[0] for axis in (1, 0)]
        first, second = (side / side.sum(1, keepdims=True) for side in sides)
        q = (first[:, None] + second[None]) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        p = (table + smoothing * q) / (table.sum(2, keepdims=True) + smoothing)
        expected = 2.0 * np.log(p)
    if smoothing:
        np.testing.assert_allclose(p.sum(2), 1)  # a distribution over the mixture codes
    for m in range(K):
        scores = likelihood.scores(m)
        if scores.pairs is None:
            if smoothing == 0:  # a code that was never seen
                assert m == 4 and not table[:, :, m].any()
                continue
            np.testing.assert_allclose(
                scores.values.view(K, K), expected[:, :, m], rtol=1e-5, atol=1e-5
            )
        else:
            assert scores.pairs.shape[1] == (table[:, :, m] > 0).sum()
            np.testing.assert_allclose(
                scores.values, expected[scores.pairs[0], scores.pairs[1], m], rtol=1e-5, atol=1e-5
            )
