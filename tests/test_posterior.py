"""Draws from the one-step posterior against the explicit joint in float64."""

import pytest
import torch
from scipy import stats

from jukebox_core.separation.posterior import categorical, draw, draw_dense, draw_sparse
from jukebox_core.separation.protocols import PairScores

K = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(seed=0, spread=2.0):
    g = generator(seed)
    log_p1, log_p2 = (torch.log_softmax(spread * torch.randn(K, generator=g), -1) for _ in range(2))
    return log_p1, log_p2, spread * torch.randn(K, K, generator=g)


def joint(log_p1, log_p2, table):
    """The posterior [K, K], the obvious way in float64."""
    mass = (log_p1.double()[:, None] + log_p2.double() + table.double()).exp()
    return mass / mass.sum()


def chi_square(first, second, expected):
    """p-value of observed pairs against the probabilities [K, K], rare cells pooled."""
    observed = torch.zeros(K * K).index_add_(0, first * K + second, torch.ones(len(first)))
    probability = expected.flatten()
    common = probability * len(first) >= 5
    o = torch.cat([observed[common], observed[~common].sum()[None]]).double()
    e = torch.cat([probability[common], probability[~common].sum()[None]]) * len(first)
    keep = e > 0
    assert o[~keep].sum() == 0
    return stats.chisquare(o[keep].numpy(), e[keep].numpy() * (o.sum() / e.sum()).item()).pvalue


@pytest.mark.parametrize("seed", range(3))
def test_two_stage_draw_has_the_frequencies_of_the_joint(seed):
    log_p1, log_p2, table = problem(seed)
    n = 40_000
    drawn = draw_dense(log_p1.expand(n, K), log_p2.expand(n, K), table, generator(seed))
    assert chi_square(drawn.first, drawn.second, joint(log_p1, log_p2, table)) > 1e-4
    torch.testing.assert_close(drawn.score, table[drawn.first, drawn.second])


def test_two_stage_factors_multiply_to_the_joint(monkeypatch):
    """The marginal and the conditional that the draw uses, captured, against the joint."""
    seen = []

    def capture(log_weights, generator=None):
        seen.append(torch.softmax(log_weights.double(), -1))
        return torch.arange(K)  # candidate n takes z1 = n, so every row's conditional is seen

    monkeypatch.setattr("jukebox_core.separation.posterior.categorical", capture)
    log_p1, log_p2, table = problem(7, spread=4.0)
    draw_dense(log_p1.expand(K, K), log_p2.expand(K, K), table)
    marginal, conditional = seen
    product = marginal[0][:, None] * conditional
    torch.testing.assert_close(product, joint(log_p1, log_p2, table), rtol=1e-5, atol=1e-9)


def test_mass_that_float32_loses_is_found_again():
    """W's large entries meet a vanishing p2: the scaled product underflows, the joint does not."""
    log_p1 = torch.full((K,), -torch.inf)
    log_p1[:2] = torch.log(torch.tensor([0.5, 0.5]))
    log_p2 = torch.full((K,), -200.0)
    log_p2[0] = 0.0
    table = torch.full((K, K), -400.0)
    table[0, 3] = 0.0  # mass e^-200
    table[1, 4] = 1.0  # mass e^-199
    expected = joint(log_p1, log_p2, table)
    n = 4000
    drawn = draw_dense(log_p1.expand(n, K), log_p2.expand(n, K), table, generator(3))
    assert chi_square(drawn.first, drawn.second, expected) > 1e-4
    assert set(zip(drawn.first.tolist(), drawn.second.tolist(), strict=True)) == {(0, 3), (1, 4)}


@pytest.mark.parametrize("seed", range(3))
def test_sparse_draw_has_the_frequencies_of_the_joint_on_its_support(seed):
    log_p1, log_p2, table = problem(seed)
    support = torch.rand(K, K, generator=generator(seed)) < 0.4
    pairs = support.nonzero().T
    expected = joint(log_p1, log_p2, table.masked_fill(~support, -torch.inf))
    n = 40_000
    scores = PairScores(table[support], pairs)
    drawn = draw(log_p1.expand(n, K), log_p2.expand(n, K), scores, generator(seed))
    assert chi_square(drawn.first, drawn.second, expected) > 1e-4
    torch.testing.assert_close(drawn.score, table[drawn.first, drawn.second])


def test_candidates_with_different_priors_each_get_their_own_posterior():
    table = problem(1)[2]
    priors = [problem(seed)[:2] for seed in (4, 5)]
    n = 30_000
    log_p1 = torch.stack([priors[i % 2][0] for i in range(n)])
    log_p2 = torch.stack([priors[i % 2][1] for i in range(n)])
    pairs = torch.cartesian_prod(torch.arange(K), torch.arange(K)).T
    for drawn in (
        draw_dense(log_p1, log_p2, table, generator(8)),
        draw_sparse(log_p1, log_p2, table.flatten(), pairs, generator(9)),
    ):
        for i in range(2):
            expected = joint(*priors[i], table)
            assert chi_square(drawn.first[i::2], drawn.second[i::2], expected) > 1e-4


def test_categorical_never_draws_impossible_values():
    log_weights = torch.tensor([-torch.inf, 0.0, -torch.inf]).expand(10_000, 3)
    assert (categorical(log_weights, generator()) == 1).all()
