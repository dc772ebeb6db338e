"""The originals' loss of one level in float64, written from its formulas without our losses."""

import math

import torch


def magnitudes(audio, n_fft, hop, window):
    """[B, T] to [B, frames, bins]: periodic Hann, centred, reflected at the edges."""
    position = torch.arange(window, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * position / window)
    left = (n_fft - window) // 2
    hann = torch.cat([torch.zeros(left), hann, torch.zeros(n_fft - window - left)])
    half = n_fft // 2
    padded = torch.cat(
        [audio[:, 1 : half + 1].flip(1), audio, audio[:, -half - 1 : -1].flip(1)], dim=1
    )
    spectrum = torch.fft.rfft(padded.unfold(1, n_fft, hop) * hann)
    return (spectrum.real.square() + spectrum.imag.square()).sqrt()


def norms(x):
    return x.flatten(1).square().sum(1).sqrt()


def terms(target, estimate, hps):
    """{metric: value} of one level; hps by the originals' names."""
    target, estimate = target.double(), estimate.double()
    residual, bandwidth = target - estimate, hps["bandwidth"]
    largest = residual.square().sort(1, descending=True).values[:, : hps["linf_k"]]
    found = {
        "l1_loss": residual.abs().mean() / bandwidth["l1"],
        "l2_loss": residual.square().mean() / bandwidth["l2"],
        "linf_loss": largest.mean() / bandwidth["l2"],
    }
    weights = {name: hps.get(f"lmix_{name}", 0.0) for name in ("l1", "l2", "linf")}
    if hps["loss_fn"] != "lmix":
        weights = {name: float(name == hps["loss_fn"]) for name in weights}
    found["recons_loss"] = sum(w * found[f"{name}_loss"] for name, w in weights.items())
    single = hps["n_fft"], hps["hop_length"], hps["window_size"]
    spectra = magnitudes(target, *single), magnitudes(estimate, *single)
    distance = norms(spectra[0] - spectra[1])
    found["spectral_convergence"] = (distance / norms(spectra[0]).clamp(min=0.002)).mean()
    found["spectral_loss"] = distance.mean() / bandwidth["spec"]
    if not hps["use_nonrelative_specloss"]:
        found["spectral_loss"] = found["spectral_convergence"]
    sizes = zip(
        hps["multispec_loss_n_fft"],
        hps["multispec_loss_hop_length"],
        hps["multispec_loss_window_size"],
        strict=True,
    )
    multi = [norms(magnitudes(target, *s) - magnitudes(estimate, *s)).mean() for s in sizes]
    found["multispectral_loss"] = sum(multi) / len(multi) / bandwidth["spec"]
    return found


def total(levels, hps):
    """The sum over the levels, without the commit loss; levels are `terms` of each."""
    return sum(
        each["recons_loss"]
        + hps["spectral"] * each["spectral_loss"]
        + hps["multispectral"] * each["multispectral_loss"]
        for each in levels
    )
