"""Training objective of the mask estimator: the distortion of the masked mixtures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jukebox_core.evaluation.mask_estimator import MaskEstimator
from jukebox_core.vqvae.objective import ObjectiveOutput

SILENCE = 1e-4
"""Added to the powers of source and distortion, relative to the mixture's: a silent source has a
finite loss."""


class MaskObjective(nn.Module):
    """Mean over crops and sources of -SDR in dB, of the spectra: 10 log10(|S - M Y|^2 / |S|^2).

    The distortion is of complex spectra, so that the masks learn from phases, too.
    """

    def __init__(self, estimator: MaskEstimator):
        super().__init__()
        self.estimator = estimator

    def forward(self, audio: Tensor, generator: torch.Generator | None = None) -> ObjectiveOutput:
        """Loss of waveforms [S * B, T] in the order of the estimator's sources (`collate`).

        Raises:
            ValueError: the rows are no multiple of the sources.
        """
        alpha = self.estimator.alpha
        if len(audio) % len(alpha):
            raise ValueError(f"{len(audio)} crops are not of {len(alpha)} sources each")
        stems = audio.unflatten(0, (len(alpha), -1)).float()  # [S, B, T]
        stems = stems * stems.new_tensor(list(alpha.values()))[:, None, None]
        mixture = self.estimator.spectrum(stems.sum(0))
        masked = self.estimator(mixture) * mixture
        sdr = -distortion(mixture, self.estimator.spectrum(stems), masked)
        metrics = {f"sdr_{name}": x.detach() for name, x in zip(alpha, sdr, strict=True)}
        return ObjectiveOutput(-sdr.mean(), metrics)


def distortion(mixture: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean over crops of 10 log10((|S - M Y|^2 + c) / (|S|^2 + c)) in dB, [S], c `SILENCE` |Y|^2.

    Args:
        mixture: complex spectra Y, [B, F, frames].
        target: spectra S of the sources in the mixture, [S, B, F, frames].
        masked: masked mixtures M Y, of the same shape.
    """
    floor = SILENCE * _power(mixture) + 1e-12
    ratio = (_power(target) + floor) / (_power(target - masked) + floor)
    return -10 * ratio.log10().mean(1)


def _power(spectrum: Tensor) -> Tensor:
    """[..., F, frames] to [...]."""
    return torch.view_as_real(spectrum).square().sum((-3, -2, -1))
