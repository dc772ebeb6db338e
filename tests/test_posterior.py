"""Draws from the one-step posterior against the explicit joint in float64."""

import pytest
import torch
from scipy import stats

from jukebox_core.separation import posterior
from jukebox_core.separation.likelihood import FactoredScores, Gathered, PairScores
from jukebox_core.separation.posterior import (
    categorical,
    draw,
    draw_chunks,
    draw_joint,
    make_table,
    uniform_numbers,
)

K = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*shape, seed=0):
    return uniform_numbers(generator(seed), shape, torch.device("cpu"))


def forms(table, support=None):
    """The scores [K, K] in every form that can say them."""
    if support is not None:
        return [PairScores(table[support], support.nonzero().T)]
    every = torch.cartesian_prod(torch.arange(K), torch.arange(K)).T
    values, index = table.flatten().unique(return_inverse=True)
    return [
        PairScores(table.flatten()),
        FactoredScores(K, gathered=Gathered(values, index.short())),
        PairScores(table.flatten(), every),
    ]


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


FORMS = ("full", "indexed", "stored")


@pytest.mark.parametrize("form", range(3), ids=FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_draws_have_the_frequencies_of_the_joint(seed, form):
    log_p1, log_p2, table = problem(seed)
    table = table.round(decimals=0)  # few values, so that the index says something
    n = 40_000
    scores = forms(table)[form]
    drawn = draw(log_p1.expand(n, K), log_p2.expand(n, K), scores, numbers(n, seed=seed))
    assert chi_square(drawn.first, drawn.second, joint(log_p1, log_p2, table)) > 1e-4
    torch.testing.assert_close(drawn.score, table[drawn.first, drawn.second])


@pytest.mark.parametrize("form", range(3), ids=FORMS)
def test_log_total_is_that_of_the_joint(form):
    log_p1, log_p2, table = problem(2, spread=5.0)
    scores = forms(table)[form]
    drawn = draw(log_p1.expand(4, K), log_p2.expand(4, K), scores, numbers(4))
    total = (log_p1.double()[:, None] + log_p2.double() + table.double()).logsumexp((0, 1))
    torch.testing.assert_close(drawn.log_total.double(), total.expand(4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", range(3), ids=FORMS)
def test_every_number_gives_the_pair_at_its_place_in_the_joint(form):
    """Inversion, number by number: on a fine grid, the pairs' shares are their probabilities."""
    log_p1, log_p2, table = problem(7, spread=3.0)
    side = 300
    grid = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    uniform = torch.cartesian_prod(grid, grid)
    n = len(uniform)
    scores = forms(table)[form]
    drawn = draw(log_p1.expand(n, K), log_p2.expand(n, K), scores, uniform)
    share = torch.bincount(drawn.first * K + drawn.second, minlength=K * K) / n
    expected = joint(log_p1, log_p2, table).flatten()
    torch.testing.assert_close(share.double(), expected, rtol=0, atol=2.5 / side)


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
    for scores in forms(table):
        drawn = draw(log_p1.expand(n, K), log_p2.expand(n, K), scores, numbers(n, seed=3))
        assert chi_square(drawn.first, drawn.second, expected) > 1e-4
        pairs = set(zip(drawn.first.tolist(), drawn.second.tolist(), strict=True))
        assert pairs == {(0, 3), (1, 4)}


def test_draws_that_lost_nothing_are_not_drawn_again(monkeypatch):
    """The explicit joint takes N x K x K memory."""
    monkeypatch.setattr(posterior, "draw_joint", None)
    log_p1, log_p2, table = problem()
    for scores in forms(table):
        drawn = draw(log_p1.expand(9, K), log_p2.expand(9, K), scores, numbers(9))
        assert drawn.lost is None


@pytest.mark.parametrize("seed", range(3))
def test_sparse_draw_has_the_frequencies_of_the_joint_on_its_support(seed):
    log_p1, log_p2, table = problem(seed)
    support = torch.rand(K, K, generator=generator(seed)) < 0.4
    expected = joint(log_p1, log_p2, table.masked_fill(~support, -torch.inf))
    n = 40_000
    scores = forms(table, support)[0]
    uniform = numbers(n, seed=seed)
    for drawn in (
        draw(log_p1.expand(n, K), log_p2.expand(n, K), scores, uniform),
        draw_joint(log_p1.expand(n, K), log_p2.expand(n, K), scores, uniform),
    ):
        assert chi_square(drawn.first, drawn.second, expected) > 1e-4
        torch.testing.assert_close(drawn.score, table[drawn.first, drawn.second])


def test_many_stored_pairs_are_drawn_through_their_blocks():
    """More pairs than one block of the two-stage inversion holds."""
    k, n = 40, 20_000
    g = generator(1)
    log_p = torch.log_softmax(2 * torch.randn(2, k, generator=g), -1)
    pairs = (torch.rand(k, k, generator=g) < 0.6).nonzero().T
    values = torch.randn(pairs.shape[1], generator=g)
    uniform = numbers(n, seed=2)
    drawn = draw(log_p[0].expand(n, k), log_p[1].expand(n, k), PairScores(values, pairs), uniform)
    p = (log_p[0][pairs[0]] + log_p[1][pairs[1]] + values).double().softmax(0)
    place = torch.full((k, k), -1)
    place[pairs[0], pairs[1]] = torch.arange(len(values))
    observed = torch.bincount(place[drawn.first, drawn.second], minlength=len(values)).double()
    common = p * n >= 5
    o = torch.cat([observed[common], observed[~common].sum()[None]])
    e = torch.cat([p[common], p[~common].sum()[None]]) * n
    assert stats.chisquare(o.numpy(), e.numpy() * (n / e.sum()).item()).pvalue > 1e-4


def test_candidates_with_different_priors_each_get_their_own_posterior():
    table = problem(1)[2]
    priors = [problem(seed)[:2] for seed in (4, 5)]
    n = 30_000
    log_p1 = torch.stack([priors[i % 2][0] for i in range(n)])
    log_p2 = torch.stack([priors[i % 2][1] for i in range(n)])
    for scores in forms(table):
        drawn = draw(log_p1, log_p2, scores, numbers(n, seed=8))
        for i in range(2):
            expected = joint(*priors[i], table)
            assert chi_square(drawn.first[i::2], drawn.second[i::2], expected) > 1e-4


@pytest.mark.parametrize("kinds", [(0, 1), (2, 3), (0, 2, 3)], ids=("full", "stored", "mixed"))
def test_chunks_together_are_chunks_alone(kinds):
    problems = [problem(seed) for seed in range(len(kinds))]
    support = torch.rand(K, K, generator=generator(0)) < 0.5
    tables = [
        make_table(([*forms(p[2]), *forms(p[2], support)])[kind], K)
        for kind, p in zip(kinds, problems, strict=True)
    ]
    n = 50
    log_p1, log_p2 = (torch.stack([p[i].expand(n, K) for p in problems]) for i in range(2))
    uniform = numbers(len(kinds), n, seed=4)
    together = draw_chunks(tables, log_p1, log_p2, uniform)
    for b, table in enumerate(tables):
        one = slice(b, b + 1)
        alone = draw_chunks([table], log_p1[one], log_p2[one], uniform[one])
        for name in ("first", "second", "score"):
            assert torch.equal(getattr(together, name)[b], getattr(alone, name)[0]), name
        torch.testing.assert_close(together.log_total[b], alone.log_total[0])


def test_categorical_never_draws_impossible_values():
    log_weights = torch.tensor([-torch.inf, 0.0, -torch.inf]).expand(10_000, 3)
    uniform = torch.linspace(0, 1, 10_000, dtype=torch.float64)
    assert (categorical(log_weights, uniform)[0] == 1).all()
