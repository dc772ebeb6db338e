"""A network that makes the masks from the mixture and the candidates.

A ratio mask looks at the candidates' mean power, bin by bin; a mask estimator looks at the
mixture's spectrum only. The network starts from a weighted product of both, with weights per
frequency, and corrects its logits by convolutions over the neighbourhood of a bin. They see the
mixture's magnitude, every source's mean power over the candidates, how much the candidates differ
about its share, and the estimator's mask. These masks M_i are real and sum to one.

A real mask gives every source the phase of the mixture, which limits even the ideal one. The
candidates have phases of their own: with D_i the spectrum of the mean of a source's candidates,
the estimate is M_i Y + W (D_i - M_i sum_j D_j). It is D_i if the gate W is 1 and the D_i sum to the
mixture Y, the masked mixture if W is 0, and the estimates always sum to Y. The network gives W per
bin. Divided by Y, the estimate is a complex mask, for any channel of the mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jukebox_core.audio.spectra import squared_magnitude
from jukebox_core.checkpoints import (
    META,
    alpha_of,
    check_codec,
    digest_of,
    load_config,
    load_model,
)
from jukebox_core.config import MaskEstimatorConfig, MaskNetworkConfig, from_dict
from jukebox_core.evaluation.mask_estimator import MaskEstimator
from jukebox_core.separation.mask import RatioMask, distinct
from jukebox_core.separation.samples import Candidates

KIND = "mask_network"
FLOOR = 1e-6
"""Added to powers before the logarithm, relative to the mixture's mean power."""
_SMALLEST = 1e-4  # added to the estimator's masks before the logarithm
_FREQUENCIES = 4  # channels that tell the convolutions the frequency
_START = 0.6  # exponent of the mean powers and of the estimator's masks before training
_FRAMES = 256  # of all candidates, compared at a time
_LARGEST = 10.0  # magnitude of a correction relative to the mixture


class MaskNetwork(nn.Module):
    """Masks of every source from a chunk's mixture and candidates."""

    def __init__(self, config: MaskNetworkConfig, estimator: MaskEstimator):
        """The product of a ratio mask and the estimator's mask, until it is trained.

        Args:
            config: the architecture.
            estimator: a trained mask estimator, which stays as it is.
        """
        super().__init__()
        self.config = config
        self.alpha = dict(estimator.alpha)
        self.estimator = estimator.requires_grad_(False)
        sources, bins = len(self.alpha), estimator.config.n_fft // 2 + 1
        planes = 2 + 4 * sources
        self.mean = nn.Parameter(torch.zeros(planes, bins))
        self.scale = nn.Parameter(torch.ones(planes, bins))
        self.exponents = nn.Parameter(torch.full((2, sources, bins), _START))
        self.offset = nn.Parameter(torch.zeros(sources, bins))
        self.gate = nn.Parameter(torch.zeros(1, bins))
        self.frequencies = nn.Parameter(0.1 * torch.randn(_FREQUENCIES, bins))
        widths = [planes + _FREQUENCIES, *[config.channels] * config.depth]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=(2**i, 1), dilation=(2**i, 1))
            for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        self.last = nn.Conv2d(config.channels, sources + 1, 1)
        for p in self.last.parameters():
            nn.init.zeros_(p)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources in the order of the masks."""
        return tuple(self.alpha)

    def forward(self, mixture: Tensor, decoded: Tensor, powers: Tensor, spread: Tensor) -> Tensor:
        """Masks [B, S, F, frames], summing to one over the sources; complex by default.

        Args:
            mixture: complex spectra [B, F, frames].
            decoded: mean spectra of the sources' candidates, as they stand in the mixture, complex
                [B, S, F, frames].
            powers: their mean powers, [B, S, F, frames].
            spread: standard deviations of their shares, [B, S, F, frames].
        """
        masks, gate = self.masks_and_gate(mixture, decoded, powers, spread)
        if not self.config.complex:
            return masks
        return masks + gate * _correction(mixture.unsqueeze(1), decoded, masks)

    def masks_and_gate(
        self, mixture: Tensor, decoded: Tensor, powers: Tensor, spread: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Real masks [B, S, F, frames], and the gate of the correction [B, 1, F, frames].

        Arguments as in `forward`.
        """
        planes = self.planes(mixture, decoded, powers, spread)
        sources = len(self.alpha)
        by_power, by_estimator = (x.unsqueeze(2) for x in self.exponents)
        logits = by_power * planes[:, 1 : 1 + sources] + by_estimator * planes[:, -sources:]
        x = (planes - self.mean.unsqueeze(2)) * self.scale.unsqueeze(2)
        frequencies = self.frequencies[None, :, :, None].expand(len(x), -1, -1, x.shape[3])
        # On CPUs, convolutions of this layout take less than half the time.
        h = torch.cat([x, frequencies], 1).contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            h = nn.functional.gelu(convolution(h))
        h = self.last(h).float()
        masks = (logits + self.offset.unsqueeze(2) + h[:, :sources]).softmax(1)
        return masks, (self.gate.unsqueeze(2) + h[:, sources:]).sigmoid()

    def planes(self, mixture: Tensor, decoded: Tensor, powers: Tensor, spread: Tensor) -> Tensor:
        """What the network sees, [B, 2 + 4 S, F, frames].

        Log-powers relative to the mixture's mean power (the mixture, the sources, the mean spectra,
        what these leave of the mixture), the spreads, the logarithms of the estimator's masks.
        """
        own = squared_magnitude(mixture).unsqueeze(1)
        loudness = own.mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
        left = squared_magnitude(mixture - decoded.sum(1)).unsqueeze(1)
        every = torch.cat([own, powers, squared_magnitude(decoded), left], 1)
        logs = (every / loudness + FLOOR).log()
        with torch.no_grad(), torch.autocast(mixture.device.type, enabled=False):
            masks = self.estimator(mixture).transpose(0, 1)  # [B, S, F, frames]
        return torch.cat([logs, spread, (masks + _SMALLEST).log()], 1)

    def __repr__(self) -> str:
        """By content: what was made with it can be told from what was not."""
        return f"MaskNetwork({digest_of(self.state_dict())[:16]})"

    def spectrum(self, audio: Tensor) -> Tensor:
        """Complex spectra [..., F, frames] of waveforms [..., T]."""
        return self.estimator.spectrum(audio.to(self.mean.device))

    def train(self, mode: bool = True) -> MaskNetwork:
        """The estimator stays in evaluation mode."""
        super().train(mode)
        self.estimator.eval()
        return self

    @torch.no_grad()
    def standardise(self, mixture: Tensor, decoded: Tensor, powers: Tensor, spread: Tensor) -> None:
        """Start from every plane's mean and deviation per frequency; see `forward`."""
        planes = self.planes(mixture, decoded, powers, spread)
        self.mean.copy_(planes.mean((0, 3)))
        self.scale.copy_(1 / planes.std((0, 3)).clamp_min(0.01))

    def evidence(
        self, mixture: Tensor, candidates: Candidates, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The arguments of `forward`.

        Args:
            mixture: waveforms [B, T].
            candidates: N estimates of the sources of every mixture.
            weights: [B, N], summing to one over the candidates.
        """
        decoded, powers, spreads = [], [], []
        for b, weight in enumerate(weights.to(self.mean)):
            spectra = [
                gain * self.spectrum(candidates.audio[name][b]) for name, gain in self.alpha.items()
            ]
            mixed = [torch.einsum("n,nft->ft", weight.to(x.dtype), x) for x in spectra]
            decoded.append(torch.stack(mixed))
            power, spread = [], []
            for block in zip(*(x.split(_FRAMES, -1) for x in spectra), strict=True):
                each = torch.stack([squared_magnitude(x) for x in block])  # [S, N, F, frames]
                shares = each / (each.sum(0) + 1e-12)
                mean = torch.einsum("n,snft->sft", weight, shares)
                deviation = shares.sub(mean.unsqueeze(1)).square()
                spread.append(torch.einsum("n,snft->sft", weight, deviation).sqrt())
                power.append(torch.einsum("n,snft->sft", weight, each))
            spreads.append(torch.cat(spread, -1))
            powers.append(torch.cat(power, -1))
        parts = (torch.stack(x) for x in (decoded, powers, spreads))
        return (self.spectrum(mixture), *parts)  # type: ignore[return-value]


def _correction(mixture: Tensor, decoded: Tensor, masks: Tensor) -> Tensor:
    """(D_i - M_i sum_j D_j) / Y, complex [B, S, F, frames], of bounded magnitude; they sum to zero.

    Args:
        mixture: Y, [B, 1, F, frames].
        decoded: D_i, [B, S, F, frames].
        masks: M_i, real, [B, S, F, frames].
    """
    numerator = decoded - masks * decoded.sum(1, keepdim=True)
    # One bound for all sources, so that the corrections still sum to zero.
    largest = squared_magnitude(numerator).amax(1, keepdim=True)
    power = squared_magnitude(mixture).maximum(largest / _LARGEST**2).clamp_min(1e-20)
    return numerator * (mixture.conj() / power)


@dataclass(frozen=True)
class NetworkMask(RatioMask):
    """The masks of a trained `MaskNetwork`; power, compression and calibration are unused."""

    network: MaskNetwork = field(kw_only=True)

    @property
    def alpha(self) -> dict[str, float]:
        """The gains that the network was trained with."""
        return self.network.alpha

    @torch.no_grad()
    def estimate(
        self, mixture: Tensor, candidates: Candidates, weights: Tensor
    ) -> dict[str, Tensor]:
        """Masks {source: [B, F, frames]} of mixtures [B, T]."""
        masks = self._by_window(self.network, mixture, candidates, weights)
        return dict(zip(self.network.sources, masks.unbind(1), strict=True))

    @torch.no_grad()
    def uncertainty(self, mixture: Tensor, candidates: Candidates, weights: Tensor) -> Tensor:
        """The largest sqrt(M (1 - M)) of the sources' real masks M, [B, F, frames], from 0 to 0.5.

        It is the standard deviation of the bin's owner if M is the probability that the source owns
        it; of two sources, both have the same. Candidates drawn with the neural likelihood hardly
        differ, so that their deviation tells less.
        """
        masks = self._by_window(
            lambda *evidence: self.network.masks_and_gate(*evidence)[0],
            mixture,
            candidates,
            weights,
        )
        owners = torch.stack([*distinct(masks.unbind(1))])
        return (owners * (1 - owners)).clamp_min(0).sqrt().amax(0)

    def _by_window(
        self,
        masks: Callable[..., Tensor],
        mixture: Tensor,
        candidates: Candidates,
        weights: Tensor,
    ) -> Tensor:
        """Masks [B, S, F, frames], made window by window to save memory."""
        evidence = self.network.evidence(mixture, candidates, weights)
        windows = zip(*(x.split(1) for x in evidence), strict=True)
        return torch.cat([masks(*window).cpu() for window in windows])

    @property
    def settings(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {**super().settings, "network": repr(self.network)}


def network_mask(ratio: RatioMask, network: MaskNetwork) -> NetworkMask:
    """The network's masks; the fields of `ratio` that it does not use are kept."""
    config = network.estimator.config
    return NetworkMask(
        ratio.power, config.n_fft, config.hop, ratio.compression, ratio.calibration, network=network
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
    try:
        estimator = from_dict(MaskEstimatorConfig, meta["estimator"]["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{Path(folder) / META} describes no mask estimator ({error})") from error
    return load_model(lambda: MaskNetwork(config, MaskEstimator(estimator, alpha)), folder, device)
