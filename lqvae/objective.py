"""The LQ-VAE's training objective: the Jukebox loss plus latent linearisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.separation.partial_sums import steps_of
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ObjectiveOutput, ReconstructionObjective


class LinearisationObjective(ReconstructionObjective):
    """Jukebox loss + mean((B(a0 q_a + a1 q_b) - B(E(a0 x_a + a1 x_b)))^2), summed over the levels.

    The halves of the batch are the two sources x_a, x_b; q are their quantised latents and B the
    straight-through quantiser (LQ-VAE, eq. 7). In training mode every codebook is updated by three
    batches: the sources, the latent sums, the mixtures.

    More than two sources are added up one by one (`partial_sums`), x_a being the sum so far, and
    the latent terms are means over these sums.
    """

    def __init__(
        self,
        codec: VQVAE,
        config: LossConfig,
        bandwidths: Bandwidths,
        alpha: Sequence[float] = (0.5, 0.5),
    ):
        """Use gains `alpha` of the sources in the mixture, in the order in which they are added."""
        super().__init__(codec, config, bandwidths)
        if len(alpha) < 2:
            raise ValueError(
                f"alpha has {len(alpha)} weights; linearisation mixes two sources or more"
            )
        self.alpha = tuple(map(float, alpha))
        steps = steps_of({f"{number:09}": gain for number, gain in enumerate(self.alpha)})
        self._weights = [step.weights for step in steps]

    def forward(self, audio: Tensor, generator: torch.Generator | None = None) -> ObjectiveOutput:
        """Loss of waveforms [B, T]; with S sources, every B / S-th row belongs to one mixture.

        Raises:
            ValueError: B is not a multiple of S.
        """
        sources = len(self.alpha)
        if len(audio) % sources:
            raise ValueError(
                f"batch of {len(audio)} crops: linearisation needs a multiple of {sources}"
            )
        outputs = self.codec(audio, generator)
        base = self.reconstruction(audio, outputs)
        first, *others = audio.chunk(sources)
        sums = []
        for (so_far, own), other in zip(self._weights, others, strict=True):
            first = so_far * first + own * other
            sums.append(first)
        distances, commits = {}, []
        for level, output in outputs.items():
            bottleneck = self.codec.bottleneck(level)
            latents, *rest = output.quantised.latents.chunk(sources)
            terms = []
            for (so_far, own), other, wave in zip(self._weights, rest, sums, strict=True):
                summed = bottleneck(so_far * latents + own * other, generator)
                encoded = bottleneck(self.codec.latents(wave, level), generator)
                terms.append((summed.latents - encoded.latents).square().mean())
                commits.append(summed.commit / len(self._weights))
                latents = encoded.latents
            distances[level] = torch.stack(terms).mean()
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
