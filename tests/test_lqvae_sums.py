"""The search for code sums: larger codebooks and near ties."""

import numpy as np
import pytest
import torch

from jukebox_core.tables import write_table
from lqvae import LatentGaussianLikelihood, sums
from lqvae.sums import code_sums, load_sums, save_sums


def brute_force(codebook, alpha):
    """Distances [K, K, K] in float64, then the rule, both as written down."""
    book = codebook.double()
    points = alpha[0] * book[:, None] + alpha[1] * book[None]
    distances = (points[:, :, None] - book).square().sum(-1)
    near = distances <= distances.min(-1, keepdim=True).values + 1e-9 * book.square().sum(1).max()
    return near.int().argmax(-1)


def random_book(n, d, seed=0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", ((0.5, 0.5), (0.7, 0.3), (0.3, 0.7), (1.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("scale", (1e-3, 1.0, 1e3))
def test_equals_brute_force(alpha, scale, monkeypatch):
    monkeypatch.setattr(sums, "_PART", 1000)
    book = random_book(97, 3, scale=scale)  # few dimensions: other codes often lie in between
    table = code_sums(book, alpha)
    assert table.dtype == torch.int64
    assert torch.equal(table, brute_force(book, alpha))
    if alpha == (0.5, 0.5):
        assert torch.equal(table, table.T)
        i, j = np.ogrid[:97, :97]
        tied = (table.numpy() == np.minimum(i, j)).mean()
        assert 0.05 < tied < 0.6  # the rule and the search both matter


def test_differences_below_float32_are_told_apart():
    """Code 2 is nearer to the middle of 0 and 1 than they are by one float32 step of its place."""
    book = torch.tensor([[-100.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    book[2, 1] = torch.nextafter(book[2, 1], torch.tensor(0.0))
    assert code_sums(book)[0, 1] == 2 == brute_force(book, (0.5, 0.5))[0, 1]
    book[2, 1] = torch.nextafter(torch.tensor(100.0), torch.tensor(200.0))
    assert code_sums(book)[0, 1] == 0


def test_equal_codes_give_the_lowest_index():
    book = random_book(8, 4).repeat(3, 1)
    assert code_sums(book).max() < 8
    assert torch.equal(code_sums(book), brute_force(book, (0.5, 0.5)))
    assert code_sums(torch.zeros(5, 4)).eq(0).all()


def test_a_bad_codebook_is_refused():
    with pytest.raises(ValueError, match="finite"):
        code_sums(torch.tensor([[0.0], [float("nan")]]))
    with pytest.raises(ValueError, match="expected \\[K, D\\]"):
        code_sums(torch.zeros(3))
    book = torch.tensor([[0.0], [float("inf")]])
    with pytest.raises(ValueError, match="the codebook has NaN or infinite values"):
        LatentGaussianLikelihood(book, torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="alpha has 3 weights"):
        code_sums(torch.zeros(2, 2), (0.3, 0.3, 0.4))


@pytest.mark.parametrize(
    ("table", "message"),
    (
        (torch.zeros(3, 3), "sums of torch.float32 and shape \\(3, 3\\)"),
        (torch.zeros(3, 2, dtype=torch.int32), "shape \\(3, 2\\)"),
        (torch.zeros(9, dtype=torch.int32), "shape \\(9,\\)"),
        (torch.tensor([[0, 1], [2, 0]]), "span 0 to 2, expected codes from 0 to 1"),
        (torch.tensor([[0, -1], [1, 0]]), "span -1 to 1"),
    ),
)
def test_tables_that_are_none_are_refused(tmp_path, table, message):
    path = tmp_path / "sums.safetensors"
    write_table(path, {"sum_codes": table}, {"kind": "code_sums"})
    with pytest.raises(ValueError, match=message):
        load_sums(path)
    if table.ndim == 2 and len(table) == 2:
        with pytest.raises(ValueError, match=message):
            LatentGaussianLikelihood(torch.randn(2, 4), table)


@pytest.mark.parametrize("weight", (float("nan"), float("inf"), -1.0, 1e38, 1e300))
def test_weights_that_cannot_be_are_refused(weight, tmp_path):
    for alpha in ((weight, 0.5), (0.5, weight), (0.0, 0.0)):
        with pytest.raises(ValueError, match="alpha"):
            code_sums(random_book(4, 2), alpha)
    if not abs(weight) < 1e300:
        with pytest.raises(ValueError, match="alpha"):
            save_sums(tmp_path / "sums.safetensors", torch.zeros(2, 2), "", (weight, 0.5))
        assert not any(tmp_path.iterdir())
