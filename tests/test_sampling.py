"""Ancestral sampling against the exact posterior over whole sequences, by enumeration."""

import itertools

import pytest
import torch
from scipy import stats

from jukebox_core.config import PriorConfig
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.separation import ancestral as sampling
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.likelihood import PairScores

K, T = 3, 2


class TableLikelihood:
    """Dense or sparse scores from a [K, K, K] table (mixture code, z1, z2)."""

    def __init__(self, table, support=None):
        self.table, self.support, self.n_codes = table, support, table.shape[0]

    def scores(self, mixture_code):
        if self.support is None:
            return PairScores(self.table[mixture_code].flatten())
        keep = self.support[mixture_code]
        return PairScores(self.table[mixture_code][keep], keep.nonzero().T)


def small_prior(seed):
    torch.manual_seed(seed)
    model = AutoregressivePrior(
        PriorConfig(n_ctx=4, l_bins=K, width=8, depth=3, blocks=2, m_attn=0.5, embedding="table")
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return model.eval()


def step_posterior(priors, table, support, mixture, past, temperature):
    """The one-step posterior [K, K] in float64 after `past` = ((z1...), (z2...))."""
    log_p = []
    for prior, codes in zip(priors, past, strict=True):
        padded = torch.tensor([[*codes, 0]])
        logits = prior(padded)[0, -1].double() / temperature
        log_p.append(torch.log_softmax(logits, -1))
    t = len(past[0])
    mass = (log_p[0][:, None] + log_p[1] + table[mixture[t]].double()).exp()
    if support is not None:
        mass = mass * support[mixture[t]]
    return mass / mass.sum()


@pytest.mark.parametrize("sparse", (False, True))
@pytest.mark.parametrize("temperature", (1.0, 0.7))
def test_sequences_have_the_probabilities_of_the_stepwise_posterior(sparse, temperature):
    torch.manual_seed(3)
    table = 1.5 * torch.randn(K, K, K)
    support = (torch.rand(K, K, K) < 0.6) if sparse else None
    if support is not None:
        support[:, 0, 0] = True
    priors = {"bass": small_prior(1), "drums": small_prior(2)}
    mixtures = torch.tensor([[0, 2], [1, 1]])
    n = 20_000
    out = AncestralSampler(temperature)(
        priors,
        TableLikelihood(table, support),
        mixtures,
        n,
        torch.Generator().manual_seed(0),
    )
    assert out.codes["bass"].shape == (2, n, T)
    pairs = list(itertools.product(range(K), repeat=2))
    for b, mixture in enumerate(mixtures.tolist()):
        expected = {}
        for first in pairs:
            p_first = step_posterior(
                priors.values(), table, support, mixture, ((), ()), temperature
            )[first]
            past = ((first[0],), (first[1],))
            second = step_posterior(priors.values(), table, support, mixture, past, temperature)
            for pair in pairs:
                expected[first + pair] = (p_first * second[pair]).item()
        bass, drums = out.codes["bass"][b], out.codes["drums"][b]
        observed = dict.fromkeys(expected, 0)
        for row in torch.stack([bass[:, 0], drums[:, 0], bass[:, 1], drums[:, 1]], 1).tolist():
            observed[tuple(row)] += 1
        cells = [key for key in expected if expected[key] * n >= 5]
        rest = [sum(d[k] for k in expected if k not in cells) for d in (observed, expected)]
        o = [observed[k] for k in cells] + [rest[0]]
        e = [expected[k] * n for k in cells] + [rest[1] * n]
        if e[-1] == 0:
            assert o[-1] == 0
            o, e = o[:-1], e[:-1]
        scale = sum(o) / sum(e)
        assert stats.chisquare(o, [x * scale for x in e]).pvalue > 1e-4


@pytest.mark.parametrize("sparse", (False, True))
@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (4, 1.0), (0, 0.6), (5, 0.8)])
def test_truncated_draws_are_those_of_every_steps_truncated_posterior(sparse, top_k, top_p):
    """top_k and top_p act on the pairs, and the temperature on the priors before that."""
    torch.manual_seed(3)
    table = 1.5 * torch.randn(K, K, K)
    support = (torch.rand(K, K, K) < 0.7) if sparse else None
    priors = {"bass": small_prior(1), "drums": small_prior(2)}
    mixture, temperature, n = [0, 2], 0.8, 20_000
    out = AncestralSampler(temperature, top_k, top_p)(
        priors,
        TableLikelihood(table, support),
        torch.tensor([mixture]),
        n,
        torch.Generator().manual_seed(0),
    )

    def cut(past):
        p = step_posterior(priors.values(), table, support, mixture, past, temperature).flatten()
        order = p.argsort(descending=True)
        reached = int((p[order].cumsum(0) < top_p).sum()) + 1 if top_p < 1 else len(p)
        kept = order[: min(reached, top_k or len(p))]
        share = torch.zeros_like(p).index_copy_(0, kept, p[kept])
        return (share / share.sum()).view(K, K).detach()

    first = cut(((), ()))
    expected = torch.zeros(K, K, K, K, dtype=torch.float64)
    for z1, z2 in (first > 0).nonzero().tolist():
        expected[z1, z2] = first[z1, z2] * cut(((z1,), (z2,)))
    bass, drums = out.codes["bass"][0], out.codes["drums"][0]
    place = ((bass[:, 0] * K + drums[:, 0]) * K + bass[:, 1]) * K + drums[:, 1]
    observed = torch.bincount(place, minlength=K**4).double()
    e = expected.flatten() * n
    assert observed[e == 0].sum() == 0
    common = e >= 5
    o = torch.cat([observed[common], observed[~common].sum()[None]])
    e = torch.cat([e[common], e[~common].sum()[None]])
    o, e = o[e > 1e-9], e[e > 1e-9]
    if len(o) > 1:
        assert stats.chisquare(o.numpy(), (e * o.sum() / e.sum()).numpy()).pvalue > 1e-4


def test_without_truncation_the_fast_path_is_taken(monkeypatch):
    torch.manual_seed(6)
    likelihood = TableLikelihood(torch.randn(K, K, K))
    priors = {"bass": small_prior(1), "drums": small_prior(2)}
    mixtures = torch.randint(0, K, (2, 4))

    def forbidden(*_):
        raise AssertionError("the explicit joint was taken")

    monkeypatch.setattr(sampling, "draw_truncated", forbidden)
    drawn = [
        sampler(priors, likelihood, mixtures, 5, torch.Generator().manual_seed(2)).codes["drums"]
        for sampler in (AncestralSampler(), AncestralSampler(1.0, 0, 1.0))
    ]
    assert torch.equal(*drawn)
    with pytest.raises(AssertionError, match="explicit joint"):
        AncestralSampler(top_k=2)(priors, likelihood, mixtures, 5, torch.Generator())


def test_log_probabilities_are_those_of_the_drawn_codes():
    torch.manual_seed(5)
    table = torch.randn(K, K, K)
    priors = {"bass": small_prior(1), "drums": small_prior(2)}
    mixtures = torch.randint(0, K, (3, 4))
    out = AncestralSampler()(
        priors, TableLikelihood(table), mixtures, 5, torch.Generator().manual_seed(1)
    )
    for name, prior in priors.items():
        flat = out.codes[name].flatten(0, 1)
        log_p = torch.log_softmax(prior(flat), -1).gather(2, flat.unsqueeze(2)).sum((1, 2))
        torch.testing.assert_close(out.log_prior[name].flatten(), log_p, atol=1e-4, rtol=1e-4)
    expected = table[mixtures[:, None], out.codes["bass"], out.codes["drums"]].sum(-1)
    torch.testing.assert_close(out.log_likelihood, expected)


def test_same_seed_same_draws_and_progress_is_reported():
    table = torch.zeros(K, K, K)
    priors = {"bass": small_prior(1), "drums": small_prior(2)}
    seen = []
    runs = [
        AncestralSampler()(
            priors,
            TableLikelihood(table),
            torch.zeros(1, 4, dtype=torch.int64),
            6,
            torch.Generator().manual_seed(9),
            lambda done, total: seen.append((done, total)),
        )
        for _ in range(2)
    ]
    assert torch.equal(runs[0].codes["bass"], runs[1].codes["bass"])
    assert seen == [(i, 4) for i in range(1, 5)] * 2


@pytest.mark.parametrize("cut", [(0, 1.0), (4, 1.0), (0, 0.7)])
def test_chunks_get_the_same_candidates_in_any_batches(cut):
    torch.manual_seed(6)
    likelihood = TableLikelihood(torch.randn(K, K, K))
    priors = {"bass": small_prior(1), "drums": small_prior(2)}
    mixtures = torch.randint(0, K, (3, 4))
    sampler = AncestralSampler(1.0, *cut)
    together = sampler(priors, likelihood, mixtures, 5, torch.Generator().manual_seed(2)).codes[
        "bass"
    ]
    generator = torch.Generator().manual_seed(2)
    alone = [sampler(priors, likelihood, m[None], 5, generator) for m in mixtures]
    assert torch.equal(together, torch.cat([a.codes["bass"] for a in alone]))


def test_parts_that_do_not_fit_are_refused():
    priors = {"bass": small_prior(1), "drums": small_prior(2)}
    generator = torch.Generator()
    codes = torch.zeros(1, 2, dtype=torch.int64)
    likelihood = TableLikelihood(torch.zeros(5, 5, 5))
    with pytest.raises(ValueError, match="belong to different codecs"):
        AncestralSampler()(priors, likelihood, codes, 1, generator)
    likelihood = TableLikelihood(torch.zeros(K, K, K))
    with pytest.raises(ValueError, match="for 2 sources, the priors are of 1: bass"):
        AncestralSampler()({"bass": priors["bass"]}, likelihood, codes, 1, generator)
    with pytest.raises(ValueError, match="exceed the priors' context of 4"):
        AncestralSampler()(priors, likelihood, codes.expand(1, 2).repeat(1, 3), 1, generator)
    with pytest.raises(ValueError, match="temperature is 0.0, expected"):
        AncestralSampler(0.0)
    with pytest.raises(ValueError, match="candidates is 0"):
        AncestralSampler()(priors, likelihood, codes, 0, generator)
