"""The counted likelihood against a dense table computed the obvious way."""

import numpy as np
import pytest
import torch

from lass.counts import count_triples, save_counts
from lass.likelihood import CountLikelihood, build_likelihood

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
    scores = likelihood.scores(4)
    assert scores.pairs is None
    torch.testing.assert_close(scores.values, torch.zeros(K * K))


def test_built_from_a_file_in_the_order_of_the_priors(tmp_path):
    codes = triples()
    path = tmp_path / "counts.safetensors"
    save_counts(path, count_triples(K, *codes), {"codec": "x", "sources": "bass drums"})
    swapped = build_likelihood(
        path, weight=2.0, symmetric=False, codec_fingerprint="x", sources=("drums", "bass")
    )
    expected = dense(codes[1], codes[0], codes[2], 2.0, False)
    scores = swapped.scores(2)
    np.testing.assert_allclose(
        scores.values, expected[scores.pairs[0], scores.pairs[1], 2], rtol=1e-6, atol=1e-6
    )
    with pytest.raises(ValueError, match="must be positive"):
        build_likelihood(path, weight=0.0)
