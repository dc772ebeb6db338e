"""The last stage: a network that makes the masks from the mixture and the candidates.

A ratio mask looks at the candidates' mean power, bin by bin. The network starts from a ratio mask
with a power per frequency, and corrects its logits by what two branches see: convolutions see the
neighbourhood of a bin, an LSTM the whole spectra of the chunk. Their inputs are, per bin, the
mixture's magnitude, every source's mean power over the candidates, and how much the candidates
differ about its share. The masks are real and sum to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jukebox_core.audio.spectra import stft
from jukebox_core.checkpoints import alpha_of, check_codec, load_config, load_model
from jukebox_core.config import MaskNetworkConfig
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.samples import Candidates

KIND = "mask_network"
FLOOR = 1e-6
"""Added to powers before the logarithm, relative to the mixture's mean power."""
_FREQUENCIES = 4  # channels that tell the convolutions the frequency


class MaskNetwork(nn.Module):
    """Masks of every source from a chunk's mixture and candidates."""

    def __init__(self, config: MaskNetworkConfig, alpha: Mapping[str, float]):
        """A ratio mask of power 2.5, until it is trained.

        Args:
            config: the architecture.
            alpha: {source: gain in the mixture}, in the order of the masks.
        """
        super().__init__()
        self.config = config
        self.alpha = dict(alpha)
        sources, bins = len(self.alpha), config.n_fft // 2 + 1
        planes = 1 + 2 * sources
        self.mean = nn.Parameter(torch.zeros(planes, bins))
        self.scale = nn.Parameter(torch.ones(planes, bins))
        self.power = nn.Parameter(torch.full((sources, bins), 2.5))
        self.offset = nn.Parameter(torch.zeros(sources, bins))
        self.frequencies = nn.Parameter(0.1 * torch.randn(_FREQUENCIES, bins))
        widths = [planes + _FREQUENCIES, *[config.channels] * config.depth]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=(2**i, 1), dilation=(2**i, 1))
            for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        self.local = nn.Conv2d(config.channels, sources, 1)
        self.inwards = nn.Linear(planes * bins, config.hidden)
        self.norm_in = nn.LayerNorm(config.hidden)
        self.lstm = nn.LSTM(
            config.hidden,
            config.hidden // 2,
            config.layers,
            batch_first=True,
            bidirectional=True,
        )
        self.joined = nn.Linear(2 * config.hidden, config.hidden)
        self.norm_out = nn.LayerNorm(config.hidden)
        self.outwards = nn.Linear(config.hidden, sources * bins)
        for last in (self.local, self.outwards):
            for p in last.parameters():
                nn.init.zeros_(p)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources in the order of the masks."""
        return tuple(self.alpha)

    def forward(self, mixture: Tensor, powers: Tensor, spread: Tensor) -> Tensor:
        """Masks [B, S, F, frames], summing to one over the sources.

        Args:
            mixture: complex spectra [B, F, frames].
            powers: mean powers of the sources as they stand in the mixture, [B, S, F, frames].
            spread: standard deviations of their shares, [B, S, F, frames].
        """
        planes = self.planes(mixture, powers, spread)
        logits = (self.power / 2).unsqueeze(2) * planes[:, 1 : 1 + len(self.alpha)]
        logits = logits + self.offset.unsqueeze(2)
        x = (planes - self.mean.unsqueeze(2)) * self.scale.unsqueeze(2)
        frequencies = self.frequencies[None, :, :, None].expand(len(x), -1, -1, x.shape[3])
        # On CPUs, convolutions of this layout take less than half the time.
        h = torch.cat([x, frequencies], 1).contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            h = nn.functional.gelu(convolution(h))
        frames = x.permute(0, 3, 1, 2).flatten(2)  # [B, frames, planes * F]
        first = torch.tanh(self.norm_in(self.inwards(frames)))
        both = torch.cat([first, self.lstm(first)[0]], -1)
        far = self.outwards(torch.relu(self.norm_out(self.joined(both))))
        far = far.unflatten(2, (len(self.alpha), -1)).permute(0, 2, 3, 1)
        return (logits + self.local(h) + far).float().softmax(1)

    @staticmethod
    def planes(mixture: Tensor, powers: Tensor, spread: Tensor) -> Tensor:
        """Log-powers relative to the mixture's mean power, and spreads, [B, 1 + 2 S, F, frames]."""
        own = mixture.abs().square().unsqueeze(1)
        loudness = own.mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
        logs = (torch.cat([own, powers], 1) / loudness + FLOOR).log()
        return torch.cat([logs, spread], 1)

    @torch.no_grad()
    def standardise(self, mixture: Tensor, powers: Tensor, spread: Tensor) -> None:
        """Start from every plane's mean and deviation per frequency; see `forward`."""
        planes = self.planes(mixture, powers, spread)
        self.mean.copy_(planes.mean((0, 3)))
        self.scale.copy_(1 / planes.std((0, 3)).clamp_min(0.01))

    def evidence(
        self, mixture: Tensor, candidates: Candidates, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of `forward`.

        Args:
            mixture: waveforms [B, T].
            candidates: N estimates of the sources of every mixture.
            weights: [B, N], summing to one over the candidates.
        """
        n_fft, hop = self.config.n_fft, self.config.hop
        powers, spreads = [], []
        for b, weight in enumerate(weights):
            each = torch.stack(
                [
                    (gain * stft(candidates.audio[name][b].to(weight), n_fft, hop)).abs().square()
                    for name, gain in self.alpha.items()
                ]
            )  # [S, N, F, frames]
            shares = each / (each.sum(0) + 1e-12)
            mean = torch.einsum("n,snft->sft", weight, shares)
            deviation = shares.sub(mean.unsqueeze(1)).square()
            spreads.append(torch.einsum("n,snft->sft", weight, deviation).sqrt())
            powers.append(torch.einsum("n,snft->sft", weight, each))
        return stft(mixture, n_fft, hop), torch.stack(powers), torch.stack(spreads)


@dataclass(frozen=True)
class NetworkMask(RatioMask):
    """The masks of a trained `MaskNetwork`; the fields of the ratio mask serve the uncertainty."""

    network: MaskNetwork | None = None

    @torch.no_grad()
    def estimate(
        self, mixture: Tensor, candidates: Candidates, weights: Tensor
    ) -> dict[str, Tensor]:
        """Masks {source: [B, F, frames]} of mixtures [B, T]."""
        assert self.network is not None
        device = self.network.mean.device
        evidence = self.network.evidence(mixture, candidates, weights.to(mixture))
        masks = self.network(*(x.to(device) for x in evidence)).cpu()
        return dict(zip(self.network.sources, masks.unbind(1), strict=True))

    @property
    def settings(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        assert self.network is not None
        return {**super().settings, "network": vars(self.network.config)}


def network_mask(ratio: RatioMask, network: MaskNetwork) -> NetworkMask:
    """The network's masks; `ratio` gives the power and the calibration of the uncertainty."""
    config = network.config
    return NetworkMask(
        ratio.power, config.n_fft, config.hop, ratio.compression, ratio.calibration, network
    )


def load_mask_network(
    folder: str | Path,
    device: str | torch.device = "cpu",
    codec_fingerprint: str | None = None,
) -> MaskNetwork:
    """Load a run's mask network, in eval mode and without gradients.

    Args:
        folder: the run.
        device: where to put it.
        codec_fingerprint: of the codec whose candidates it gets; None accepts any.

    Raises:
        FileNotFoundError: The folder or a part of it is missing.
        ValueError: A part is damaged, of another kind, does not fit its configuration, has values
            that are not finite, or the network was trained on the candidates of another codec.
    """
    config, meta = load_config(folder, KIND, MaskNetworkConfig)
    check_codec(folder, meta, codec_fingerprint)
    alpha = alpha_of(folder, meta)
    return load_model(lambda: MaskNetwork(config, alpha), folder, device)
