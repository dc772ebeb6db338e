"""Training objectives of the codec: modules that map a batch to a loss and its metrics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.vqvae.losses import reconstruction_terms, spectral_convergence
from jukebox_core.vqvae.model import VQVAE, LevelOutput


class ObjectiveOutput(NamedTuple):
    """loss: scalar with gradient. metrics: detached scalars by name."""

    loss: Tensor
    metrics: dict[str, Tensor]


class ReconstructionObjective(nn.Module):
    """The plain Jukebox loss: recons + spectral + multispectral + commit, summed over levels."""

    def __init__(self, codec: VQVAE, config: LossConfig, bandwidths: Bandwidths):
        """Wrap `codec`.

        Raises:
            ValueError: a stride is odd, so that the decoded waveform would differ in length.
        """
        super().__init__()
        for index, stride in enumerate(codec.config.strides_t):
            if stride % 2:
                raise ValueError(
                    f"strides_t[{index}] is {stride}, expected an even number: with an odd stride "
                    "the decoded waveform differs in length from the input"
                )
        self.codec = codec
        self.config = config
        self.bandwidths = bandwidths

    def forward(self, audio: Tensor, generator: torch.Generator | None = None) -> ObjectiveOutput:
        """Loss of waveforms [B, T]; in training mode the codebooks are updated."""
        outputs = self.codec(audio, generator)
        return self.reconstruction(audio, outputs)

    def reconstruction(self, audio: Tensor, outputs: dict[int, LevelOutput]) -> ObjectiveOutput:
        """The Jukebox loss of the levels' outputs for waveforms [B, T].

        Metrics carry `_l{n}` with n = 1 for the finest level; the l1, l2, linf losses and the
        spectral convergence are the finest built level's, as the original systems log them.
        """
        config, bandwidths = self.config, self.bandwidths
        # The single-scale term has no weight in any published configuration: it is computed for
        # the log only where that costs no training time.
        spectral = bool(config.spectral) or not self.training
        totals: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for level in sorted(outputs, reverse=True):
            decoded = outputs[level].audio
            terms = reconstruction_terms(audio, decoded, config, bandwidths, spectral=spectral)
            for name in ("recons_loss", "spectral_loss", "multispectral_loss"):
                if name in terms:
                    metrics[f"{name}_l{level + 1}"] = terms[name]
                    totals[name] = totals.get(name, 0.0) + terms[name]
        metrics |= {name: terms[name] for name in ("l1_loss", "l2_loss", "linf_loss")}
        totals["commit_loss"] = torch.stack([o.quantised.commit for o in outputs.values()]).sum()
        loss = (
            totals["recons_loss"]
            + config.spectral * totals.get("spectral_loss", 0.0)
            + config.multispectral * totals["multispectral_loss"]
            + config.commit * totals["commit_loss"]
        )
        metrics |= totals | _mean_metrics([o.quantised.metrics for o in outputs.values()])
        with torch.no_grad():
            metrics["spectral_convergence"] = spectral_convergence(
                audio, outputs[min(outputs)].audio, config.spectral_stft
            )
        return ObjectiveOutput(loss, {name: value.detach() for name, value in metrics.items()})


def _mean_metrics(levels: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The codebook metrics, averaged over the levels."""
    return {name: torch.stack([level[name] for level in levels]).mean() for name in levels[0]}
