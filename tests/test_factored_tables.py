"""Tables multiplied from factors against the explicit scores in float64, kernel by kernel."""

import math

import numpy as np
import pytest
import torch

from hybrid import GaussianBase
from hybrid.likelihood import PooledLikelihood
from jukebox_core.prior.kernels import CompiledKernels, TorchKernels, find_kernels
from jukebox_core.separation import posterior
from jukebox_core.separation.likelihood import (
    FactoredScores,
    Gathered,
    PairScores,
    Power,
    Stored,
)
from jukebox_core.separation.posterior import (
    FactoredTable,
    FullTable,
    draw_chunks,
    draw_joint,
    make_table,
    uniform_numbers,
)
from lass.counts import count_triples
from lass.likelihood import SmoothedLikelihood
from lass.smoothing import Marginals, Overall
from lqvae import LatentGaussianLikelihood, code_sums

K = 83  # no multiple of a vector's width
KERNELS = {"torch": TorchKernels(), "found": find_kernels()}
EXPONENTS = (1.0, 2.7, 3.0, 1e-3, 40.0)
BOOK = torch.randn(K, 3, generator=torch.Generator().manual_seed(0))
COUNTS = count_triples(K, *np.random.default_rng(0).zipf(1.3, (3, 20_000)) % K)
GAUSSIAN = LatentGaussianLikelihood(BOOK, code_sums(BOOK), 0.4)
BASES = {
    "overall": Overall(COUNTS),
    "marginals": Marginals(COUNTS),
    "gaussian": GaussianBase(GAUSSIAN, COUNTS),
}


@pytest.fixture(params=KERNELS)
def kernels(request, monkeypatch):
    monkeypatch.setattr(posterior, "find_kernels", lambda: KERNELS[request.param])


def by_hand(base, exponent, pooled, code, concentration=3.0):
    """The scores in float64 [K, K], from the counts: the formula of `SmoothedLikelihood`."""
    seen = np.zeros((K, K, K))
    np.add.at(seen, (COUNTS.first, COUNTS.second, COUNTS.mixture), COUNTS.counts)
    first, second = torch.arange(K).repeat_interleave(K), torch.arange(K).repeat(K)
    q = BASES[base].of_pairs(torch.full((K * K,), code), first, second).double().view(K, K).numpy()
    p = (seen[:, :, code] + concentration * q) / (seen.sum(2) + concentration)
    scores = torch.from_numpy(exponent * np.log(p))
    return scores + GAUSSIAN.log_density[code].double()[code_sums(BOOK).long()] * pooled


def likelihood(base, exponent, pooled):
    counted = SmoothedLikelihood(COUNTS, BASES[base], exponent)
    return PooledLikelihood(counted, GAUSSIAN) if pooled else counted


@pytest.mark.parametrize("pooled", (False, True))
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_tables_have_the_scores_of_the_counts(kernels, base, exponent, pooled):
    multiplied = 0
    for code in (0, 1, 40):
        scores = likelihood(base, exponent, pooled).scores(code)
        expected = by_hand(base, exponent, pooled, code)
        near = {"rtol": 1e-6, "atol": 1e-6 * max(1, exponent)}
        values = scores.explicit().values.view(K, K)
        torch.testing.assert_close(values.double(), expected, **near)
        pairs = torch.randint(K * K, (500,))
        torch.testing.assert_close(scores.at(pairs), values.flatten()[pairs])
        table = make_table(scores, K)
        assert (table.maximum >= values.max() - 1e-6 * values.max().abs()).all()
        if not isinstance(table, FactoredTable):
            assert exponent == 40 or pooled
            continue
        multiplied += 1
        kept = expected > table.maximum - 86
        rows = table.rows(torch.arange(K))
        torch.testing.assert_close(rows[kept].double(), expected[kept], **near)
        assert (rows[expected < table.maximum - 88] == -torch.inf).all()
        torch.testing.assert_close(
            table.at(pairs // K, pairs % K).double(), expected.flatten()[pairs], **near
        )
        assert table.nbytes == 4 * K**2
    assert multiplied or exponent > 3


@pytest.mark.parametrize("exponent", (1e-15, 1e6, 1e15))
def test_extreme_exponents_leave_every_table_sound(kernels, exponent):
    log_p = torch.randn(2, 1, 4, K).log_softmax(-1)
    for pooled in (False, True):
        scores = likelihood("marginals", exponent, pooled).scores(1)
        table = make_table(scores, K)
        assert table.weights.isfinite().all() and 0 <= table.weights.min()
        assert table.weights.max() <= 1 + 1e-6 and table.maximum.isfinite()
        drawn = draw_chunks(
            [table], *log_p, uniform_numbers(torch.Generator(), (1, 4), BOOK.device)
        )
        assert drawn.score.isfinite().all() and drawn.log_total.isfinite().all()


@pytest.mark.parametrize("k", (1, 15, 64, 257, 300))
@pytest.mark.parametrize("exponent", (None, 1.0, 3.0, 2.7, 0.01))
@pytest.mark.parametrize("gather", (torch.int16, torch.int32, None))
def test_compiled_weights_are_those_of_pytorch(k, exponent, gather):
    g = torch.Generator().manual_seed(k)
    power = gathered = None
    if exponent is not None:
        first, second = torch.rand(2, k, generator=g).pow(4) / 2
        power = (first, second, torch.rand(k * k, generator=g).pow(3) + 1e-6, exponent)
    if gather is not None:
        near = (-100 * torch.rand(20, generator=g)).exp()
        near[torch.rand(20, generator=g) < 0.2] = 0.0
        gathered = (near, torch.randint(20, (k * k,), generator=g).to(gather))
    for scale in (1.0, 1e-5, 0.0):
        expected = torch.full((k, k), scale, dtype=torch.float64)
        if power is not None:
            base = (power[0].double().unsqueeze(1) + power[1]) * power[2].double().view(k, k)
            expected *= base.clamp(max=1).pow(power[3])
        if gathered is not None:
            expected *= gathered[0].double()[gathered[1].int()].view(k, k)
        for kernels in KERNELS.values():
            found, largest = kernels.weigh_pairs(k, power, gathered, scale)
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-38)
            kept = expected > 1e-30
            error = (found.double()[kept].log() - expected[kept].log()).abs()
            assert error.numel() == 0 or error.max() < 2e-6
            assert largest == found.max()
            assert ((found == 0) | (found >= torch.finfo(torch.float32).tiny)).all()


def test_the_kernel_serves_where_there_is_a_compiler():
    if isinstance(KERNELS["found"], TorchKernels):
        pytest.skip("no compiler")
    assert isinstance(KERNELS["found"], CompiledKernels)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("pooled", (False, True))
def test_draws_equal_those_of_the_explicit_table(kernels, base, pooled):
    """For the same numbers, but for those within rounding of a boundary."""
    n = 4000
    g = torch.Generator().manual_seed(3)
    log_p = torch.randn(2, 1, n, K, generator=g).mul(2).log_softmax(-1)
    uniform = uniform_numbers(g, (1, n), BOOK.device)
    scores = likelihood(base, 1.0, pooled).scores(5)
    one, two = (
        draw_chunks([table], *log_p, uniform)
        for table in (make_table(scores, K), FullTable(scores.explicit(), K))
    )
    same = (one.first == two.first) & (one.second == two.second)
    assert same.double().mean() > 0.998
    torch.testing.assert_close(one.score[same], two.score[same], rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(one.log_total, two.log_total, rtol=1e-6, atol=2e-6)
    joint = log_p[0, 0].unsqueeze(2).double() + log_p[1, 0].unsqueeze(1)
    total = (joint + scores.values.view(K, K).double()).logsumexp((1, 2))
    torch.testing.assert_close(one.log_total[0].double(), total, rtol=1e-6, atol=2e-6)


def test_weights_that_vanish_are_drawn_from_the_terms(kernels):
    """The priors allow pairs alone that count as zero in the table: the draw finds them again."""
    log_p = torch.full((2, 1, 500, K), -torch.inf)
    log_p[0, ..., 3:5] = log_p[1, ..., 7:9] = math.log(0.5)
    values = torch.linspace(-300, 0, K)
    lookup = torch.full((K, K), K - 1)
    lookup[3:5, 7:9] = torch.tensor([[0, 0], [1, 0]])
    scores = FactoredScores(K, gathered=Gathered(values, lookup.flatten().short()))
    table = make_table(scores, K)
    assert isinstance(table, FactoredTable) and (table.weights[3:5, 7:9] == 0).all()
    uniform = uniform_numbers(torch.Generator(), (1, 500), BOOK.device)
    drawn = draw_chunks([table], *log_p, uniform)
    expected = draw_joint(log_p[0, 0], log_p[1, 0], scores.explicit(), uniform[0])
    assert torch.equal(drawn.first[0], expected.first)
    assert torch.equal(drawn.second[0], expected.second)
    torch.testing.assert_close(drawn.score[0], expected.score)
    assert len(set(zip(drawn.first[0].tolist(), drawn.second[0].tolist(), strict=True))) == 4


def test_products_that_could_lose_too_much_are_not_used(kernels):
    ones, rest = torch.ones(K), torch.ones(K * K)
    lookup = torch.zeros(K * K, dtype=torch.int16)
    loose = Gathered(torch.tensor([-30.0, 0.0]), lookup)  # no pair has the largest value
    nothing = Gathered(torch.full((2,), -torch.inf), lookup)
    underflow = Power(ones, torch.linspace(0, 1, K), rest * 1e-38, 0.5, 1e-38)
    for scores in (
        FactoredScores(K, gathered=loose),
        FactoredScores(K, gathered=nothing),
        FactoredScores(K, underflow),
        FactoredScores(K, underflow._replace(rest=rest, least=1.0), loose),
    ):
        table = make_table(scores, K)
        assert not isinstance(table, FactoredTable)
        assert torch.equal(table.explicit().values, scores.values)
    high = Stored(torch.tensor([5]), torch.tensor([40.0]))  # far above all others
    table = make_table(FactoredScores(K, gathered=loose, stored=high), K)
    assert isinstance(table, FactoredTable) and table.maximum == 40
    assert table.weights[0, 5] == 1 and table.weights[0, 4] == pytest.approx(math.exp(-70))


def test_terms_add_up_whatever_their_lookups():
    one = GAUSSIAN.term(3)
    other = Gathered(torch.randn(K), torch.randint(K, (K * K,)).short())
    scores = likelihood("gaussian", 2.0, pooled=True).scores(3)
    assert isinstance(scores, FactoredScores)  # the same lookup
    expected = scores.values + other.values[other.lookup.int()]
    found = scores.plus(other)
    assert isinstance(found, PairScores)
    torch.testing.assert_close(found.values, expected)
    alone = FactoredScores(K, gathered=one).plus(one)
    torch.testing.assert_close(alone.values, 2 * GAUSSIAN.scores(3).values)
