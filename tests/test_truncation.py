"""Draws among the most probable pairs against the explicit joint, sorted in float64."""

import math

import pytest
import torch
from scipy import stats

from jukebox_core.separation import ancestral as sampling
from jukebox_core.separation import truncation
from jukebox_core.separation.likelihood import FactoredScores, Gathered, PairScores
from jukebox_core.separation.posterior import make_table, uniform_numbers
from jukebox_core.separation.truncation import Truncation, draw_truncated, leading, top_k_bound

CUTS = [(1, 1.0), (7, 1.0), (0, 0.3), (0, 0.9), (20, 0.6), (3, 0.9)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(k, n=5, seed=0, spread=2.0):
    """Log-probabilities [N, K] of both sources, another one per candidate, and a table [K, K]."""
    g = generator(seed)
    log_p1, log_p2 = (
        torch.log_softmax(spread * torch.randn(n, k, generator=g), -1) for _ in range(2)
    )
    return log_p1, log_p2, spread * torch.randn(k, k, generator=g)


def forms(table, support):
    """The scores as all pairs, as few values with an index, and as stored pairs."""
    values, index = table.flatten().unique(return_inverse=True)
    return {
        "full": PairScores(table.flatten()),
        "indexed": FactoredScores(len(table), gathered=Gathered(values, index.short())),
        "stored": PairScores(table[support], support.nonzero().T),
    }


def kept_by_hand(log_p1, log_p2, table, top_k, top_p):
    """Probabilities [N, K * K] of the truncated posterior: sorted, cut, renormalised."""
    joint = log_p1.double().unsqueeze(2) + log_p2.double().unsqueeze(1) + table.double()
    joint = joint.flatten(1)
    p = joint.softmax(1)
    kept = torch.ones_like(p, dtype=torch.bool)
    for row, (log_weights, mass) in enumerate(zip(joint, p, strict=True)):
        order = log_weights.argsort(descending=True)
        count = min(top_k or len(order), len(order))
        if top_p < 1:
            count = min(count, int((mass[order].cumsum(0) < top_p).sum()) + 1)
        kept[row] = log_weights >= log_weights[order[count - 1]]
    return torch.where(kept, p, 0.0) / torch.where(kept, p, 0.0).sum(1, keepdim=True)


def draw(scores, k, log_p1, log_p2, uniform, cut):
    table = make_table(scores, k)
    found = draw_truncated([table], log_p1[None], log_p2[None], uniform[None], Truncation(*cut))
    assert found.lost is None
    return found


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("form", ("full", "indexed", "stored"))
@pytest.mark.parametrize(("k", "spread"), [(6, 2.0), (90, 1.5), (90, 0.1)])
def test_draws_are_inversions_of_the_sorted_and_cut_joint(form, k, spread, cut):
    """Number by number; with 90 codes the first codes looked at suffice, or (0.1) never do."""
    log_p1, log_p2, table = problem(k, seed=k, spread=spread)
    support = torch.rand(k, k, generator=generator(1)) < (1.0 if form != "stored" else 0.6)
    p = kept_by_hand(log_p1, log_p2, table.masked_fill(~support, -torch.inf), *cut)
    scores = forms(table, support)[form]
    for step in range(8):
        uniform = uniform_numbers(generator(step), (len(p),), torch.device("cpu"))
        found = draw(scores, k, log_p1, log_p2, uniform, cut)
        cumulated = p.cumsum(1)
        wanted = torch.searchsorted(cumulated, uniform[:, :1] * cumulated[:, -1:], right=True)
        assert torch.equal(found.first[0] * k + found.second[0], wanted.squeeze(1))
        torch.testing.assert_close(found.score[0], table[found.first[0], found.second[0]])


@pytest.mark.parametrize("form", ("full", "indexed", "stored"))
def test_draws_have_the_frequencies_of_the_cut_joint(form):
    k, n = 20, 10_000
    log_p1, log_p2, table = problem(k, 1, seed=3)
    scores = forms(table, torch.ones(k, k, dtype=torch.bool))[form]
    uniform = uniform_numbers(generator(), (n,), torch.device("cpu"))
    for cut in ((30, 1.0), (0, 0.8)):
        found = draw(scores, k, log_p1.expand(n, k), log_p2.expand(n, k), uniform, cut)
        p = kept_by_hand(log_p1, log_p2, table, *cut)[0]
        observed = torch.bincount(found.first[0] * k + found.second[0], minlength=k * k).double()
        assert observed[p == 0].sum() == 0
        rare = p * n < 5
        o = torch.cat([observed[~rare], observed[rare].sum()[None]])
        e = torch.cat([p[~rare], p[rare].sum()[None]]) * n
        o, e = o[e > 0], e[e > 0]
        assert stats.chisquare(o.numpy(), (e * o.sum() / e.sum()).numpy()).pvalue > 1e-4


def test_log_total_is_that_of_the_kept_pairs():
    log_p1, log_p2, table = problem(50, seed=4)
    uniform = torch.zeros(5, 2, dtype=torch.float64)
    joint = (log_p1.double().unsqueeze(2) + log_p2.double().unsqueeze(1) + table).flatten(1)
    for scores in forms(table, torch.ones(50, 50, dtype=torch.bool)).values():
        found = draw(scores, 50, log_p1, log_p2, uniform, (9, 1.0))
        wanted = joint.topk(9).values.logsumexp(1).float()
        torch.testing.assert_close(found.log_total[0], wanted)


def test_few_codes_are_looked_at_where_they_suffice_and_the_rest_goes_on_alone():
    """One flat candidate among peaked ones is the only one for which all codes are looked at."""
    k = 300
    log_p1, log_p2, table = problem(k, 6, seed=5, spread=3.0)
    log_p1[2] = log_p2[2] = -math.log(k)
    seen = {}
    full = make_table(PairScores(0.1 * table.flatten()), k)
    for found in leading(full, log_p1.double(), log_p2.double(), top_k_bound(10)):
        for candidate in found.candidates.tolist():
            assert candidate not in seen
            seen[candidate] = found.first.shape[1]
    assert set(seen) == set(range(6))
    assert seen.pop(2) == k and max(seen.values()) < k / 2


@pytest.mark.parametrize("form", ("full", "indexed", "stored"))
def test_pairs_as_probable_as_the_last_one_stay(form):
    k = 40
    flat = torch.full((1, k), -math.log(k))
    table = torch.zeros(k, k)
    table[5, 7] = table[6, 1] = table[30, 39] = 3.0
    table[0, 0] = 4.0
    scores = forms(table, torch.ones(k, k, dtype=torch.bool))[form]
    n = 400
    uniform = uniform_numbers(generator(2), (n,), torch.device("cpu"))
    wanted = {1: {(0, 0)}, 2: {(0, 0), (5, 7), (6, 1), (30, 39)}}
    for top_k, pairs in wanted.items():
        found = draw(scores, k, flat.expand(n, k), flat.expand(n, k), uniform, (top_k, 1.0))
        assert set(zip(found.first[0].tolist(), found.second[0].tolist(), strict=True)) == pairs
    mass = math.exp(4) + 3 * math.exp(3) + k * k - 4
    top_p = (math.exp(4) + 1) / mass  # the first pair does not reach it, the next three are equal
    found = draw(scores, k, flat.expand(n, k), flat.expand(n, k), uniform, (0, top_p))
    assert set(zip(found.first[0].tolist(), found.second[0].tolist(), strict=True)) == wanted[2]


def test_mass_that_float32_loses_is_no_obstacle():
    """As in test_posterior: the product of the table and p2 underflows, the joint does not."""
    k = 50
    log_p1 = torch.full((1, k), -torch.inf)
    log_p1[0, :2] = math.log(0.5)
    log_p2 = torch.full((1, k), -200.0)
    log_p2[0, 0] = 0.0
    table = torch.full((k, k), -400.0)
    table[0, 3], table[1, 4] = 0.0, 1.0
    uniform = uniform_numbers(generator(), (1,), torch.device("cpu"))
    for cut in ((1, 1.0), (0, 0.7)):
        found = draw(PairScores(table.flatten()), k, log_p1, log_p2, uniform, cut)
        assert (int(found.first), int(found.second)) == (1, 4)


def test_memory_is_bounded_without_a_change(monkeypatch):
    log_p1, log_p2, table = problem(70, 9, seed=7, spread=1.0)
    uniform = uniform_numbers(generator(), (9,), torch.device("cpu"))
    for scores in forms(table, torch.rand(70, 70, generator=generator()) < 0.5).values():
        whole = draw(scores, 70, log_p1, log_p2, uniform, (0, 0.9))
        with monkeypatch.context() as patch:
            patch.setattr(truncation, "_ENTRIES", 1)
            patch.setattr(truncation, "_FIRST_SORTED", 4)
            parts = draw(scores, 70, log_p1, log_p2, uniform, (0, 0.9))
        assert torch.equal(whole.first, parts.first) and torch.equal(whole.second, parts.second)


def test_candidates_do_not_depend_on_their_batch():
    problems = [problem(60, 4, seed=seed, spread=1.0 + seed) for seed in range(3)]
    support = torch.rand(60, 60, generator=generator(9)) < 0.4
    kinds = ("full", "stored", "indexed")
    tables = [
        make_table(forms(p[2], support)[kind], 60) for p, kind in zip(problems, kinds, strict=True)
    ]
    log_p1, log_p2 = (torch.stack([p[i] for p in problems]) for i in range(2))
    uniform = uniform_numbers(generator(1), (3, 4), torch.device("cpu"))
    cut = Truncation(25, 0.8)
    together = draw_truncated(tables, log_p1, log_p2, uniform, cut)
    for b, table in enumerate(tables):
        for n in range(4):
            at = slice(b, b + 1), slice(n, n + 1)
            alone = draw_truncated([table], log_p1[at], log_p2[at], uniform[at], cut)
            assert alone.first[0, 0] == together.first[b, n]
            assert alone.second[0, 0] == together.second[b, n]


def test_an_impossible_mixture_code_gives_a_pair_of_score_minus_infinity():
    log_p1, log_p2, _ = problem(50, 2)
    uniform = uniform_numbers(generator(1), (2,), torch.device("cpu"))
    found = draw(PairScores(torch.full((2500,), -torch.inf)), 50, log_p1, log_p2, uniform, (3, 0.5))
    assert (found.score == -torch.inf).all() and (found.log_total == -torch.inf).all()


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ((-1, 1.0), "top_k is -1, expected an integer"),
        ((2.5, 1.0), "top_k is 2.5, expected an integer"),
        ((0, 0.0), "top_p is 0.0, expected"),
        ((0, 1.5), "top_p is 1.5, expected"),
        ((0, math.nan), "top_p is nan"),
    ],
)
def test_bad_values_are_refused(cut, words):
    with pytest.raises(ValueError, match=words):
        Truncation(*cut)
    with pytest.raises(ValueError, match=words):
        sampling.AncestralSampler(1.0, *cut)
