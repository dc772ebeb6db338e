"""A supervised baseline: a recurrent network that reads the mixture and gives every source's mask.

Open-Unmix (Stoeter et al. 2019) for one channel: the same layers between the same two linear maps.
Its one network per source is one for all, whose masks sum to one; layer in place of batch
normalisation makes an item's masks independent of its batch; a mixture's loudness is taken out, so
that masks do not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from jukebox_core.audio.spectra import squared_magnitude, stft
from jukebox_core.checkpoints import alpha_of, load_config, load_model
from jukebox_core.config import MaskEstimatorConfig
from jukebox_core.separation.mask import RatioMask

FLOOR = 1e-3
"""Added to magnitudes before the logarithm, relative to their root mean square."""


class MaskEstimator(nn.Module):
    """Standardise, linear, tanh, bidirectional LSTM, concatenate both, linear, ReLU, linear."""

    def __init__(self, config: MaskEstimatorConfig, alpha: Mapping[str, float]):
        """Random weights, and a standardisation that changes nothing until `standardise`.

        Args:
            config: the architecture.
            alpha: {source: gain in the mixture}, in the order of the masks.
        """
        super().__init__()
        self.config = config
        self.alpha = dict(alpha)
        self._transform = RatioMask(2.0, config.n_fft, config.hop)
        bins, hidden = config.n_fft // 2 + 1, config.hidden
        self.mean = nn.Parameter(torch.zeros(bins))
        self.scale = nn.Parameter(torch.ones(bins))
        self.inwards = nn.Linear(bins, hidden)
        self.norm_in = nn.LayerNorm(hidden)
        self.lstm = nn.LSTM(
            hidden,
            hidden // 2,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
            bidirectional=True,
        )
        self.joined = nn.Linear(2 * hidden, hidden)
        self.norm_out = nn.LayerNorm(hidden)
        self.outwards = nn.Linear(hidden, len(alpha) * bins)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources in the order of the masks."""
        return tuple(self.alpha)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Masks [S, B, F, frames], summing to one over the sources, of the spectra [B, F, frames].

        The spectra are the mixture's, complex (`spectrum`).
        """
        x = (self.features(spectrum) - self.mean) * self.scale
        first = torch.tanh(self.norm_in(self.inwards(x)))
        both = torch.cat([first, self.lstm(first)[0]], dim=-1)
        x = self.outwards(torch.relu(self.norm_out(self.joined(both))))
        masks = x.float().unflatten(-1, (len(self.alpha), -1)).softmax(-2)
        return masks.permute(2, 0, 3, 1)

    def spectrum(self, audio: Tensor) -> Tensor:
        """Complex spectra [..., F, frames] of waveforms [..., T]."""
        return stft(audio.float(), self.config.n_fft, self.config.hop)

    @staticmethod
    def features(spectrum: Tensor) -> Tensor:
        """Logarithms [B, frames, F] of the magnitudes relative to their root mean square."""
        powers = squared_magnitude(spectrum)
        loudness = powers.mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
        return (powers.sqrt() / loudness + FLOOR).log().transpose(1, 2)

    @torch.no_grad()
    def standardise(self, mixtures: Tensor) -> None:
        """Start from the features' mean and deviation per frequency over mixtures [B, T]."""
        features = self.features(self.spectrum(mixtures)).flatten(0, 1)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1 / features.std(0).clamp_min(0.01))

    @torch.no_grad()
    def separate(self, mixture: Tensor) -> dict[str, Tensor]:
        """Estimates {source: [B, T]} at the scale of the sources, of mixtures [B, T].

        The stems alpha_i x_i sum to the mixture.
        """
        masks = dict(zip(self.sources, self(self.spectrum(mixture)), strict=True))
        stems = self._transform.apply(mixture, masks)
        return {name: stem / self.alpha[name] for name, stem in stems.items()}


def load_mask_estimator(folder: str | Path, device: str | torch.device = "cpu") -> MaskEstimator:
    """Load a run's mask estimator, in eval mode and without gradients.

    Raises:
        FileNotFoundError: The folder or a part of it is missing.
        ValueError: A part is damaged, of another kind, does not fit its configuration, or has
            values that are not finite.
    """
    config, meta = load_config(folder, "mask_estimator", MaskEstimatorConfig)
    alpha = alpha_of(folder, meta)
    return load_model(lambda: MaskEstimator(config, alpha), folder, device)
