"""Choices among candidates equal their definitions, written as loops."""

import math
from typing import get_args

import pytest
import torch
from jukebox_core.separation.choices import (
    AVERAGES,
    PICKS,
    AverageName,
    PickName,
    make_average,
    make_pick,
)

from jukebox_core.audio.spectra import magnitudes
from jukebox_core.separation.rejection import (
    RejectionMarginals,
    RejectionPair,
    RejectionWeights,
    pair_posterior,
)
from jukebox_core.separation.samples import JointSamples
from jukebox_core.separation.selection import (
    Candidates,
    Jointly,
    LogPosterior,
    MinimumBayesRisk,
    PosteriorMean,
    SpectralFit,
)

ALPHA = {"bass": 0.5, "drums": 0.25}
B, N, T = 3, 5, 4096


@pytest.fixture(params=(False, True), ids=("draws", "particles"))
def drawn(request):
    g = torch.Generator().manual_seed(1)
    audio = {name: torch.randn(B, N, T, generator=g) for name in ALPHA}
    log_prior = {name: -90 + 10 * torch.randn(B, N, generator=g) for name in ALPHA}
    codes = {name: torch.zeros(B, N, 16, dtype=torch.int64) for name in ALPHA}
    weights = torch.randn(B, N, generator=g).log_softmax(1) if request.param else None
    separations = JointSamples(codes, log_prior, 5 * torch.randn(B, N, generator=g), weights)
    return torch.randn(B, T, generator=g), Candidates(audio, separations)


def test_log_posterior_adds_priors_and_likelihood(drawn):
    mixture, candidates = drawn
    weights = LogPosterior()(mixture, candidates, ALPHA)
    parts = candidates.samples
    for b in range(B):
        totals = [
            float(parts.log_prior["bass"][b, n] + parts.log_prior["drums"][b, n])
            + float(parts.log_likelihood[b, n])
            for n in range(N)
        ]
        expected = [float(n == totals.index(max(totals))) for n in range(N)]
        assert weights[b].tolist() == expected


def test_minimum_bayes_risk_is_nearest_to_the_others_in_expectation(drawn):
    mixture, candidates = drawn
    picked = MinimumBayesRisk()(mixture, candidates, ALPHA)
    share = PosteriorMean()(mixture, candidates, ALPHA)
    for b in range(B):
        spectra = {n: magnitudes(x[b], (1024, 256, 1024)) for n, x in candidates.audio.items()}
        risks = [
            sum(
                float(share[b, other]) * float((x[n] - x[other]).double().square().sum())
                for x in spectra.values()
                for other in range(N)
            )
            for n in range(N)
        ]
        assert int(picked[b].argmax()) == risks.index(min(risks)) and picked[b].sum() == 1


def test_rejection_picks_from_the_pair_posterior(drawn):
    mixture, candidates = drawn
    parts, audio = candidates.samples, candidates.audio
    pairs = RejectionPair()(mixture, candidates, ALPHA)
    marginals = RejectionMarginals()(mixture, candidates, ALPHA)
    joint = RejectionWeights()(mixture, candidates, ALPHA)
    for b in range(B):
        table = pair_posterior(
            (parts.log_prior["bass"][b], parts.log_prior["drums"][b]),
            (audio["bass"][b], audio["drums"][b]),
            mixture[b],
            (0.5, 0.25),
            16,
        ).posterior
        best = max((float(table[i, j]), i, j) for i in range(N) for j in range(N))
        assert (int(pairs["bass"][b]), int(pairs["drums"][b])) == best[1:]
        assert int(marginals["bass"][b]) == int(table.sum(1).argmax())
        assert int(marginals["drums"][b]) == int(table.sum(0).argmax())
        diagonal = [float(table[n, n]) for n in range(N)]
        assert int(joint[b].argmax()) == diagonal.index(max(diagonal))
        assert math.isclose(float(table.sum()), 1, rel_tol=1e-9)


def test_spectral_fit_is_the_nearest_sum_to_the_true_mixture(drawn):
    mixture, candidates = drawn
    found = Jointly(SpectralFit())(mixture, candidates, ALPHA)
    assert torch.equal(found["bass"], found["drums"])
    for b in range(B):
        wanted = magnitudes(mixture[b][None], (1024, 256, 1024))[0]
        distances = []
        for n in range(N):
            total = sum(ALPHA[name] * x[b, n] for name, x in candidates.audio.items())
            sums = magnitudes(total[None], (1024, 256, 1024))[0]
            distances.append(float((sums - wanted).double().square().sum()))
        assert int(found["bass"][b]) == distances.index(min(distances))


def test_choices_by_name(drawn):
    assert set(AVERAGES) == set(get_args(AverageName)) and set(PICKS) == set(get_args(PickName))
    assert make_average("posterior-mean") == PosteriorMean()
    assert make_pick("rejection-pair") == RejectionPair()
    for name in set(AVERAGES) & set(PICKS):
        assert make_pick(name) == Jointly(make_average(name))
    for name in PICKS:
        found = make_pick(name)(*drawn, ALPHA)
        assert set(found) == set(ALPHA) and all(x.dtype == torch.int64 for x in found.values())
    with pytest.raises(ValueError, match="pick 'best' is unknown; there are spectral-fit, log-"):
        make_pick("best")
    with pytest.raises(ValueError, match="average 'rejection-pair' is unknown; there are post"):
        make_average("rejection-pair")
