"""The LQ-VAE's training objective: the Jukebox loss plus latent linearisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ObjectiveOutput, ReconstructionObjective


class LinearisationObjective(ReconstructionObjective):
    """Jukebox loss + mean((B(a0 q_a + a1 q_b) - B(E(a0 x_a + a1 x_b)))^2), summed over the levels.

    The halves of the batch are the two sources x_a, x_b; q are their quantised latents and B the
    straight-through quantiser (LQ-VAE, eq. 7). In training mode every codebook is updated by three
    batches: the sources, the latent sums, the mixtures.
    """

    def __init__(
        self,
        codec: VQVAE,
        config: LossConfig,
        bandwidths: Bandwidths,
        alpha: Sequence[float] = (0.5, 0.5),
    ):
        super().__init__(codec, config, bandwidths)
        if len(alpha) != 2:
            raise ValueError(f"alpha has {len(alpha)} weights; linearisation mixes two sources")
        self.alpha = (float(alpha[0]), float(alpha[1]))

    def forward(self, audio: Tensor, generator: torch.Generator | None = None) -> ObjectiveOutput:
        """Loss of waveforms [B, T], rows i and i + B / 2 being the sources of one mixture.

        Raises:
            ValueError: B is odd.
        """
        if len(audio) % 2:
            raise ValueError(f"batch of {len(audio)} crops: linearisation needs an even number")
        outputs = self.codec(audio, generator)
        base = self.reconstruction(audio, outputs)
        mixture = self._mix(audio)
        distances, commits = {}, []
        for level, output in outputs.items():
            bottleneck = self.codec.bottleneck(level)
            summed = bottleneck(self._mix(output.quantised.latents), generator)
            encoded = bottleneck(self.codec.latents(mixture, level), generator)
            distances[level] = (summed.latents - encoded.latents).square().mean()
            commits.append(summed.commit)
        linearisation = torch.stack(list(distances.values())).sum()
        commit_sum = torch.stack(commits).sum()
        loss = (
            base.loss + self.config.linearisation * linearisation + self.config.commit * commit_sum
        )
        metrics = {f"latent_loss_l{level + 1}": d for level, d in distances.items()} | {
            "latent_loss": linearisation,
            "commit_loss_standard": base.metrics["commit_loss"],
            "commit_loss_sum": commit_sum,
            "commit_loss": base.metrics["commit_loss"] + commit_sum,
        }
        detached = {name: value.detach() for name, value in metrics.items()}
        return ObjectiveOutput(loss, base.metrics | detached)

    def _mix(self, x: Tensor) -> Tensor:
        """alpha-weighted sum of the batch halves."""
        first, second = x.chunk(2)
        return self.alpha[0] * first + self.alpha[1] * second
