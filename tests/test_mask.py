import numpy as np
import pytest
import scipy.signal
import torch

from jukebox_core.separation.mask import WIENER, RatioMask, _resample_mask, interpolate
from jukebox_core.separation.samples import Candidates
from jukebox_core.separation.selection import PosteriorMean, SpectralFit

ALPHA = {"bass": 0.5, "drums": 0.25}


def scipy_stft(x):
    return scipy.signal.stft(x, nperseg=2048, noverlap=1536, window="hann", padded=False)[2]


def candidates(seed=0, b=2, n=3, t=8192):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(b, n, t, generator=g) for name in ALPHA}


@pytest.mark.parametrize("power", (1.0, 2.0))
def test_refined_stems_equal_the_filter_written_in_scipy(power):
    audio = candidates()
    mixture = torch.randn(2, 8192)
    weights = torch.softmax(torch.randn(2, 3), -1)
    refined = RatioMask(power, 2048, 512)(mixture, Candidates(audio, ALPHA), weights)
    for b in range(2):
        mean = {
            name: sum(
                weights[b, n].item() * np.abs(ALPHA[name] * scipy_stft(x[b, n].numpy())) ** 2
                for n in range(3)
            )
            ** (power / 2)
            for name, x in audio.items()
        }
        spectrum = scipy_stft(mixture[b].numpy())
        for name in ALPHA:
            masked = spectrum * mean[name] / sum(mean.values())
            expected = scipy.signal.istft(masked, nperseg=2048, noverlap=1536, window="hann")[1]
            np.testing.assert_allclose(
                refined[name][b].numpy(), expected[:8192] / ALPHA[name], atol=2e-4
            )


@pytest.mark.parametrize("length", (100, 2048, 44_100))
@pytest.mark.parametrize("ratio", (1.0, 2.0, 48_000 / 22_050, 0.5, 8_000 / 22_050))
def test_stems_sum_to_the_mixture_at_any_rate_and_length(length, ratio):
    mixture = torch.randn(2, length)
    model_length = max(1, round(length / ratio))
    powers = {name: torch.rand(1025, 1 + model_length // 512) for name in ALPHA}
    mask = WIENER
    stems = mask.apply(mixture, mask.masks(powers), ratio)
    torch.testing.assert_close(sum(stems.values()), mixture, atol=1e-5, rtol=1e-5)


def test_masks_at_twice_the_rate_do_the_same_to_the_shared_band():
    """A band-limited mixture, upsampled and masked there, is the masked mixture upsampled."""
    t = torch.arange(22_050) / 22_050
    mixture = torch.sin(2 * torch.pi * 440 * t) + torch.sin(2 * torch.pi * 3000 * t)
    t2 = torch.arange(44_100) / 44_100
    twice = torch.sin(2 * torch.pi * 440 * t2) + torch.sin(2 * torch.pi * 3000 * t2)
    low = torch.zeros(1025, 44)
    low[:100] = 1.0  # bins under 1077 Hz
    mask = WIENER
    masks = mask.masks({"bass": low, "drums": 1 - low})
    stems = mask.apply(mixture, masks)
    stems2 = mask.apply(twice, masks, 2.0)
    inside = slice(2000, -2000)
    for name in ("bass", "drums"):
        torch.testing.assert_close(
            stems2[name][::2][inside], stems[name][inside], atol=2e-3, rtol=1e-2
        )


def test_masks_of_silence_are_equal_shares():
    masks = WIENER.masks({"bass": torch.zeros(3, 2), "drums": torch.zeros(3, 2)})
    assert all((m == 0.5).all() for m in masks.values())
    tiny = RatioMask(power=4.0).masks(
        {"bass": torch.full((1, 1), 3e-25), "drums": torch.full((1, 1), 1e-25)}
    )
    assert tiny["bass"].item() == pytest.approx(0.9, rel=1e-5)


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="power is 0"):
        RatioMask(power=0)
    with pytest.raises(ValueError, match="even multiple"):
        RatioMask(hop=700)
    for values in ({"hop": 0}, {"n_fft": 1, "hop": 1}, {"n_fft": 1 << 19}):
        with pytest.raises(ValueError, match=f"{next(iter(values))} is"):
            RatioMask(**values)
    assert RatioMask(n_fft=2, hop=1) and RatioMask(n_fft=1 << 18)


def test_interpolation_is_numpys():
    at = torch.tensor([-0.5, 0.0, 0.25, 2.0, 3.5, 4.0, 4.5])
    x = torch.randn(2, 5, 5)
    for dim in (-1, -2):
        lines = x.movedim(dim, -1).reshape(10, 5)
        expected = [np.interp(at, range(5), line) for line in lines.numpy()]
        found = interpolate(x, at, dim).movedim(dim, -1).reshape(10, 7)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert torch.equal(interpolate(x[:, :, :1], at, -1), x[:, :, :1].expand(2, 5, 7))


def test_above_its_highest_frequency_a_mask_has_the_mean_of_its_top_quarter():
    mask = torch.rand(9, 3)
    bins = torch.tensor([0.5, 8.0, 8.25, 20.0])
    above = mask[-2:].mean(0)
    expected = torch.stack([mask[:2].mean(0), mask[8], above, above])
    torch.testing.assert_close(_resample_mask(mask, bins, torch.arange(3.0)), expected)


def test_spectral_fit_picks_the_pair_that_sums_to_the_mixture():
    audio = candidates(b=2, n=5)
    mixture = torch.stack(
        [sum(ALPHA[name] * x[b, pick] for name, x in audio.items()) for b, pick in ((0, 3), (1, 1))]
    )
    weights = SpectralFit()(mixture, Candidates(audio, ALPHA))
    assert weights.argmax(1).tolist() == [3, 1]
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    short = {name: x[..., :300] for name, x in audio.items()}
    assert SpectralFit()(mixture[:, :300], Candidates(short, ALPHA)).argmax(1).tolist() == [3, 1]


def test_posterior_mean_is_uniform():
    weights = PosteriorMean()(torch.zeros(2, 8), Candidates(candidates(n=4, t=8), ALPHA))
    torch.testing.assert_close(weights, torch.full((2, 4), 0.25))


def test_powers_are_averaged_under_the_compression():
    audio, weights = candidates(), torch.softmax(torch.randn(2, 3), -1)
    found = RatioMask(2.0, 2048, 512, 0.5).mean_powers(Candidates(audio, ALPHA), weights)
    for name, x in audio.items():
        for b in range(2):
            mean = sum(
                weights[b, n].item() * np.abs(ALPHA[name] * scipy_stft(x[b, n].numpy()))
                for n in range(3)
            )
            scale = (found[name][b].sqrt().numpy() / mean).mean()  # scipy normalises by the window
            np.testing.assert_allclose(
                found[name][b].sqrt().numpy(), scale * mean, rtol=1e-3, atol=1e-4
            )
    with pytest.raises(ValueError, match="compression is 0"):
        RatioMask(compression=0.0)
