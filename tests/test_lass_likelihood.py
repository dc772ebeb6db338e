"""The counted likelihood against a dense table computed the obvious way."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from jukebox_core.separation.likelihood import Likelihood
from lass.counts import count_triples, save_counts, symmetrise
from lass.likelihood import CountLikelihood, SmoothedLikelihood, build_likelihood
from lass.smoothing import BACKOFFS, Marginals, Overall

SHARED = Path(os.environ.get("LATENT_SEPARATION_SHARED", Path(__file__).parents[2] / "shared"))
K = 7


def triples(seed=0, n=300):
    rng = np.random.default_rng(seed)
    first, second, mixture = (rng.integers(0, K, n) for _ in range(3))
    mixture[mixture == 4] = 3  # mixture code 4 is never seen
    return first, second, mixture


def dense(first, second, mixture, weight, symmetric):
    table = np.zeros((K, K, K))
    for i, j, m in zip(first, second, mixture, strict=True):
        table[i, j, m] += 1
        if symmetric:
            table[j, i, m] += 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return weight * np.log(table / table.sum(2, keepdims=True))


@pytest.mark.parametrize("symmetric", (True, False))
@pytest.mark.parametrize("weight", (1.0, 3.0))
def test_sparse_scores_equal_the_dense_table_on_its_support(symmetric, weight):
    codes = triples()
    likelihood = CountLikelihood(count_triples(K, *codes), weight, symmetric=symmetric)
    expected = dense(*codes, weight, symmetric)
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


@pytest.mark.parametrize("weight", (1, 3))
def test_likelihood_of_the_original_system(weight):
    path = SHARED / "fixtures" / "sum_counts.npz"
    if not path.is_file():
        pytest.skip("no fixtures/sum_counts.npz: set LATENT_SEPARATION_SHARED to the folder above")
    with np.load(path) as file:
        arrays = dict(file)
    codes = (arrays[f"in/{name}"] for name in ("x1", "x2", "mix"))
    likelihood = CountLikelihood(count_triples(32, *codes), weight)
    coords, data, offsets = (
        arrays[f"out/lambda{weight}/{name}"] for name in ("coords", "data", "offsets")
    )
    for m in range(32):
        part = slice(offsets[m], offsets[m + 1])
        scores = likelihood.scores(m)
        order = np.lexsort((coords[1, part], coords[0, part]))
        np.testing.assert_array_equal(scores.pairs, coords[:, part][:, order])
        np.testing.assert_allclose(scores.values, data[part][order], rtol=1e-6, atol=1e-6)


def test_built_from_a_file_in_the_order_of_the_priors(tmp_path):
    codes = triples()
    path = tmp_path / "counts.safetensors"
    save_counts(path, count_triples(K, *codes), {"codec": "x", "sources": "bass drums"})
    swapped = build_likelihood(path, weight=2.0, codec_fingerprint="x", sources=("drums", "bass"))
    expected = dense(codes[1], codes[0], codes[2], 2.0, True)
    scores = swapped.scores(2)
    np.testing.assert_allclose(
        scores.values, expected[scores.pairs[0], scores.pairs[1], 2], rtol=1e-6, atol=1e-6
    )
    with pytest.raises(ValueError, match="weight is 0.0"):
        build_likelihood(path, weight=0.0)


@pytest.mark.parametrize("symmetric", (True, False))
def test_backed_off_scores_equal_the_formula_over_all_pairs(symmetric):
    first, second, mixture = triples()
    table = np.zeros((K, K, K))
    for i, j, m in zip(first, second, mixture, strict=True):
        table[i, j, m] += 1
        if symmetric:
            table[j, i, m] += 1
    overall = table.sum((0, 1)) + 0.5
    overall /= overall.sum()
    given_first = table.sum(1) + 10 * overall
    given_second = table.sum(0) + 10 * overall
    given_first /= given_first.sum(1, keepdims=True)
    given_second /= given_second.sum(1, keepdims=True)
    mean = (given_first[:, None] + given_second[None]) / 2
    p = (table + 2.5 * mean) / (table.sum(2, keepdims=True) + 2.5)
    np.testing.assert_allclose(p.sum(2), 1)  # a distribution over the mixture codes
    counts = count_triples(K, first, second, mixture)
    shown = symmetrise(counts) if symmetric else counts
    likelihood = SmoothedLikelihood(
        counts, Marginals(shown), 2.0, strength=2.5, symmetric=symmetric
    )
    for m in range(K):  # 4 was never seen, and has a score all the same
        scores = likelihood.scores(m)
        assert scores.pairs is None
        np.testing.assert_allclose(
            scores.values.view(K, K), 2.0 * np.log(p[:, :, m]), rtol=1e-5, atol=1e-5
        )
    with pytest.raises(ValueError, match="strength is 0.0"):
        SmoothedLikelihood(counts, Marginals(counts), 1.0, strength=0.0)
    with pytest.raises(ValueError, match="a back-off over 3"):
        SmoothedLikelihood(counts, Overall(count_triples(3, *[np.zeros(1, int)] * 3)), 1.0)


@pytest.mark.parametrize(
    ("backoff", "given", "symmetric"),
    (
        (0.0, None, True),  # as LASS does
        (0.0, True, True),
        (0.0, False, False),
        (2.5, None, False),
        (2.5, True, True),
        (2.5, False, False),
    ),
)
@pytest.mark.parametrize("towards", BACKOFFS)
def test_which_counts_and_which_back_off_are_chosen_apart(
    tmp_path, backoff, given, symmetric, towards
):
    counts = count_triples(K, *triples())
    save_counts(tmp_path / "counts", counts, {"codec": "x", "sources": "bass drums"})
    likelihood = build_likelihood(
        tmp_path / "counts", weight=2.0, backoff=backoff, towards=BACKOFFS[towards], symmetric=given
    )
    assert likelihood.symmetric is symmetric
    table = np.zeros((K, K, K))
    np.add.at(table, (counts.first, counts.second, counts.mixture), counts.counts)
    if symmetric:
        table = table + table.transpose(1, 0, 2)
    overall = table.sum((0, 1)) + 0.5
    q = np.broadcast_to(overall / overall.sum(), (K, K, K))
    if towards == "marginals":
        sides = [table.sum(axis) + 10 * q[0] for axis in (1, 0)]
        first, second = (side / side.sum(1, keepdims=True) for side in sides)
        q = (first[:, None] + second[None]) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        p = (table + backoff * q) / (table.sum(2, keepdims=True) + backoff)
        expected = 2.0 * np.log(p)
    for m in range(K):
        scores = likelihood.scores(m)
        if scores.pairs is None:
            if backoff == 0:  # a code that was never seen
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


def test_backed_off_to_what_is_known_without_the_pair():
    first, second, mixture = triples()
    table = np.zeros((K, K, K))
    np.add.at(table, (first, second, mixture), 1)
    overall = table.sum((0, 1)) + 0.5
    overall /= overall.sum()
    p = (table + 4 * overall) / (table.sum(2, keepdims=True) + 4)
    counts = count_triples(K, first, second, mixture)
    likelihood = SmoothedLikelihood(counts, Overall(counts), 1.0, strength=4.0)
    for m in range(K):
        np.testing.assert_allclose(
            likelihood.scores(m).values.view(K, K), np.log(p[:, :, m]), rtol=1e-5, atol=1e-5
        )
