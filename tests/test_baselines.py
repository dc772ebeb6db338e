"""Baselines on signals for which the answer is known."""

import math

import librosa
import numpy as np
import pytest
import torch

from jukebox_core.evaluation.baselines import hpss, ideal_ratio_mask, nmf
from jukebox_core.evaluation.metrics import sdr
from jukebox_core.separation.mask import WIENER
from jukebox_core.separation.samples import Candidates

ALPHA = {"bass": 0.5, "drums": 0.5}


@pytest.fixture(scope="module")
def sources():
    """A steady tone, and a click every 4,000 samples: [1, T]."""
    time = torch.arange(22_050)
    clicks = torch.zeros(22_050)
    clicks[2_000::4_000] = 1.0
    return {"bass": torch.sin(2 * math.pi * 0.02 * time)[None], "drums": clicks[None]}


def mix(sources, alpha=ALPHA):
    return sum(alpha[name] * x for name, x in sources.items())


@pytest.mark.parametrize("alpha", [ALPHA, {"bass": 0.8, "drums": 0.3}])
def test_hpss_gives_tones_and_clicks_at_their_own_scale(sources, alpha):
    mixture = mix(sources, alpha)
    estimates = hpss(mixture, alpha)
    assert list(estimates) == list(alpha)
    assert sdr(sources["bass"], estimates["bass"]).item() > 15
    assert sdr(sources["drums"], estimates["drums"]) > sdr(sources["drums"], mixture) + 8
    torch.testing.assert_close(mix(estimates, alpha), mixture, atol=1e-3, rtol=0)


def test_hpss_of_a_batch_is_that_of_its_items(sources):
    mixture = mix(sources)
    both = hpss(torch.cat([mixture, 0.1 * mixture.flip(-1)]), ALPHA)
    one = hpss(0.1 * mixture.flip(-1), ALPHA)
    for name, x in both.items():
        torch.testing.assert_close(x[1:], one[name])


@pytest.mark.parametrize(("separate", "name"), [(hpss, "HPSS"), (nmf, "NMF")])
def test_drums_and_one_more_source_are_needed(sources, separate, name):
    with pytest.raises(ValueError, match=f"{name} is for drums .* got bass, piano"):
        separate(mix(sources), {"bass": 0.5, "piano": 0.5})
    with pytest.raises(ValueError, match=f"{name} is for drums"):
        separate(mix(sources), {"bass": 0.4, "drums": 0.3, "piano": 0.3})


def test_ideal_ratio_mask_is_the_mask_of_the_truth(sources):
    mixture = mix(sources)
    estimates = ideal_ratio_mask(mixture, sources, ALPHA)
    truth = Candidates({name: x[:, None] for name, x in sources.items()}, ALPHA)
    expected = WIENER(mixture, truth, torch.ones(1, 1))
    for name, x in estimates.items():
        assert torch.equal(x, expected[name]) and x.shape == mixture.shape
        assert sdr(sources[name], x) > sdr(sources[name], mixture) + 8
    torch.testing.assert_close(mix(estimates), mixture, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 100, 1_024, 2_049])
def test_hpss_of_a_short_mixture_is_finite(length):
    estimates = hpss(torch.randn(1, length), ALPHA)
    assert all(x.shape == (1, length) and x.isfinite().all() for x in estimates.values())


@pytest.mark.parametrize("alpha", [ALPHA, {"bass": 0.8, "drums": 0.3}])
def test_nmf_gives_tones_and_clicks_at_their_own_scale(sources, alpha):
    mixture = mix(sources, alpha)
    estimates = nmf(mixture, alpha)
    assert list(estimates) == list(alpha)
    for name, x in estimates.items():
        assert sdr(sources[name], x) > sdr(sources[name], mixture) + 10
    torch.testing.assert_close(mix(estimates, alpha), mixture, atol=1e-5, rtol=0)


def test_nmf_is_the_same_again_and_in_a_batch(sources):
    mixture = mix(sources)
    both = nmf(torch.cat([mixture.flip(-1), mixture]), ALPHA)
    once, again = nmf(mixture, ALPHA), nmf(mixture, ALPHA)
    for name, x in once.items():
        assert torch.equal(x, again[name]) and torch.equal(x, both[name][1:])


def test_nmf_shares_a_component_as_its_parts_under_the_median_filters(sources, monkeypatch):
    """With one component the masks are constant: p^4 : (1 - p)^4, p that of |Y|'s fit."""
    monkeypatch.setattr("jukebox_core.evaluation.baselines.COMPONENTS", 1)
    mixture = mix(sources)
    window = torch.hann_window(2048)
    spectrum = torch.stft(
        mixture[0], 2048, 512, window=window, pad_mode="constant", return_complex=True
    )
    magnitudes = spectrum.abs().double().numpy()
    # Kullback-Leibler divergence at rank one: the product of the margins
    fit = np.outer(magnitudes.sum(1), magnitudes.sum(0)) / magnitudes.sum()
    _, mask = librosa.decompose.hpss(magnitudes, mask=True)
    p = (fit * mask).sum() / fit.sum()
    share = p**2 / (p**2 + (1 - p) ** 2)
    share = share**2 / (share**2 + (1 - share) ** 2)
    estimates = nmf(mixture, ALPHA)
    torch.testing.assert_close(estimates["drums"], mixture * share / 0.5, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("length", [1, 100, 1_024, 2_049])
def test_nmf_of_a_short_or_silent_mixture_is_finite(length):
    for mixture in (torch.randn(1, length), torch.zeros(1, length)):
        estimates = nmf(mixture, ALPHA)
        assert all(x.shape == (1, length) and x.isfinite().all() for x in estimates.values())
