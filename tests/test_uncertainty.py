"""The uncertainty equals its definition, bin by bin and over the windows of a song."""

import numpy as np
import pytest
import torch

from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.samples import Candidates
from jukebox_core.separation.uncertainty import Uncertainty
from jukebox_core.separation.windows import Layout, Window
from tests.test_stream import HOP, RATE, Spy, make, mixture, parts, same  # noqa: F401

ALPHA = {"bass": 0.5, "drums": 0.25}


def spectrum(audio, n_fft, hop):
    """[F, frames] by NumPy alone: zeros outside, a periodic Hann window."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = np.pad(audio, n_fft // 2)
    starts = range(0, len(audio) + 1, hop)
    return np.stack([np.fft.rfft(window * padded[s : s + n_fft]) for s in starts], 1)


@pytest.mark.parametrize("power", (1.0, 2.0))
def test_it_is_the_deviation_of_the_shares(power):
    g = torch.Generator().manual_seed(0)
    audio = {name: torch.randn(2, 4, 3000, generator=g) for name in ALPHA}
    weights = torch.randn(2, 4, generator=g).softmax(1)
    mask = RatioMask(power, 256, 64)
    found = mask.uncertainty(torch.zeros(2, 3000), Candidates(audio, ALPHA), weights).numpy()
    for b in range(2):
        shares = []
        for n in range(4):
            raised = {
                name: np.abs(ALPHA[name] * spectrum(x[b, n].double().numpy(), 256, 64)) ** power
                for name, x in audio.items()
            }
            shares.append(raised["drums"] / (raised["bass"] + raised["drums"]))  # either source's
        w = weights[b].double().numpy()
        mean = sum(w[n] * shares[n] for n in range(4))
        expected = np.sqrt(sum(w[n] * (shares[n] - mean) ** 2 for n in range(4)))
        np.testing.assert_allclose(found[b], expected, atol=1e-4)


def test_opposite_candidates_give_a_half_and_equal_ones_nothing():
    noise, zeros = torch.randn(2048), torch.zeros(2048)
    opposite = {"bass": torch.stack([noise, zeros]), "drums": torch.stack([zeros, noise])}
    equal = torch.full((1, 2), 0.5)
    mask = RatioMask(2.0, 512, 128)
    apart = Candidates({name: x[None] for name, x in opposite.items()}, ALPHA)
    half = mask.uncertainty(torch.zeros(1, 2048), apart, equal)
    torch.testing.assert_close(half, torch.full_like(half, 0.5))
    same = {name: noise.expand(1, 2, -1) for name in ALPHA}
    assert mask.uncertainty(noise[None], Candidates(same, ALPHA), equal).max() < 1e-3


def test_a_song_has_the_uncertainty_of_its_windows_and_the_same_stems(parts):  # noqa: F811
    mask = RatioMask(2.0, 12 * HOP, 3 * HOP)  # windows start between frames
    separator = make(parts, mask=mask)
    x = mixture(3 * 64 * HOP - 777)
    uncertainty = Uncertainty()
    stems = separator(x, RATE, seed=5, batch=2, uncertainty=uncertainty)
    assert same(stems, separator(x, RATE, seed=5, batch=2))
    assert uncertainty.hertz == RATE / (12 * HOP) and uncertainty.seconds == 3 * HOP / RATE
    generator = torch.Generator().manual_seed(5)
    layout = Layout(64 * HOP, 8 * HOP, HOP).finish(len(x))
    padded = torch.nn.functional.pad(x, (0, HOP))
    total, weights = torch.zeros(2, mask.n_fft // 2 + 1, layout[-1].stop // mask.hop + 1)
    for window in layout:
        piece = padded[None, window.start : window.stop]
        own = separator.uncertainty(piece, separator.candidates(piece, generator))[0]
        start = window.start / mask.hop
        inside = [j for j in range(total.shape[1]) if start <= j <= window.stop / mask.hop]
        rise, fall = (round(f / mask.hop) for f in (window.fade_in, window.fade_out))
        for i, frame in enumerate(inside):
            low, share = int(frame - start), (frame - start) % 1
            low, high = (min(at, own.shape[1] - 1) for at in (low, low + 1))
            weight = min(1, (i + 0.5) / rise) if rise else 1
            weight *= min(1, (len(inside) - i - 0.5) / fall) if fall else 1
            total[:, frame] += weight * ((1 - share) * own[:, low] + share * own[:, high])
            weights[:, frame] += weight
    torch.testing.assert_close(uncertainty.values, total / weights, atol=1e-5, rtol=1e-4)


def test_windows_are_cross_faded():
    mask, uncertainty = RatioMask(2.0, 32, 8), Uncertainty()
    uncertainty.add(Window(0, 128, 0, 32), torch.full((17, 17), 0.1), mask, RATE)
    uncertainty.add(Window(96, 224, 32, 0), torch.full((17, 17), 0.5), mask, RATE)
    values = uncertainty.values
    assert torch.equal(values, uncertainty.values) and values.shape == (17, 29)
    torch.testing.assert_close(values[:, :12], torch.full((17, 12), 0.1))
    torch.testing.assert_close(values[:, 17:], torch.full((17, 12), 0.5))
    assert (values[:, 11:18].diff(dim=1) > 0).sum() >= 17 * 4


def test_lack_of_memory_does_not_add_a_window_twice(parts):  # noqa: F811
    x = mixture(8 * 64 * HOP)
    first, second = Uncertainty(), Uncertainty()
    make(parts)(x, RATE, batch=1, uncertainty=first)
    make(parts, Spy(most=9))(x, RATE, batch=8, uncertainty=second)
    torch.testing.assert_close(first.values, second.values, atol=1e-5, rtol=1e-4)


def test_nothing_separated():
    with pytest.raises(ValueError, match="no window was separated"):
        _ = Uncertainty().values
