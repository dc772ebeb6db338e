"""Particles against the exact posterior over whole sequences, by enumeration."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from jukebox_core.config import PriorConfig
from jukebox_core.prior.cache import PriorCache
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.likelihood import PairScores
from jukebox_core.separation.particles import ParticleSampler, systematic_parents
from jukebox_core.separation.samples import JointSamples
from jukebox_core.separation.selection import Candidates, PosteriorMean

K, T = 3, 3
RUNS, N = 2000, 8


class Table:
    """Scores of a table [M, K, K]: all pairs, or those above -inf."""

    def __init__(self, table, sparse=False):
        self.n_codes, self.table, self.sparse = table.shape[1], table, sparse

    def scores(self, mixture_code):
        table = self.table[mixture_code]
        if not self.sparse:
            return PairScores(table.flatten())
        pairs = (table > -torch.inf).nonzero().T
        return PairScores(table[pairs[0], pairs[1]], pairs)


def make_prior(seed):
    torch.manual_seed(seed)
    model = AutoregressivePrior(
        PriorConfig(n_ctx=8, l_bins=K, width=8, depth=3, blocks=2, m_attn=0.5, embedding="table")
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model.eval()


class Recall:
    """A prior that remembers all of its codes: logits are sums over them, [B, K]."""

    n_codes, n_ctx = K, 8

    def __init__(self, seed):
        g = torch.Generator().manual_seed(seed)
        self.weights = 1.5 * torch.randn(self.n_ctx, K, K, generator=g)
        self.first = torch.randn(K, generator=g)

    def __call__(self, sequences):
        """Logits [B, T, K] of codes [B, T], each given those before it."""
        return torch.stack([self.logits(sequences[:, :t]) for t in range(sequences.shape[1])], 1)

    def logits(self, past):
        total = self.first.expand(len(past), K)
        for back in range(past.shape[1]):
            total = total + self.weights[back][past[:, -1 - back]]
        return total

    def new_cache(self, batch_size, length):
        return Past(torch.zeros(batch_size, 0, dtype=torch.int64))

    def step(self, codes, cache):
        if codes is not None:
            cache.codes = torch.cat([cache.codes, codes.unsqueeze(1)], 1)
        return self.logits(cache.codes)


@dataclass
class Past:
    codes: torch.Tensor

    def reorder(self, parents):
        self.codes = self.codes[parents]


RECALL = {"bass": Recall(18), "drums": Recall(19)}
PRIORS = {"bass": make_prior(20), "drums": make_prior(21)}


def make_likelihood(sparse=False):
    table = 1.5 * torch.randn(K, K, K, generator=torch.Generator().manual_seed(2))
    if sparse:
        table[:, 0, 1] = table[1, 2] = -torch.inf
    return Table(table, sparse)


def log_p(prior, sequences, temperature=1.0):
    """log p [S, T] of the codes [S, T], step by step."""
    with torch.no_grad():
        logits = prior(sequences).double() / temperature
    return logits.log_softmax(-1).gather(2, sequences.unsqueeze(2)).squeeze(2)


def posterior(likelihood, codes, temperature=1.0):
    """log of p1 p2 exp(scores), [K^T, K^T], of all pairs of sequences in lexicographic order."""
    sequences = torch.tensor(list(itertools.product(range(K), repeat=len(codes))))
    first, second = (log_p(prior, sequences, temperature).sum(1) for prior in RECALL.values())
    total = first.unsqueeze(1) + second
    for step, code in enumerate(codes):
        at = sequences[:, step]
        total += likelihood.table[code][at.unsqueeze(1), at].double()
    return total


def place(codes):
    """The lexicographic place of sequences [..., T]."""
    return (codes * K ** torch.arange(codes.shape[-1] - 1, -1, -1)).sum(-1)


def many(sampler, likelihood, codes, seed=0):
    """RUNS independent runs with N particles: the chunks of one batch."""
    mixtures = torch.tensor([codes]).expand(RUNS, -1)
    return sampler(RECALL, likelihood, mixtures, N, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", (1.0, 0.6))
@pytest.mark.parametrize("sparse", (False, True))
@pytest.mark.parametrize("threshold", (0.0, 0.75, 1.0))
def test_evidence_is_unbiased_and_weights_are_the_whole_posterior(threshold, sparse, temperature):
    """Unbiased for each pair of sequences as well: E[evidence * its weight] is its mass."""
    likelihood, codes = make_likelihood(sparse), [2, 1, 0]
    exact = posterior(likelihood, codes, temperature)
    log_z = exact.logsumexp((0, 1))
    out = many(ParticleSampler(temperature, threshold), likelihood, codes)
    torch.testing.assert_close(out.log_weights.exp().sum(1), torch.ones(RUNS).double())

    ratio = (out.log_evidence - log_z).exp()  # [RUNS], of mean 1
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(RUNS)

    mass = (exact - log_z).exp().flatten()  # of every pair of sequences
    index = place(out.codes["bass"]) * K**T + place(out.codes["drums"])
    share = torch.zeros(RUNS, len(mass), dtype=torch.float64)
    share.scatter_add_(1, index, ratio.unsqueeze(1) * out.log_weights.exp())
    error = (share.mean(0) - mass) / (share.std(0) / math.sqrt(RUNS)).clamp_min(1e-12)
    common = mass * RUNS * N > 100
    assert common.sum() > 10
    assert error[common].abs().max() < 4.5
    assert (share.mean(0)[mass == 0] == 0).all()
    # Self-normalised over all runs: the frequencies of the posterior, within a few per cent.
    frequencies = share.sum(0) / share.sum()
    assert (frequencies - mass).abs().sum() < 0.15


def test_it_is_not_the_stepwise_posterior():
    """What the weights are for: without them the same draws are off by many standard errors."""
    likelihood, codes = make_likelihood(), [2, 1, 0]
    exact = posterior(likelihood, codes)
    mass = (exact - exact.logsumexp((0, 1))).exp().flatten()
    out = many(AncestralSampler(), likelihood, codes)
    index = place(out.codes["bass"]) * K**T + place(out.codes["drums"])
    share = torch.bincount(index.flatten(), minlength=len(mass)) / (RUNS * N)
    error = (share - mass) / (mass * (1 - mass) / (RUNS * N)).sqrt()
    assert error.abs().max() > 8


@pytest.mark.parametrize("sparse", (False, True))
def test_without_resampling_particles_are_weighted_ancestral_candidates(sparse):
    likelihood = make_likelihood(sparse)
    mixtures = torch.tensor([[2, 1, 0, 1], [0, 0, 2, 1]])
    drawn = [
        sampler(PRIORS, likelihood, mixtures, 6, torch.Generator().manual_seed(5))
        for sampler in (AncestralSampler(), ParticleSampler(threshold=0.0))
    ]
    for name in PRIORS:
        assert torch.equal(drawn[0].codes[name], drawn[1].codes[name])
        torch.testing.assert_close(drawn[0].log_prior[name], drawn[1].log_prior[name])
    torch.testing.assert_close(drawn[0].log_likelihood, drawn[1].log_likelihood)
    weights = torch.stack([importance(likelihood, m, drawn[1], b) for b, m in enumerate(mixtures)])
    torch.testing.assert_close(drawn[1].log_weights, weights.log_softmax(1), atol=1e-5, rtol=1e-5)
    evidence = weights.logsumexp(1) - math.log(6)
    torch.testing.assert_close(drawn[1].log_evidence, evidence, atol=1e-5, rtol=1e-5)


def importance(likelihood, mixture, drawn, b):
    """The summed log-normalisers [N] of the steps that drew chunk b, by hand."""
    total = torch.zeros(drawn.log_weights.shape[1], dtype=torch.float64)
    codes = [drawn.codes[name][b] for name in PRIORS]
    for step, code in enumerate(mixture.tolist()):
        steps = []
        for prior, own in zip(PRIORS.values(), codes, strict=True):
            with torch.no_grad():
                steps.append(prior(own)[:, step].double().log_softmax(-1))
        joint = steps[0].unsqueeze(2) + steps[1].unsqueeze(1) + likelihood.table[code].double()
        total += joint.logsumexp((1, 2))
    return total


@pytest.mark.parametrize("threshold", (0.8, 1.0))
def test_log_probabilities_are_those_of_the_returned_codes(threshold):
    likelihood = make_likelihood()
    mixtures = torch.randint(0, K, (3, 8), generator=torch.Generator().manual_seed(1))
    out = ParticleSampler(threshold=threshold)(
        PRIORS, likelihood, mixtures, 7, torch.Generator().manual_seed(2)
    )
    for name, prior in PRIORS.items():
        expected = log_p(prior, out.codes[name].flatten(0, 1)).sum(1).view(3, 7).float()
        torch.testing.assert_close(out.log_prior[name], expected, atol=1e-4, rtol=1e-4)
    expected = likelihood.table[mixtures[:, None], out.codes["bass"], out.codes["drums"]].sum(-1)
    torch.testing.assert_close(out.log_likelihood, expected)


@pytest.mark.parametrize("form", ("full", "stored", "mixed"))
def test_chunks_get_the_same_particles_in_any_batches(form):
    likelihood = make_likelihood(form == "stored")
    if form == "mixed":
        plain = likelihood.scores
        stored = Table(likelihood.table, True).scores
        likelihood.scores = lambda code: stored(code) if code == 1 else plain(code)
    mixtures = torch.randint(0, K, (4, 8), generator=torch.Generator().manual_seed(7))
    sampler = ParticleSampler(threshold=0.9)
    together = sampler(PRIORS, likelihood, mixtures, 5, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    alone = [sampler(PRIORS, likelihood, m[None], 5, generator) for m in mixtures]
    for name in PRIORS:
        assert torch.equal(together.codes[name], torch.cat([a.codes[name] for a in alone]))
    for field in ("log_weights", "log_evidence", "log_likelihood"):
        parts = torch.cat([getattr(a, field) for a in alone])
        torch.testing.assert_close(getattr(together, field), parts, atol=1e-5, rtol=1e-5)


def test_particles_condition_on_the_context():
    likelihood = make_likelihood()
    mixtures = torch.tensor([[0, 1, 2], [2, 2, 1]])
    context = {name: torch.tensor([[0, 1], [2, 0]]) for name in PRIORS}
    out = ParticleSampler(threshold=1.0)(
        PRIORS, likelihood, mixtures, 6, torch.Generator().manual_seed(2), context=context
    )
    for name, prior in PRIORS.items():
        past = context[name][:, None].expand(2, 6, 2)
        whole = torch.cat([past, out.codes[name]], -1).flatten(0, 1)
        expected = log_p(prior, whole)[:, 2:].sum(1).view(2, 6).float()
        torch.testing.assert_close(out.log_prior[name], expected, atol=1e-4, rtol=1e-4)


def test_parents_are_systematic_and_survivors_stay():
    generator = torch.Generator().manual_seed(0)
    log_weights = (3 * torch.randn(50, 9, generator=generator, dtype=torch.float64)).log_softmax(1)
    uniform = torch.rand(50, generator=generator, dtype=torch.float64)
    parents = systematic_parents(log_weights, uniform)
    for w, u, row in zip(log_weights.exp(), uniform, parents, strict=True):
        points = (torch.arange(9) + u) / 9
        wanted = torch.searchsorted(w.cumsum(0), points, right=True).clamp(max=8)
        assert sorted(row.tolist()) == sorted(wanted.tolist())
        for n in set(row.tolist()):
            assert row[n] == n
    counts = torch.stack([(parents == n).sum(1) for n in range(9)], 1)
    assert ((counts - 9 * log_weights.exp()).abs() < 1).all()


def test_weightless_particles_have_no_children_and_equal_ones_all_stay():
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0], [0.2] * 5], dtype=torch.float64)
    for u in (0.0, 0.3, 1 - 2**-53):
        parents = systematic_parents(weights.log(), torch.tensor([u, u], dtype=torch.float64))
        assert set(parents[0].tolist()) <= {1, 3}
        assert parents[0, 1] == 1 and parents[0, 3] == 3
    middle = systematic_parents(weights.log(), torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert middle[1].tolist() == list(range(5))


def test_the_cache_moves_only_what_changes(monkeypatch):
    """Survivors keep their slot of the cache; without resampling it is not touched at all."""
    moved = []
    plain = PriorCache.reorder

    def reorder(cache, parents):
        moved.append(parents.clone())
        plain(cache, parents)

    monkeypatch.setattr(PriorCache, "reorder", reorder)
    mixtures = torch.tensor([[2, 1, 0, 1, 2, 0, 0, 1]] * 2)
    generator = torch.Generator().manual_seed(1)
    ParticleSampler(threshold=0.0)(PRIORS, make_likelihood(), mixtures, 6, generator)
    assert not moved
    ParticleSampler(threshold=0.9)(PRIORS, make_likelihood(), mixtures, 6, generator)
    assert moved
    for parents in moved:
        for chunk in range(2):
            own = parents[6 * chunk : 6 * chunk + 6] - 6 * chunk
            assert own.min() >= 0 and own.max() < 6
            assert all(own[n] == n for n in set(own.tolist()))


@pytest.mark.parametrize("sparse", (False, True))
def test_an_impossible_mixture_code_does_not_stop_it(sparse):
    table = torch.zeros(K, K, K)
    table[1] = -torch.inf
    likelihood = Table(table, sparse)
    mixtures = torch.tensor([[0, 1, 2], [0, 2, 2]])
    out = ParticleSampler()(PRIORS, likelihood, mixtures, 4, torch.Generator().manual_seed(1))
    assert out.log_evidence[0] == -torch.inf and out.log_evidence[1].isfinite()
    torch.testing.assert_close(out.log_weights[0].exp(), torch.full((4,), 0.25).double())


def test_the_mean_takes_the_weights_where_there_are_any():
    audio = {name: torch.zeros(2, 3, 16) for name in PRIORS}
    weights = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    drawn = JointSamples({}, {}, torch.zeros(2, 3), weights.log(), torch.zeros(2))
    mixture, alpha = torch.zeros(2, 16), dict.fromkeys(PRIORS, 0.5)
    mean = PosteriorMean()
    torch.testing.assert_close(mean(mixture, Candidates(audio, drawn), alpha), weights)
    plain = Candidates(audio, drawn._replace(log_weights=None))
    torch.testing.assert_close(mean(mixture, plain, alpha), torch.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"log_weights are \(1, 3\), the candidates \(2, 3\)"):
        mean(mixture, Candidates(audio, drawn._replace(log_weights=weights[:1].log())), alpha)


def test_refusals_and_progress():
    for settings, words in (
        ((0.0,), "temperature is 0.0"),
        ((1.0, 1.5), "threshold is 1.5, expected .*a share of N"),
        ((1.0, -0.1), "threshold is -0.1"),
    ):
        with pytest.raises(ValueError, match=words):
            ParticleSampler(*settings)
    codes = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="candidates is 0"):
        ParticleSampler()(PRIORS, make_likelihood(), codes, 0, torch.Generator())
    seen = []
    ParticleSampler()(
        PRIORS, make_likelihood(), codes, 2, torch.Generator(), lambda *x: seen.append(x)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
