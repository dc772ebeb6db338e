"""Upstream's selection among all pairs of candidates."""

import pytest
import torch

from jukebox_core.separation.rejection import (
    RejectionPair,
    RejectionWeights,
    _posteriors,
    pair_posterior,
)
from jukebox_core.separation.samples import Candidates, JointSamples


def case(n=5, t=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    log_prior = tuple(-10 * torch.rand(n, generator=generator) - 1 for _ in range(2))
    audio = tuple(torch.randn(n, t, generator=generator) for _ in range(2))
    return log_prior, audio, torch.randn(t, generator=generator)


def test_posterior_is_its_formula_pair_by_pair():
    log_prior, audio, mixture = case()
    alpha, steps = (0.7, 0.3), 8
    found = pair_posterior(log_prior, audio, mixture, alpha, steps)
    prior = torch.empty(5, 5, dtype=torch.float64)
    squared = torch.empty(5, 5, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            prior[i, j] = (log_prior[0][i].double() + log_prior[1][j].double()) / steps
            rest = alpha[0] * audio[0][i].double() + alpha[1] * audio[1][j].double() - mixture
            squared[i, j] = rest.square().sum()
    variance = -squared.mean() / (2 * prior.mean())
    wanted = (prior - squared / (2 * variance)).flatten().softmax(0).view(5, 5)
    assert found.variance == pytest.approx(variance.item())
    torch.testing.assert_close(found.posterior, wanted)
    assert found.posterior[found.best] == found.posterior.max()
    first, second = found.marginals()
    torch.testing.assert_close(first, wanted.sum(1))
    torch.testing.assert_close(second, wanted.sum(0))


def test_a_pair_that_is_the_mixture_wins():
    log_prior, audio, _ = case()
    log_prior = tuple(torch.full((5,), -5.0) for _ in range(2))
    mixture = 0.5 * audio[0][3] + 0.5 * audio[1][1]
    assert pair_posterior(log_prior, audio, mixture, (0.5, 0.5), 4).best == (3, 1)


def test_no_variance_is_refused():
    log_prior, audio, mixture = case()
    certain = (torch.zeros(5), torch.zeros(5))
    with pytest.raises(ValueError, match="variance of"):
        pair_posterior(certain, audio, mixture, (0.5, 0.5), 4)
    silent = (torch.zeros(5, 40), torch.zeros(5, 40))
    with pytest.raises(ValueError, match="variance of"):
        pair_posterior(log_prior, silent, torch.zeros(40), (0.5, 0.5), 4)


def batch(*cases):
    """(mixtures [B, T], candidates) of several cases of 8 codes."""
    names = ("bass", "drums")
    audio = {name: torch.stack([c[1][i] for c in cases]) for i, name in enumerate(names)}
    log_prior = {name: torch.stack([c[0][i] for c in cases]) for i, name in enumerate(names)}
    codes = {name: torch.zeros(len(cases), 5, 8, dtype=torch.int64) for name in names}
    candidates = Candidates(
        audio,
        {"bass": 0.6, "drums": 0.4},
        JointSamples(codes, log_prior, torch.zeros(len(cases), 5)),
    )
    return torch.stack([c[2] for c in cases]), candidates


def test_upstreams_selection_is_among_all_pairs_and_against_the_decoded_mixture():
    cases = [case(seed=seed) for seed in range(8)]
    mixture, candidates = batch(*cases)
    picks = []
    for compared in (None, lambda x: x.roll(1, -1) / 2):
        found = RejectionPair(compared)(mixture, candidates)
        for b, (log_prior, audio, y) in enumerate(cases):
            target = y if compared is None else y.roll(1) / 2
            table = pair_posterior(log_prior, audio, target, (0.6, 0.4), 8).posterior
            best = max((float(table[i, j]), i, j) for i in range(5) for j in range(5))[1:]
            assert (int(found["bass"][b]), int(found["drums"][b])) == best
            picks.append(best)
    assert picks[:8] != picks[8:] and any(i != j for i, j in picks)


def test_selection_keeps_pairs_that_were_drawn_together():
    cases = [case(seed=1), case(seed=2)]
    mixture, candidates = batch(*cases)
    weights = RejectionWeights()(mixture, candidates)
    for b, c in enumerate(cases):
        found = pair_posterior(c[0], c[1], c[2], (0.6, 0.4), 8)
        assert weights[b].argmax() == found.posterior.diagonal().argmax()
    assert weights.sum(1).tolist() == [1.0, 1.0]


def test_every_mixture_has_the_posterior_of_its_own_candidates():
    cases = [case(seed=1), case(seed=2)]
    for found, c in zip(_posteriors(*batch(*cases)), cases, strict=True):
        wanted = pair_posterior(*c, (0.6, 0.4), 8)
        torch.testing.assert_close(found.posterior, wanted.posterior)
