"""Samplers with log-factors of each source: exact against enumeration in float64."""

import itertools
import math

import pytest
import torch
from scipy import stats

from jukebox_core.prior.unigram import UnigramPriors
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.beam import BeamSampler
from jukebox_core.separation.likelihood import PairScores
from jukebox_core.separation.particles import ParticleSampler
from jukebox_core.separation.posterior import ConstantTable, FullTable, draw_chunks, draw_joint
from jukebox_core.separation.truncation import Truncation, draw_truncated
from tests.test_particles import PRIORS, RECALL, K, T, make_likelihood, place

CODES = [2, 1, 0]
SEQUENCES = torch.tensor(list(itertools.product(range(K), repeat=T)))
PAIRS = ("full", "stored", "none")


def make_factors(batch=1, steps=T, spread=2.0, forbid=False):
    generator = torch.Generator().manual_seed(11)
    factors = {
        name: spread * torch.randn(batch, steps, K, generator=generator) + 3 for name in RECALL
    }
    if forbid:
        factors["bass"][:, 1, 0] = -math.inf
    return factors


def pair_likelihood(form):
    return None if form == "none" else make_likelihood(form == "stored")


def step_log_p(prior, past, temperature):
    """Log-probabilities [K] of the code after `past`, in float64."""
    logits = prior.logits(torch.tensor([past], dtype=torch.int64).view(1, -1))[0]
    return (logits.double() / temperature).log_softmax(0)


def step_posterior(likelihood, factors, step, past, temperature):
    """Log of p1 e^f1 p2 e^f2 e^score [K, K] at a step, after past = (codes, codes)."""
    one, two = (
        step_log_p(prior, own, temperature) + factors[name][0, step].double()
        for (name, prior), own in zip(RECALL.items(), past, strict=True)
    )
    total = one.unsqueeze(1) + two
    return total if likelihood is None else total + likelihood.table[CODES[step]].double()


def whole_posterior(likelihood, factors, temperature=1.0):
    """Log-masses [K^T, K^T] of all pairs of sequences, and those of the stepwise draws."""
    whole = torch.zeros(K**T, K**T, dtype=torch.float64)
    stepwise = whole.clone()
    for i, first in enumerate(SEQUENCES.tolist()):
        for j, second in enumerate(SEQUENCES.tolist()):
            for step in range(T):
                past = (first[:step], second[:step])
                law = step_posterior(likelihood, factors, step, past, temperature)
                here = law[first[step], second[step]]
                whole[i, j] += here
                stepwise[i, j] += here - law.logsumexp((0, 1))
    return whole, stepwise


@pytest.mark.parametrize("form", PAIRS)
@pytest.mark.parametrize("temperature", (1.0, 0.6))
def test_ancestral_draws_have_the_probabilities_of_the_stepwise_posterior(form, temperature):
    likelihood, factors = pair_likelihood(form), make_factors(forbid=True)
    expected = whole_posterior(likelihood, factors, temperature)[1].exp().flatten()
    n = 40_000
    out = AncestralSampler(temperature)(
        RECALL,
        likelihood,
        torch.tensor([CODES]),
        n,
        torch.Generator().manual_seed(0),
        None,
        factors,
    )
    index = place(out.codes["bass"][0]) * K**T + place(out.codes["drums"][0])
    observed = torch.bincount(index, minlength=len(expected)).double()
    assert observed[expected == 0].sum() == 0
    common = expected * n >= 5
    rest = ~common
    o = torch.cat([observed[common], observed[rest].sum()[None]])
    e = torch.cat([expected[common], expected[rest].sum()[None]]) * n
    assert len(o) > 10
    assert stats.chisquare(o.numpy(), (e * o.sum() / e.sum()).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("form", PAIRS)
@pytest.mark.parametrize("threshold", (0.0, 0.75))
def test_evidence_is_unbiased_and_weights_are_the_whole_posterior(form, threshold):
    runs, n = 2000, 8
    likelihood, factors = pair_likelihood(form), make_factors(spread=0.4)
    exact = whole_posterior(likelihood, factors)[0]
    log_z = exact.logsumexp((0, 1))
    out = ParticleSampler(threshold=threshold)(
        RECALL,
        likelihood,
        torch.tensor([CODES]).expand(runs, -1),
        n,
        torch.Generator().manual_seed(1),
        None,
        {name: x.expand(runs, -1, -1) for name, x in factors.items()},
    )
    ratio = (out.log_evidence - log_z).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(runs)
    mass = (exact - log_z).exp().flatten()
    index = place(out.codes["bass"]) * K**T + place(out.codes["drums"])
    share = torch.zeros(runs, len(mass), dtype=torch.float64)
    share.scatter_add_(1, index, ratio.unsqueeze(1) * out.log_weights.exp())
    error = (share.mean(0) - mass) / (share.std(0) / math.sqrt(runs)).clamp_min(1e-12)
    common = mass * runs * n > 100
    assert common.sum() > 10
    assert error[common].abs().max() < 4.5


@pytest.mark.parametrize("form", PAIRS)
def test_beams_list_all_sequences_in_order(form):
    likelihood, factors = pair_likelihood(form), make_factors(forbid=True)
    exact = whole_posterior(likelihood, factors)[0].flatten()
    possible = exact[exact > -math.inf].sort().values
    out = BeamSampler()(
        RECALL, likelihood, torch.tensor([CODES]), len(possible), None, None, factors
    )
    score = sum(out.log_prior.values()) + out.log_likelihood
    torch.testing.assert_close(score[0].double(), possible, rtol=1e-5, atol=1e-5)
    index = place(out.codes["bass"][0]) * K**T + place(out.codes["drums"][0])
    torch.testing.assert_close(exact[index], possible)
    assert len(index.unique()) == len(possible)


@pytest.mark.parametrize("form", PAIRS)
@pytest.mark.parametrize(
    "sampler", (AncestralSampler(), ParticleSampler(threshold=0.9), BeamSampler())
)
def test_log_probabilities_are_those_of_the_returned_codes(sampler, form):
    likelihood = pair_likelihood(form)
    mixtures = torch.randint(0, K, (3, 8), generator=torch.Generator().manual_seed(1))
    factors = make_factors(3, 8)
    generator = torch.Generator().manual_seed(2)
    out = sampler(PRIORS, likelihood, mixtures, 7, generator, None, factors)
    expected = torch.zeros(3, 7)
    for name, prior in PRIORS.items():
        codes = out.codes[name]
        logits = prior(codes.flatten(0, 1)).detach().log_softmax(-1).unflatten(0, (3, 7))
        log_p = logits.gather(3, codes.unsqueeze(3)).squeeze(3).sum(2)
        torch.testing.assert_close(out.log_prior[name], log_p, atol=1e-4, rtol=1e-4)
        own = factors[name].unsqueeze(1).expand(-1, 7, -1, -1)
        expected += own.gather(3, codes.unsqueeze(3)).squeeze(3).sum(2)
    if likelihood is not None:
        first, second = out.codes["bass"], out.codes["drums"]
        expected += likelihood.table[mixtures[:, None], first, second].sum(-1)
    torch.testing.assert_close(out.log_likelihood, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", (AncestralSampler(), ParticleSampler(threshold=0.9)))
def test_chunks_get_the_same_candidates_in_any_batches(sampler):
    likelihood = make_likelihood()
    mixtures = torch.randint(0, K, (4, 8), generator=torch.Generator().manual_seed(7))
    factors = make_factors(4, 8)
    whole = sampler(
        PRIORS, likelihood, mixtures, 5, torch.Generator().manual_seed(2), None, factors
    )
    generator = torch.Generator().manual_seed(2)
    for b, mixture in enumerate(mixtures):
        own = {name: x[b : b + 1] for name, x in factors.items()}
        alone = sampler(PRIORS, likelihood, mixture[None], 5, generator, None, own)
        for name in PRIORS:
            assert torch.equal(whole.codes[name][b], alone.codes[name][0])


@pytest.mark.parametrize("form", PAIRS)
def test_constant_factors_change_the_evidence_and_nothing_else(form):
    likelihood, mixtures = pair_likelihood(form), torch.tensor([[2, 1, 0, 1]])
    constant = {"bass": torch.full((1, 4, K), 5.0), "drums": torch.full((1, 4, K), -2.0)}
    zero = dict.fromkeys(RECALL, torch.zeros(1, 4, K))
    drawn = [
        ParticleSampler()(
            RECALL, likelihood, mixtures, 6, torch.Generator().manual_seed(5), None, f
        )
        for f in (None, zero, constant)
    ]
    for other, shift in zip(drawn[1:], (0.0, 4 * 3.0), strict=True):
        for name in RECALL:
            assert torch.equal(drawn[0].codes[name], other.codes[name])
        torch.testing.assert_close(other.log_weights, drawn[0].log_weights, atol=1e-5, rtol=1e-5)
        evidence = drawn[0].log_evidence + shift
        torch.testing.assert_close(other.log_evidence, evidence, atol=1e-4, rtol=1e-5)
        likelihoods = drawn[0].log_likelihood + shift
        torch.testing.assert_close(other.log_likelihood, likelihoods, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("form", PAIRS)
def test_factors_far_beyond_float32_are_drawn_as_from_the_explicit_joint(form):
    """Factors and priors that contradict each other by hundreds of nats lose no mass."""
    likelihood = pair_likelihood(form)
    generator = torch.Generator().manual_seed(3)
    factors = {name: 300 * torch.randn(1, T, K, generator=generator) for name in RECALL}
    whole, stepwise = whole_posterior(likelihood, factors)
    out = AncestralSampler()(
        RECALL,
        likelihood,
        torch.tensor([CODES]),
        200,
        torch.Generator().manual_seed(0),
        None,
        factors,
    )
    index = place(out.codes["bass"][0]) * K**T + place(out.codes["drums"][0])
    assert stepwise.flatten()[index.unique()].exp().sum() > 0.9
    particles = ParticleSampler(threshold=0.0)(
        RECALL,
        likelihood,
        torch.tensor([CODES]),
        64,
        torch.Generator().manual_seed(0),
        None,
        factors,
    )
    assert abs(particles.log_evidence[0] - whole.logsumexp((0, 1))) < 1e-3 * abs(whole.max())


def test_the_constant_table_is_a_table_of_zeros():
    n, k = 5, 40
    generator = torch.Generator().manual_seed(4)
    log_p = torch.randn(2, 1, n, k, generator=generator).mul(3).log_softmax(-1)
    uniform = torch.rand(1, n, 2, generator=generator, dtype=torch.float64)
    zeros = FullTable(PairScores(torch.zeros(k * k)), k)
    tables = [ConstantTable(k, torch.device("cpu")), zeros]
    for draw in (
        draw_chunks,
        lambda *x: draw_truncated(*x, Truncation(top_k=7)),
        lambda *x: draw_truncated(*x, Truncation(top_p=0.3)),
    ):
        one, two = (draw([table], log_p[0], log_p[1], uniform) for table in tables)
        assert torch.equal(one.first, two.first)
        assert torch.equal(one.second, two.second)
        torch.testing.assert_close(one.log_total, two.log_total, atol=1e-5, rtol=1e-5)
    explicit = draw_joint(log_p[0, 0], log_p[1, 0], tables[0].explicit(), uniform[0])
    again = draw_joint(log_p[0, 0], log_p[1, 0], zeros.explicit(), uniform[0])
    assert torch.equal(explicit.first, again.first)


def test_unigram_priors_with_scaled_likelihoods_give_the_network_itself():
    """log q - log p from the priors p: every step is drawn from q, whatever came before."""
    generator = torch.Generator().manual_seed(6)
    q = {name: torch.randn(1, 2, K, generator=generator).log_softmax(-1) for name in RECALL}
    p = {name: torch.randn(K, generator=generator).log_softmax(-1) for name in RECALL}
    factors = {name: q[name] - p[name] for name in RECALL}
    n = 20_000
    out = ParticleSampler()(
        UnigramPriors(p),
        None,
        torch.tensor([[0, 0]]),
        n,
        torch.Generator().manual_seed(0),
        None,
        factors,
    )
    torch.testing.assert_close(out.log_evidence, torch.zeros(1).double(), atol=1e-5, rtol=0)
    for name, codes in out.codes.items():
        for step in range(2):
            observed = torch.bincount(codes[0, :, step], minlength=K)
            expected = q[name][0, step].double().softmax(0) * n
            assert stats.chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-4


def test_factors_that_do_not_fit_are_refused():
    def draw(factors):
        AncestralSampler()(RECALL, None, torch.tensor([CODES]), 2, torch.Generator(), None, factors)

    factors = make_factors()
    with pytest.raises(ValueError, match=r"log-factors of bass, but none of drums"):
        draw({"bass": factors["bass"]})
    with pytest.raises(
        ValueError, match=r"log-factors of bass are \(1, 2, 3\), expected \(1, 3, 3\)"
    ):
        draw({**factors, "bass": factors["bass"][:, :2]})
    for value in (math.nan, math.inf):
        broken = factors["drums"].clone()
        broken[0, 0, 0] = value
        with pytest.raises(ValueError, match="log-factors of drums hold NaN or infinity"):
            draw({**factors, "drums": broken})
