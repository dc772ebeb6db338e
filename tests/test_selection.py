"""Choices among candidates equal their definitions, written as loops."""

import math
from typing import get_args

import pytest
import torch

from jukebox_core.audio.spectra import magnitudes
from jukebox_core.separation.rejection import (
    RejectionMarginals,
    RejectionPair,
    RejectionWeights,
    pair_posterior,
)
from jukebox_core.separation.samples import Candidates, JointSamples
from jukebox_core.separation.selection import (
    SELECTIONS,
    WEIGHTS,
    Jointly,
    LogPosterior,
    MinimumBayesRisk,
    PosteriorMean,
    SelectionName,
    SpectralFit,
    WeightsName,
    _spectra,
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
    samples = JointSamples(codes, log_prior, 5 * torch.randn(B, N, generator=g), weights)
    return torch.randn(B, T, generator=g), Candidates(audio, ALPHA, samples)


def test_log_posterior_adds_priors_and_likelihood(drawn):
    mixture, candidates = drawn
    weights = LogPosterior()(mixture, candidates)
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
    picked = MinimumBayesRisk()(mixture, candidates)
    share = PosteriorMean()(mixture, candidates)
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
    pairs = RejectionPair()(mixture, candidates)
    marginals = RejectionMarginals()(mixture, candidates)
    joint = RejectionWeights()(mixture, candidates)
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
    found = Jointly(SpectralFit())(mixture, candidates)
    assert torch.equal(found["bass"], found["drums"])
    for b in range(B):
        wanted = magnitudes(mixture[b][None], (1024, 256, 1024))[0]
        distances = []
        for n in range(N):
            total = sum(ALPHA[name] * x[b, n] for name, x in candidates.audio.items())
            sums = magnitudes(total[None], (1024, 256, 1024))[0]
            distances.append(float((sums - wanted).double().square().sum()))
        assert int(found["bass"][b]) == distances.index(min(distances))


def test_silence_follows_what_is_shorter_than_a_window():
    audio, stft = torch.randn(2, 100), (64, 16, 64)
    assert torch.equal(_spectra(audio, 64, 16), magnitudes(audio, stft))
    padded = torch.cat([audio[:, :40], torch.zeros(2, 24)], 1)
    assert torch.equal(_spectra(audio[:, :40], 64, 16), magnitudes(padded, stft))
    assert torch.equal(_spectra(audio[:, :64], 64, 16), magnitudes(audio[:, :64], stft))


def test_weights_and_selections_by_name(drawn):
    assert set(WEIGHTS) == set(get_args(WeightsName))
    assert set(SELECTIONS) == set(get_args(SelectionName))
    assert WEIGHTS["posterior-mean"] == PosteriorMean()
    for name in set(WEIGHTS) & set(SELECTIONS):
        assert SELECTIONS[name] == Jointly(WEIGHTS[name])
    for selection in SELECTIONS.values():
        found = selection(*drawn)
        assert set(found) == set(ALPHA) and all(x.dtype == torch.int64 for x in found.values())


def test_candidates_of_a_chunk_and_apart(drawn):
    _, candidates = drawn
    assert candidates.shape == (B, N)
    one = candidates.chunk(1)
    assert one.shape == (1, N) and one.samples.log_prior["bass"].shape == (1, N)
    apart = candidates.apart()
    assert apart.shape == (B * N, 1)
    for name, x in candidates.audio.items():
        assert torch.equal(one.audio[name][0], x[1])
        assert torch.equal(apart.audio[name][N + 2, 0], x[1, 2])
    total = 0.5 * candidates.audio["bass"][2] + 0.25 * candidates.audio["drums"][2]
    assert torch.equal(candidates.sums(2), total)
