"""Code sums and the Gaussian likelihood against brute force."""

import numpy as np
import pytest
import torch

from lqvae import LatentGaussianLikelihood, code_sums
from lqvae.sums import load_sums, save_sums


@pytest.mark.parametrize("alpha", ((0.7, 0.3), (0.5, 0.5), (1.0, 0.2)))
@pytest.mark.parametrize("seed", range(3))
def test_code_sums_equal_brute_force_with_the_lowest_index_among_ties(alpha, seed):
    book = torch.randn(23, 5, generator=torch.Generator().manual_seed(seed))
    table = code_sums(book, alpha)
    exact = book.double().numpy()
    for i in range(23):
        for j in range(23):
            point = alpha[0] * exact[i] + alpha[1] * exact[j]
            distances = ((point - exact) ** 2).sum(1)
            ties = np.flatnonzero(distances <= distances.min() + 1e-9)
            assert table[i, j].item() == ties[0]
    if alpha == (0.5, 0.5):
        assert torch.equal(table, table.T)
        assert torch.equal(table.diagonal(), torch.arange(23))


def test_two_codes_and_nothing_nearer_is_a_tie_for_the_lower_index():
    table = code_sums(torch.tensor([[3.1, 0.0], [1.7, 0.3], [50.0, 0.0]]))
    assert table[0, 1] == table[1, 0] == 0


def test_files_round_trip_and_are_checked(tmp_path):
    table = code_sums(torch.randn(8, 3))
    path = tmp_path / "sums.safetensors"
    save_sums(path, table, "abc", (0.5, 0.5))
    assert torch.equal(load_sums(path, "abc"), table)
    with pytest.raises(ValueError, match="another codec"):
        load_sums(path, "abd")


def test_gaussian_scores_equal_the_formula():
    torch.manual_seed(0)
    book = torch.randn(11, 4)
    table = code_sums(book, (0.6, 0.4))
    likelihood = LatentGaussianLikelihood(book, table, sigma=0.7)
    assert likelihood.settings == {"sigma": 0.7}
    for m in range(11):
        scores = likelihood.scores(m).explicit()
        assert scores.pairs is None
        expected = [
            -((book[table[i, j]] - book[m]) ** 2).sum().item() / (2 * 0.7**2)
            for i in range(11)
            for j in range(11)
        ]
        np.testing.assert_allclose(scores.values, expected, rtol=1e-5, atol=1e-6)


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="the codebook has 11 codes"):
        LatentGaussianLikelihood(torch.randn(11, 4), torch.zeros(10, 10))
    with pytest.raises(ValueError, match="sigma is 0"):
        LatentGaussianLikelihood(torch.randn(2, 4), torch.zeros(2, 2), sigma=0)
