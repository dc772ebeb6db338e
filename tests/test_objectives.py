"""The codec's losses and both objectives against formulas written independently."""

import numpy as np
import pytest
import scipy.signal
import torch

from jukebox_core.audio.spectra import magnitudes
from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.presets import PRESETS
from jukebox_core.vqvae.losses import bandwidths_of, linf
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ReconstructionObjective
from lqvae import LinearisationObjective

BANDWIDTHS = Bandwidths(l1=0.11, l2=0.02, spec=30.0)
CONFIG = LossConfig(commit=0.3, linearisation=0.7)


def codec():
    torch.manual_seed(0)
    model = VQVAE(PRESETS["tiny"].vqvae)
    for level in model.levels:
        model.bottleneck(level).codebook.normal_()
        model.bottleneck(level).restore_averages(50.0)
    return model


def scipy_magnitudes(audio, stft):
    n_fft, hop, window = stft
    hann = np.zeros(n_fft)
    start = (n_fft - window) // 2
    hann[start : start + window] = scipy.signal.get_window("hann", window)
    padded = np.pad(audio, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=1)[:, ::hop]
    return np.abs(np.fft.rfft(frames * hann)).transpose(0, 2, 1)


@pytest.mark.parametrize("stft", ((512, 50, 240), (256, 64, 256)))
def test_magnitudes_equal_numpy_fft(stft):
    audio = torch.randn(2, 3000)
    np.testing.assert_allclose(
        magnitudes(audio, stft).numpy(), scipy_magnitudes(audio.double().numpy(), stft), atol=2e-4
    )


def test_gradients_of_magnitudes_are_those_of_autograd():
    """Of the root of the sum of two squares, in float64; zero for silence, which has none."""
    audio = torch.randn(2, 900).requires_grad_()
    weights = torch.randn(2, 257, 8)
    (found,) = torch.autograd.grad((weights * magnitudes(audio, (512, 128, 400))).sum(), audio)
    exact = audio.detach().double().requires_grad_()
    window = torch.hann_window(400, dtype=torch.float64)
    spectrum = torch.stft(exact, 512, 128, 400, window=window, return_complex=True)
    loss = (weights * (spectrum.real**2 + spectrum.imag**2).sqrt()).sum()
    (expected,) = torch.autograd.grad(loss, exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    silence = torch.zeros(2, 900, requires_grad=True)
    (found,) = torch.autograd.grad(magnitudes(silence, (512, 128, 400)).sum(), silence)
    assert torch.equal(found, torch.zeros(2, 900))


def test_linf_is_the_mean_of_the_largest_squares():
    squared = torch.rand(3, 100)
    expected = np.sort(squared.numpy(), axis=1)[:, -7:].mean()
    assert linf(squared, 7).item() == pytest.approx(expected, rel=1e-6)
    assert linf(squared, 1000).item() == pytest.approx(squared.mean().item(), rel=1e-6)


def reconstruction_by_hand(model, audio):
    """recons + multispectral + commit of all levels, in NumPy from the model's outputs."""
    total = 0.0
    x = audio.double().numpy()
    for level, out in model(audio).items():
        y = out.audio.detach().double().numpy()
        squared = (x - y) ** 2
        top = np.sort(squared, axis=1)[:, -2048:]
        recons = squared.mean() / BANDWIDTHS.l2 + 0.02 * top.mean() / BANDWIDTHS.l2
        spectral = np.mean(
            [
                np.linalg.norm(
                    (scipy_magnitudes(x, s) - scipy_magnitudes(y, s)).reshape(len(x), -1), axis=1
                ).mean()
                for s in CONFIG.multispectral_stfts
            ]
        )
        z = out.latents.detach()
        e = model.bottleneck(level).decode(model.bottleneck(level).encode(z))
        commit = ((e - z) ** 2).mean().item()
        total += recons + spectral / BANDWIDTHS.spec + CONFIG.commit * commit
    return total


def test_reconstruction_objective_equals_its_formula():
    model = codec().eval()
    audio = 0.1 * torch.randn(2, 4096)
    loss = ReconstructionObjective(model, CONFIG, BANDWIDTHS).eval()(audio).loss
    assert loss.item() == pytest.approx(reconstruction_by_hand(model, audio), rel=2e-5)


@pytest.mark.parametrize("alpha", ((0.5, 0.5), (0.7, 0.3)))
def test_linearisation_loss_equals_its_formula(alpha):
    model = codec().eval()
    audio = 0.1 * torch.randn(4, 4096)
    objective = LinearisationObjective(model, CONFIG, BANDWIDTHS, alpha).eval()
    out = objective(audio)
    a, b = audio[:2], audio[2:]
    total = reconstruction_by_hand(model, audio)
    for level in model.levels:
        bottleneck = model.bottleneck(level)

        def nearest(z, bottleneck=bottleneck):  # [B, D, T] to its codes' vectors
            flat = z.transpose(1, 2)
            distance = (flat[:, :, None] - bottleneck.codebook).square().sum(-1)
            return bottleneck.codebook[distance.argmin(-1)].transpose(1, 2)

        with torch.no_grad():
            q_a, q_b = (nearest(model.latents(x, level)) for x in (a, b))
            summed = alpha[0] * q_a + alpha[1] * q_b
            encoded = model.latents(alpha[0] * a + alpha[1] * b, level)
            latent = (nearest(summed) - nearest(encoded)).square().mean().item()
            commit = (nearest(summed) - summed).square().mean().item()
        if alpha != (0.5, 0.5):  # at equal weights ties make the nearest code a matter of rounding
            logged = out.metrics[f"latent_loss_l{level + 1}"].item()
            assert logged == pytest.approx(latent, rel=1e-4)
        total += CONFIG.linearisation * latent + CONFIG.commit * commit
    assert out.loss.item() == pytest.approx(total, rel=1e-3 if alpha == (0.5, 0.5) else 2e-5)


def test_linearisation_updates_every_codebook_three_times():
    model = codec().train()
    audio = 0.1 * torch.randn(4, 4096)
    LinearisationObjective(model, CONFIG, BANDWIDTHS)(audio)
    for level in model.levels:
        latents = 4096 // model.config.hops[level]
        seen = 4 * latents * 0.99**2 + 2 * latents * 0.99 + 2 * latents
        expected = model.config.l_bins * 50.0 * 0.99**3 + 0.01 * seen
        assert model.bottleneck(level).ema_count.sum().item() == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_encoder_and_decoder_through_the_quantiser():
    model = codec().train()
    objective = LinearisationObjective(model, CONFIG, BANDWIDTHS)
    objective(0.1 * torch.randn(4, 4096)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_odd_batches_are_refused():
    objective = LinearisationObjective(codec(), CONFIG, BANDWIDTHS)
    with pytest.raises(ValueError, match="batch of 3 .* a multiple of 2"):
        objective(torch.zeros(3, 4096))
    with pytest.raises(ValueError, match="alpha has 1 weights"):
        LinearisationObjective(codec(), CONFIG, BANDWIDTHS, (1.0,))


def test_three_sources_are_added_one_by_one():
    """The latent terms are the means of those of both sums, each an objective of two sources."""
    model = codec().eval()
    alpha = (0.2, 0.3, 0.5)
    a, b, c = sources = 0.1 * torch.randn(3, 2, 4096)
    out = LinearisationObjective(model, CONFIG, BANDWIDTHS, alpha)(sources.flatten(0, 1))
    base = ReconstructionObjective(model, CONFIG, BANDWIDTHS)(sources.flatten(0, 1))
    so_far = 0.4 * a + 0.6 * b
    steps = [
        LinearisationObjective(model, CONFIG, BANDWIDTHS, weights)(torch.cat(pair))
        for weights, pair in (((0.4, 0.6), (a, b)), ((0.5, 0.5), (so_far, c)))
    ]
    for name in ("latent_loss", "commit_loss_sum"):
        mean = sum(step.metrics[name] for step in steps) / 2
        torch.testing.assert_close(out.metrics[name], mean)
    expected = base.loss + CONFIG.linearisation * out.metrics["latent_loss"]
    expected = expected + CONFIG.commit * out.metrics["commit_loss_sum"]
    torch.testing.assert_close(out.loss, expected)


def test_bandwidths_are_the_statistics_of_the_audio():
    audio = [torch.randn(2, 4000) * 0.3 + 0.1, torch.randn(3, 4000)]
    everything = torch.cat(audio).double().numpy()
    result = bandwidths_of(audio, (2048, 256, 1536))
    assert result.l2 == pytest.approx(everything.var(), rel=1e-9)
    assert result.l1 == pytest.approx(np.abs(everything).mean(), rel=1e-9)
    spec = scipy_magnitudes(everything, (2048, 256, 1536)).reshape(5, -1)
    assert result.spec == pytest.approx(np.linalg.norm(spec, axis=1).mean(), rel=1e-5)
    with pytest.raises(ValueError, match="no audio"):
        bandwidths_of([], (2048, 256, 1536))


def test_top_only_codec_is_the_top_level_of_the_full_one():
    import dataclasses

    full = codec().eval()
    top = VQVAE(dataclasses.replace(full.config, top_only=True)).eval()
    state = {k: v for k, v in full.state_dict().items() if k.split(".")[1] == str(full.top)}
    top.load_state_dict(state, strict=True)
    audio = torch.randn(1, 512)
    assert torch.equal(top.encode(audio), full.encode(audio))
    assert torch.equal(top.decode(top.encode(audio)), full.decode(full.encode(audio)))
    with pytest.raises(ValueError, match="level 0 does not exist"):
        top.encode(audio, 0)
    with pytest.raises(ValueError, match="positive multiple of 16"):
        top.encode(audio[:, :500])
