"""Beam search against all sequences enumerated."""

import itertools

import pytest
import torch

from jukebox_core.config import PriorConfig
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.separation import beam, truncation
from jukebox_core.separation.beam import BeamSampler, best_entries
from jukebox_core.separation.likelihood import FactoredScores, Gathered, PairScores
from jukebox_core.separation.posterior import make_table
from jukebox_core.separation.samples import Sampler
from jukebox_core.separation.sampling_task import Step

K = 3


class Table:
    """A likelihood given as a table [M, K, K], or as its pairs above -inf."""

    def __init__(self, table, sparse=False):
        self.n_codes = table.shape[1]
        self._table, self._sparse = table, sparse

    def scores(self, mixture_code):
        table = self._table[mixture_code]
        if not self._sparse:
            return PairScores(table.flatten())
        pairs = (table > -torch.inf).nonzero().T
        return PairScores(table[pairs[0], pairs[1]], pairs)


def make_prior(seed, steps=8):
    torch.manual_seed(seed)
    config = PriorConfig(
        n_ctx=steps, l_bins=K, width=16, depth=3, blocks=4, embedding="table", init_scale=30.0
    )
    return AutoregressivePrior(config).eval()


def all_scores(priors, likelihood, codes, temperature=1.0):
    """{(first codes, second codes): joint log-score} of all possible sequences."""
    sequences = torch.tensor(list(itertools.product(range(K), repeat=len(codes))))
    log_p = []
    for prior in priors.values():
        with torch.no_grad():
            logits = prior(sequences).double() / temperature
        chosen = logits.log_softmax(-1).gather(2, sequences.unsqueeze(2)).squeeze(2)
        log_p.append(chosen.sum(1))
    scores = {}
    for i, first in enumerate(sequences.tolist()):
        for j, second in enumerate(sequences.tolist()):
            total = log_p[0][i] + log_p[1][j]
            for step, code in enumerate(codes):
                found = likelihood.scores(code)
                if found.pairs is None:
                    total = total + found.values[first[step] * K + second[step]].double()
                    continue
                match = (found.pairs[0] == first[step]) & (found.pairs[1] == second[step])
                total = total + (found.values[match].double().sum() if match.any() else -torch.inf)
            scores[tuple(first), tuple(second)] = float(total)
    return scores


def found(result, b=0):
    """[(sequences, score)] of one mixture, ascending."""
    score = result.log_prior["a"][b] + result.log_prior["b"][b] + result.log_likelihood[b]
    pairs = zip(result.codes["a"][b].tolist(), result.codes["b"][b].tolist(), strict=True)
    return [((tuple(x), tuple(y)), s) for (x, y), s in zip(pairs, score.tolist(), strict=True)]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_without_pruning_it_lists_all_sequences_in_order(sparse, temperature):
    generator = torch.Generator().manual_seed(4)
    table = 2 * torch.randn(2, K, K, generator=generator)
    if sparse:
        table[0, 0] = table[1, :, 2] = -torch.inf
    priors = {"a": make_prior(1), "b": make_prior(2)}
    likelihood, codes = Table(table, sparse), [1, 0, 1]
    scores = all_scores(priors, likelihood, codes, temperature)
    possible = sorted((v, k) for k, v in scores.items() if v > -torch.inf)
    sampler: Sampler = BeamSampler(temperature)
    result = sampler(priors, likelihood, torch.tensor([codes]), len(possible), torch.Generator())
    got = found(result)
    assert [score for _, score in got] == pytest.approx([v for v, _ in possible], rel=1e-5)
    assert {pair for pair, _ in got} == {pair for _, pair in possible}
    assert got[-1][0] == possible[-1][1]
    for pair, score in got:
        assert score == pytest.approx(scores[pair], rel=1e-5)


def test_pruned_beams_are_the_best_continuations_of_the_best():
    """The reference keeps scores with their beams, step after step."""
    generator = torch.Generator().manual_seed(5)
    table = 2 * torch.randn(3, K, K, generator=generator)
    priors = {"a": make_prior(3), "b": make_prior(4)}
    likelihood, codes = Table(table), [2, 0, 1, 1, 0]
    for n in (1, 2, 5):
        beams = [((), ())]
        for step in range(len(codes)):
            scores = {}
            longer = [((*x, i), (*y, j)) for x, y in beams for i in range(K) for j in range(K)]
            prefix = all_pairs_scores(priors, likelihood, codes[: step + 1], longer)
            scores = sorted(zip(prefix, longer, strict=True))
            beams = [pair for _, pair in scores[-n:]]
        result = BeamSampler()(priors, likelihood, torch.tensor([codes]), n)
        assert [pair for pair, _ in found(result)] == beams
        wanted = [score for score, _ in scores[-n:]]
        assert [score for _, score in found(result)] == pytest.approx(wanted, rel=1e-5)


def all_pairs_scores(priors, likelihood, codes, pairs):
    total = torch.zeros(len(pairs), dtype=torch.float64)
    for source, prior in enumerate(priors.values()):
        sequences = torch.tensor([pair[source] for pair in pairs])
        with torch.no_grad():
            log_p = prior(sequences).double().log_softmax(-1)
        total += log_p.gather(2, sequences.unsqueeze(2)).squeeze(2).sum(1)
    for step, code in enumerate(codes):
        values = likelihood.scores(code).values.double()
        total += torch.stack([values[x[step] * K + y[step]] for x, y in pairs])
    return total.tolist()


def test_mixtures_of_a_batch_do_not_mix():
    table = torch.randn(2, K, K, generator=torch.Generator().manual_seed(6))
    priors = {"a": make_prior(5), "b": make_prior(6)}
    codes = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 1]])
    together = BeamSampler()(priors, Table(table), codes, 4)
    for b in range(2):
        alone = BeamSampler()(priors, Table(table), codes[b : b + 1], 4)
        for name in priors:
            assert torch.equal(together.codes[name][b], alone.codes[name][0])
        torch.testing.assert_close(together.log_likelihood[b], alone.log_likelihood[0])


def test_equal_scores_give_different_beams_lowest_codes_first():
    class Flat:
        n_codes, n_ctx = K, 9
        new_cache = staticmethod(make_prior(0).new_cache)

        def step(self, codes, cache):
            return torch.zeros(cache.batch_size, K)

    priors = {"a": Flat(), "b": Flat()}
    result = BeamSampler()(priors, Table(torch.zeros(1, K, K)), torch.zeros(1, 2, dtype=int), 4)
    pairs = [pair for pair, _ in found(result)]
    assert pairs == [((0, 0), (0, 0)), ((0, 0), (0, 1)), ((0, 0), (0, 2)), ((0, 1), (0, 0))]
    again = BeamSampler()(priors, Table(torch.zeros(1, K, K)), torch.zeros(1, 2, dtype=int), 4)
    assert torch.equal(result.codes["a"], again.codes["a"])


def test_fewer_possible_sequences_than_candidates():
    table = torch.full((1, K, K), -torch.inf)
    table[0, 1, 2], table[0, 2, 0] = -1.0, -2.0
    priors = {"a": make_prior(7), "b": make_prior(8)}
    codes = torch.zeros(1, 2, dtype=torch.int64)
    for sparse in (False, True):
        result = BeamSampler()(priors, Table(table, sparse), codes, 7)
        got = found(result)
        scores = all_scores(priors, Table(table, sparse), [0, 0])
        best = max(scores, key=scores.get)
        assert [pair for pair, _ in got[:3]] == [best] * 3  # four sequences, three places left
        assert len({pair for pair, _ in got}) == 4 and got[-1][0] == best
        assert all(score == pytest.approx(scores[pair], rel=1e-5) for pair, score in got)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_impossible_step_is_named(sparse):
    table = torch.zeros(2, K, K)
    table[1] = -torch.inf
    priors = {"a": make_prior(1), "b": make_prior(2)}
    with pytest.raises(ValueError, match="at step 1, whose mixture code is 1"):
        BeamSampler()(priors, Table(table, sparse), torch.tensor([[0, 1]]), 2)


def test_refusals_and_progress():
    with pytest.raises(ValueError, match="temperature is 0"):
        BeamSampler(0.0)
    priors = {"a": make_prior(1), "b": make_prior(2)}
    codes = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="candidates is 0"):
        BeamSampler()(priors, Table(torch.zeros(1, K, K)), codes, 0)
    seen = []
    BeamSampler()(priors, Table(torch.zeros(1, K, K)), codes, 2, None, lambda *x: seen.append(x))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_best_entries():
    matrix = torch.tensor([[1.0, 5.0, 2.0], [5.0, 0.0, 5.0]])
    best = best_entries(matrix, 3)
    assert best.values.tolist() == [5.0, 5.0, 5.0]
    assert list(zip(best.rows.tolist(), best.columns.tolist(), strict=True)) == [
        (0, 1),
        (1, 0),
        (1, 2),
    ]
    best = best_entries(matrix, 2)  # a tie is cut by position
    assert list(zip(best.rows.tolist(), best.columns.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert best_entries(matrix, 99).values.tolist() == [0.0, 1.0, 2.0, 5.0, 5.0, 5.0]


class Whole:
    """A prior of log-probabilities 0 and -64, exactly: equal scores are equal to the last bit."""

    n_codes, n_ctx = K, 8

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        orders = torch.tensor(list(itertools.permutations([0.0, -64.0, -64.0])))
        self.rows = orders[torch.randint(6, (8, K), generator=generator)]  # [T, last code, K]

    def new_cache(self, batch_size, length):
        return make_prior(0).new_cache(batch_size, length)

    def prefill(self, codes, cache):
        cache.position = codes.shape[1]

    def step(self, codes, cache):
        position = cache.position
        cache.position += 1
        last = torch.zeros(cache.batch_size, dtype=int) if codes is None else codes
        return self.rows[position, last]

    def total(self, codes):
        last = (0, *codes[:-1])
        pairs = enumerate(zip(last, codes, strict=True))
        return sum(float(self.rows[t, x, y]) for t, (x, y) in pairs)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 20])
def test_ties_of_pruned_beams_go_to_the_first_beam_and_the_lowest_codes(n, sparse):
    """Whole-number scores: most are equal to others, and where the beams end it matters."""
    priors = {"a": Whole(1), "b": Whole(2)}
    generator = torch.Generator().manual_seed(3)
    table = 64.0 * torch.randint(0, 2, (2, K, K), generator=generator)
    if sparse:
        table[0, 1, 0] = table[1, 2] = -torch.inf
    codes = [0, 1, 1, 0]
    beams = [((), ())]
    for step in range(len(codes)):
        longer = [((*x, i), (*y, j)) for x, y in beams for i in range(K) for j in range(K)]
        scores = [
            priors["a"].total(x)
            + priors["b"].total(y)
            + sum(float(table[m, i, j]) for m, i, j in zip(codes[: step + 1], x, y, strict=True))
            for x, y in longer
        ]
        order = sorted(range(len(longer)), key=lambda i: -scores[i])  # stable: the first of equals
        kept = [i for i in sorted(order[:n], key=lambda i: scores[i]) if scores[i] > -torch.inf]
        kept = sorted(kept, key=lambda i: (scores[i], i))
        beams = [longer[i] for i in kept]
    result = BeamSampler()(priors, Table(table, sparse), torch.tensor([codes]), n)
    assert [pair for pair, _ in found(result)][n - len(beams) :] == beams


def make_step(k, n, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.log_softmax(spread * torch.randn(2, n, k, generator=generator).double(), -1)
    return log_p, torch.randn(k, k, generator=generator), -5 * torch.rand(n, generator=generator)


@pytest.mark.parametrize("form", ["full", "indexed", "stored"])
@pytest.mark.parametrize("spread", [0.0, 0.2, 2.0])
@pytest.mark.parametrize("bounded", [False, True])
def test_one_step_of_many_codes_is_that_of_the_explicit_joint(form, spread, bounded, monkeypatch):
    """Few codes of a source are looked at (2.0), or all of them (0.2); with 0.0 all ties count."""
    k, n = 80, 12
    log_p, table, score = make_step(k, n, 4, spread)
    table = table.round()
    score[3] = -torch.inf
    if spread == 0:
        score = score.round()
    values, lookup = table.flatten().unique(return_inverse=True)
    every = torch.cartesian_prod(torch.arange(k), torch.arange(k)).T
    scores = {
        "full": PairScores(table.flatten()),
        "indexed": FactoredScores(k, gathered=Gathered(values, lookup.short())),
        "stored": PairScores(table.flatten(), every),
    }[form]
    if bounded:
        monkeypatch.setattr(truncation, "_ENTRIES", 1)
        monkeypatch.setattr(beam, "_ENTRIES", 1)
    joint = (log_p[0].unsqueeze(2) + log_p[1].unsqueeze(1)).flatten(1) + table.flatten().double()
    wanted = best_entries(joint + score.double().unsqueeze(1), n)
    state = beam._Beams(n, 1, torch.device("cpu"))
    state.score = score.double()
    parents = state.advance(0, Step(log_p[:, None], log_p[:, None]), 0, make_table(scores, k))
    assert torch.equal(parents, wanted.rows)
    assert torch.equal(state.codes[0][:, 0] * k + state.codes[1][:, 0], wanted.columns)
    torch.testing.assert_close(state.score, wanted.values)
    torch.testing.assert_close(state.parts.sum(0) + score[parents], wanted.values)


def after(priors, pairs, past):
    """Summed log p of both sequences after their first `past` codes."""
    total = torch.zeros(len(pairs), dtype=torch.float64)
    for source, prior in enumerate(priors.values()):
        sequences = torch.tensor([pair[source] for pair in pairs])
        with torch.no_grad():
            log_p = prior(sequences).double().log_softmax(-1)
        total += log_p.gather(2, sequences.unsqueeze(2)).squeeze(2)[:, past:].sum(1)
    return total.tolist()
