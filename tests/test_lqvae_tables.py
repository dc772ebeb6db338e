"""Files of code sums, and the Gaussian likelihood against its formula."""

import numpy as np
import pytest
import torch

from lqvae import LatentGaussianLikelihood, code_sums
from lqvae.sums import load_sums, save_sums


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
    assert likelihood.sum_codes.dtype == torch.int16  # which the compiled kernels take
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
