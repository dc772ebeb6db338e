"""Draws of three and four sources' codes against enumeration of all tuples."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from hybrid.likelihood import PooledLikelihood
from hybrid.smoothing import GaussianBase
from jukebox_core.prior.kernels import Pairs, TorchKernels, find_kernels
from jukebox_core.prior.unigram import UnigramPriors
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.beam import BeamSampler
from jukebox_core.separation.chain import Chain, draw_codes
from jukebox_core.separation.pair_groups import PairGroups
from jukebox_core.separation.particles import ParticleSampler
from jukebox_core.separation.posterior import draw_chunks, make_table
from lass.counts import count_triples
from lass.likelihood import CountLikelihood, SmoothedLikelihood
from lass.link import CountLink
from lass.smoothing import Marginals, Overall
from lqvae.likelihood import LatentGaussianLikelihood
from lqvae.link import SumLink
from lqvae.sums import code_sums

K = 5
NAMES = ("bass", "drums", "guitar", "piano")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def codebook(seed=0):
    return torch.randn(K, 3, generator=generator(seed))


def counts(seed):
    rng = np.random.default_rng(seed)
    return count_triples(K, *(rng.integers(0, high, 60) for high in (K, K - 1, K)))


def gaussian(weights, seed=0):
    return LatentGaussianLikelihood(codebook(seed), code_sums(codebook(seed), weights), 0.7)


class KnownChain(Chain):
    """A chain, and p(s | first, second) of its links, [s, first, second], from other code."""

    def __init__(self, links, tables, last):
        super().__init__(links, last)
        self.tables = tables


def dense(scores):
    """Scores [K, K], float64, -inf where there are none."""
    scores = scores.explicit()
    table = torch.full((K * K,), -math.inf, dtype=torch.float64)
    at = slice(None) if scores.pairs is None else scores.pairs[0] * K + scores.pairs[1]
    table[at] = scores.values.double()
    return table.view(K, K)


def gaussian_chain(sources):
    weights = [((k - 1) / k, 1 / k) for k in range(2, sources)]
    sums = [code_sums(codebook(), w) for w in weights]
    tables = [torch.eye(K, dtype=torch.float64)[s].permute(2, 0, 1) for s in sums]
    last = gaussian(((sources - 1) / sources, 1 / sources))
    return KnownChain([SumLink(s) for s in sums], tables, last)


def counted(sources, base, last):
    """A chain whose links are smoothed counts; its tables are from `SmoothedLikelihood`."""
    seen = [counts(k) for k in range(2, sources)]
    own = [SmoothedLikelihood(c, base(c), 1.0, concentration=2.5) for c in seen]
    tables = [torch.stack([dense(each.scores(s)).exp() for s in range(K)]) for each in own]
    return KnownChain([CountLink(c, base(c), 2.5) for c in seen], tables, last)


def counted_chain(sources):
    last = counts(9)
    return counted(sources, Marginals, SmoothedLikelihood(last, Overall(last), 1.7))


def unsmoothed_chain(sources):
    return counted(sources, Overall, CountLikelihood(counts(9), 1.0))


def pooled_chain(sources):
    near, last = gaussian((0.5, 0.5)), counts(9)
    pooled = PooledLikelihood(SmoothedLikelihood(last, Marginals(last), 1.0), near)
    return counted(sources, lambda seen: GaussianBase(near, seen), pooled)


CHAINS = {
    "gaussian": gaussian_chain,
    "counted": counted_chain,
    "unsmoothed": unsmoothed_chain,
    "pooled": pooled_chain,
}
every_chain = pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
numbers = pytest.mark.parametrize("sources", (3, 4))


def likelihood_of_tuples(chain, mixture_code, sources):
    """p(m | z_1 .. z_S) of all tuples, [K] * S, by a sum over all partial sums."""
    last = dense(chain.scores(mixture_code)).exp()
    found = torch.zeros([K] * sources, dtype=torch.float64)
    for codes in itertools.product(range(K), repeat=sources):
        weights = torch.eye(K, dtype=torch.float64)[codes[0]]  # of the sum so far
        for table, code in zip(chain.tables, codes[1:-1], strict=True):
            weights = table[:, :, code] @ weights
        found[codes] = weights @ last[:, codes[-1]]
    return found


def posterior(log_p, chain, mixture_code):
    """Un-normalised p(z_1 .. z_S | m), [K] * S, from log-probabilities [S, K]."""
    joint = likelihood_of_tuples(chain, mixture_code, len(log_p))
    for axis, own in enumerate(log_p.double().exp()):
        joint = joint * own.view([K if i == axis else 1 for i in range(len(log_p))])
    return joint


def priors(sources, seed=4):
    drawn = torch.randn(sources, K, generator=generator(seed)).log_softmax(1)
    return UnigramPriors(dict(zip(NAMES, drawn, strict=False)))


def assert_frequencies(found, expected):
    """Chi-square of the counts of tuples; tuples expected less than 5 times are put together."""
    expected = expected.flatten() / expected.sum() * found.sum()
    assert found.flatten()[expected == 0].sum() == 0
    often = expected >= 5
    pairs = [(found.flatten()[often], expected[often])]
    rare = expected[~often].sum()
    if rare >= 5:
        pairs.append((found.flatten()[~often].sum()[None], rare[None]))
    statistic = sum(((seen - mean) ** 2 / mean).sum() for seen, mean in pairs)
    cells = sum(len(mean) for _, mean in pairs)
    assert cells > 20 and statistic < chi2.ppf(0.999, cells - 1)


@numbers
@every_chain
def test_links_are_distributions_and_messages_are_their_sums(make, sources):
    chain = make(sources)
    for link, table in zip(chain.links, chain.tables, strict=True):
        torch.testing.assert_close(table.sum(0), torch.ones(K, K).double(), rtol=0, atol=1e-6)
        first, second = torch.rand(2, 6, K, generator=generator(1), dtype=torch.float64)
        first[0, 2] = second[1, 3] = 0
        expected = torch.einsum("ni,nj,sij->ns", first, second, table)
        torch.testing.assert_close(link.message(first, second).mass, expected, rtol=1e-6, atol=1e-9)


@every_chain
@pytest.mark.parametrize("number", (0.0, 0.5, 1 - 2**-53))
def test_the_only_pair_of_a_sum_is_drawn_by_every_number(make, number):
    """Also where nothing was counted, and the base distribution alone has the pair."""
    chain = make(3)
    (link,), (table,) = chain.links, chain.tables
    sums, first, second = table.nonzero().T
    certain = torch.eye(K, dtype=torch.float64)
    message = link.message(certain[first], certain[second])
    parts = message.parts(sums, torch.full((len(sums), 2), number, dtype=torch.float64))
    assert torch.equal(parts.first, first) and torch.equal(parts.second, second)
    expected = table[sums, first, second].log()
    torch.testing.assert_close(parts.log_p, expected, rtol=0, atol=1e-5)


@numbers
@every_chain
@pytest.mark.parametrize("with_factors", (False, True))
def test_draws_and_evidence_are_those_of_the_enumerated_posterior(make, sources, with_factors):
    chain, joint, m, count = make(sources), priors(sources), 3, 40_000
    factors = None
    log_p = joint.step(None, joint.new_cache(1, 1))[:, 0]
    if with_factors:
        drawn = torch.randn(sources, 1, 1, K, generator=generator(6))
        drawn[0, 0, 0, 1] = -math.inf
        factors = dict(zip(NAMES, drawn, strict=False))
        log_p = log_p + drawn[:, 0, 0]
    exact = posterior(log_p, chain, m)
    sampled = ParticleSampler()(
        joint, chain, torch.tensor([[m]]), count, generator(), log_factors=factors
    )
    codes = torch.stack([sampled.codes[name][0, :, 0] for name in joint.names])
    found = torch.zeros_like(exact).index_put_(
        tuple(codes), torch.ones((), dtype=torch.float64), accumulate=True
    )
    assert_frequencies(found, exact)
    torch.testing.assert_close(sampled.log_evidence, exact.sum().log()[None], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        sampled.log_weights.exp(), torch.full((1, count), 1 / count).double()
    )


@every_chain
def test_where_nothing_is_possible_the_evidence_is_zero(make):
    factors = {name: torch.zeros(1, 1, K) for name in NAMES[:3]}
    factors["drums"][:] = -math.inf
    sampled = ParticleSampler()(
        priors(3), make(3), torch.tensor([[0]]), 5, generator(), log_factors=factors
    )
    assert sampled.log_evidence.item() == -math.inf
    assert all(((codes >= 0) & (codes < K)).all() for codes in sampled.codes.values())


def test_parts_with_other_codebooks_are_refused():
    larger = SumLink(torch.zeros(K + 1, K + 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[5, 6\] codes"):
        Chain([larger], gaussian((0.5, 0.5)))


def test_counts_that_cannot_be_smoothed_are_refused():
    with pytest.raises(ValueError, match="^concentration is 0"):
        CountLink(counts(0), Marginals(counts(0)), 0)
    other = count_triples(K + 1, *np.zeros((3, 1), dtype=np.int64))
    with pytest.raises(ValueError, match="counts over 5 codes, a base distribution over 6"):
        CountLink(counts(0), Marginals(other), 1.0)


def test_pairs_are_drawn_from_their_group_alone():
    """Also of a group without pairs, which only a candidate of no probability asks for."""
    groups = PairGroups(*torch.tensor([[0, 1, 2, 2], [3, 3, 1, 0]]), torch.tensor([0, 1, 1, 4]))
    one, other = torch.rand(2, 6, K, generator=generator(), dtype=torch.float64)
    uniform = torch.rand(6, generator=generator(), dtype=torch.float64)
    drawn = torch.stack(groups.draw(torch.tensor([0, 2, 1, 2, 0, 2]), one, other, uniform))
    found = [tuple(pair) for pair in drawn.T.tolist()]
    assert found[0] == found[4] == (0, 3) and found[2] in {(0, 3), (1, 3), (2, 1), (2, 0)}
    assert {found[n] for n in (1, 3, 5)} <= {(1, 3), (2, 1), (2, 0)}
    last = PairGroups(*torch.tensor([[0, 1, 2, 2], [3, 3, 1, 0]]), torch.tensor([0, 1, 4, 4]))
    first, second = last.draw(torch.tensor([2]), one[:1], other[:1], uniform[:1])
    assert (int(first), int(second)) in {(0, 3), (1, 3), (2, 1), (2, 0)}


def random_pairs(with_shares):
    """50 pairs of 7 codes in 3 groups, one of them empty."""
    first, second = torch.randint(7, (2, 50), generator=generator(1), dtype=torch.int32)
    shares = torch.rand(50, generator=generator(2), dtype=torch.float64) if with_shares else None
    return Pairs(first, second, torch.tensor([0, 0, 20, 50]), shares)


def weight_of(pairs, place, one, other):
    share = 1 if pairs.shares is None else pairs.shares[place]
    return one[pairs.first[place]] * other[pairs.second[place]] * share


@pytest.mark.parametrize("with_shares", (False, True))
@pytest.mark.parametrize("count", (1, 16, 37))
def test_masses_of_pairs_by_both_kernels(with_shares, count):
    pairs = random_pairs(with_shares)
    one, other = torch.rand(2, count, 7, generator=generator(), dtype=torch.float64)
    expected = torch.zeros(count, 3, dtype=torch.float64)
    for g in range(3):
        for e in range(int(pairs.offsets[g]), int(pairs.offsets[g + 1])):
            expected[:, g] += weight_of(pairs, e, one.T, other.T)
    for kernels in (TorchKernels(), find_kernels()):
        torch.testing.assert_close(kernels.pair_mass(pairs, one, other), expected)


@pytest.mark.parametrize("with_shares", (False, True))
def test_draws_of_pairs_by_both_kernels(with_shares):
    """By inversion: the first pair at which the sum of the weights exceeds the number's share.

    Weights of zero are never drawn, also at the ends of the interval; where all are zero, the first
    pair is.
    """
    pairs, count = random_pairs(with_shares), 400
    one, other = torch.rand(2, count, 7, generator=generator(), dtype=torch.float64)
    one[:, ::2] = 0
    one[-1] = 0
    uniform = torch.rand(count, generator=generator(3), dtype=torch.float64)
    uniform[:2], uniform[2:4] = 0, 1 - 2**-53
    groups = 1 + torch.arange(count) % 2
    expected = []
    for n, group in enumerate(groups.tolist()):
        start, stop = pairs.offsets[group : group + 2].tolist()
        weights = [float(weight_of(pairs, e, one[n], other[n])) for e in range(start, stop)]
        sums = [*itertools.accumulate(weights)]
        target = float(uniform[n]) * sums[-1]
        expected.append(start + next(i for i, x in enumerate(sums) if x > target or x == sums[-1]))
    for kernels in (TorchKernels(), find_kernels()):
        found = kernels.draw_pairs(pairs, groups, one, other, uniform)
        assert found.tolist() == expected


@numbers
def test_score_of_sums_is_the_likelihood_of_the_tuple(sources):
    """Sums of codes are no random variables: the score is log p(m | z_1 .. z_S)."""
    chain, joint, m = gaussian_chain(sources), priors(sources), 2
    sampled = AncestralSampler()(joint, chain, torch.tensor([[m]]), 50, generator())
    codes = tuple(sampled.codes[name][0, :, 0] for name in joint.names)
    expected = likelihood_of_tuples(chain, m, sources)[codes].log()
    torch.testing.assert_close(sampled.log_likelihood[0].double(), expected, rtol=1e-5, atol=1e-5)


@numbers
def test_particles_of_whole_sequences_have_an_unbiased_evidence(sources):
    chain, joint, mixture = counted_chain(sources), priors(sources), [3, 0]
    log_p = joint.step(None, joint.new_cache(1, 1))[:, 0]
    exact = math.prod(float(posterior(log_p, chain, m).sum()) for m in mixture)
    runs = 500
    sampled = ParticleSampler(threshold=1.0)(
        joint, chain, torch.tensor([mixture]).expand(runs, -1), 4, generator()
    )
    ratio = sampled.log_evidence.exp() / exact
    assert abs(ratio.mean() - 1) <= 4 * ratio.std() / math.sqrt(runs) + 1e-5


def test_two_sources_are_drawn_as_pairs():
    scores = gaussian((0.5, 0.5)).scores(1)
    log_p = torch.randn(2, 3, 7, K, generator=generator(2)).log_softmax(-1)
    uniform = torch.rand(3, 7, 2, generator=generator(3), dtype=torch.float64)
    tables = [make_table(scores, K)] * 3
    pair = draw_chunks(tables, *log_p, uniform)
    drawn = draw_codes((), tables, log_p, uniform)
    assert torch.equal(drawn.codes, torch.stack([pair.first, pair.second]))
    assert torch.equal(drawn.score, pair.score)
    assert torch.equal(drawn.log_total, pair.log_total)


@pytest.mark.parametrize("sources", (1, 3, 4))
def test_without_pair_likelihood_sources_are_independent(sources):
    joint, count = priors(sources), 20_000
    sampled = AncestralSampler()(joint, None, torch.zeros(1, 1).long(), count, generator())
    log_p = joint.step(None, joint.new_cache(1, 1))[:, 0]
    for own, codes in zip(log_p, sampled.codes.values(), strict=True):
        found = codes.flatten().bincount(minlength=K).double()
        expected = own.double().exp() * count
        assert ((found - expected) ** 2 / expected).sum() < chi2.ppf(0.999, K - 1)
    assert len({tuple(codes.flatten().tolist()) for codes in sampled.codes.values()}) == sources


def test_candidates_do_not_depend_on_the_batch():
    chain, joint = counted_chain(3), priors(3)
    mixtures = torch.randint(K, (3, 4), generator=generator(5))
    together = AncestralSampler()(joint, chain, mixtures, 6, generator(7))
    source = generator(7)
    for b in range(3):
        alone = AncestralSampler()(joint, chain, mixtures[b : b + 1], 6, source)
        for name in joint.names:
            assert torch.equal(alone.codes[name][0], together.codes[name][b])


def test_improbable_sums_keep_their_probability():
    """Priors that are nearly certain of codes whose sum the mixture excludes."""
    chain = unsmoothed_chain(3)
    log_p = torch.full((3, K), -100.0)
    log_p[:, 4] = 0.0
    joint = UnigramPriors(dict(zip(NAMES, log_p.log_softmax(1), strict=False)))
    exact = posterior(log_p.log_softmax(1), chain, 3)
    sampled = ParticleSampler()(joint, chain, torch.tensor([[3]]), 2000, generator())
    torch.testing.assert_close(sampled.log_evidence, exact.sum().log()[None], rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "sampler", (BeamSampler(), AncestralSampler(top_k=3), AncestralSampler(top_p=0.5))
)
def test_searches_among_pairs_refuse_other_numbers_of_sources(sampler):
    with pytest.raises(ValueError, match="3 sources: bass, drums, guitar"):
        sampler(priors(3), gaussian_chain(3), torch.tensor([[0]]), 4, generator())


def test_likelihoods_of_another_number_of_sources_are_refused():
    with pytest.raises(ValueError, match="for 2 sources.*3: bass, drums, guitar"):
        AncestralSampler()(priors(3), gaussian((0.5, 0.5)), torch.tensor([[0]]), 4, generator())
    with pytest.raises(ValueError, match="for 3 sources.*2: bass, drums"):
        AncestralSampler()(priors(2), gaussian_chain(3), torch.tensor([[0]]), 4, generator())
