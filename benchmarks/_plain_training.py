"""A training step written in the obvious way, for comparison with the package.

The codec: every level is trained, every term of the loss is computed for every level, with or
without a weight, and the modules run as they are. The prior: every layer computes the whole T x T
table of scores and masks the future. The optimiser is AdamW in its plain form.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.prior.model import AutoregressivePrior, Block
from jukebox_core.vqvae.losses import reconstruction_terms, spectral_convergence
from jukebox_core.vqvae.model import VQVAE


class PlainCodecObjective(nn.Module):
    """The Jukebox loss of all levels; with `alpha`, the LQ-VAE's linearisation."""

    def __init__(self, codec: VQVAE, linearise: bool):
        super().__init__()
        self.codec = codec
        self._linearise = linearise

    def forward(self, audio: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of waveforms [B, T]."""
        config, loss = LossConfig(), audio.new_zeros(())
        for level in self.codec.levels:
            latents = self._encode(audio, level)
            quantised = self.codec.bottleneck(level)(latents, generator)
            decoded = self._decode(quantised.latents, level)
            terms = reconstruction_terms(audio, decoded, config, Bandwidths(), spectral=True)
            loss = loss + terms["recons_loss"] + config.spectral * terms["spectral_loss"]
            loss = loss + terms["multispectral_loss"] + quantised.commit
            spectral_convergence(audio, decoded.detach(), config.spectral_stft)
            if self._linearise:
                loss = loss + self._linearisation(audio, quantised.latents, level, generator)
        return loss

    def _linearisation(
        self, audio: Tensor, quantised: Tensor, level: int, generator: torch.Generator | None
    ) -> Tensor:
        bottleneck = self.codec.bottleneck(level)
        summed = bottleneck(_mean(quantised), generator)
        encoded = bottleneck(self._encode(_mean(audio), level), generator)
        return (summed.latents - encoded.latents).square().mean() + summed.commit

    def _encode(self, audio: Tensor, level: int) -> Tensor:
        x = audio.unsqueeze(1)
        for stage in self.codec.encoder(level).stages:
            x = stage(x)
        return x

    def _decode(self, latents: Tensor, level: int) -> Tensor:
        decoder = self.codec.decoder(level)
        for stage in reversed(decoder.stages):
            latents = stage(latents)
        return decoder.out(latents).squeeze(1)


def _mean(x: Tensor) -> Tensor:
    first, second = x.chunk(2)
    return 0.5 * first + 0.5 * second


class PlainPriorObjective(nn.Module):
    """Bits per code, with explicit scores of all pairs of positions."""

    def __init__(self, prior: AutoregressivePrior):
        super().__init__()
        self.prior = prior

    def forward(self, codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of codes [B, T]."""
        prior = self.prior
        batch, steps = codes.shape
        start = prior.start.expand(batch, 1, -1)
        x = torch.cat([start, prior.embed(codes[:, :-1])], 1) + prior.positions[:steps]
        for block in cast("list[Block]", prior.blocks):
            attention = block.attn
            query, key, value = (
                part.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
                for part in attention.qkv(block.ln_attn(x)).chunk(3, -1)
            )
            scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5  # [B, H, T, T]
            seen = visible(attention.kind, steps, attention.block_length)
            # The first block sees no previous one: its rows are all masked, and attend to nothing.
            weights = torch.softmax(scores.masked_fill(~seen, -1e30), -1) * seen.any(1, True)
            x = x + attention.out((weights @ value).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_mlp(x))
        logits = prior.head(x)
        log_p = torch.log_softmax(logits, -1).gather(2, codes.unsqueeze(2))
        return -log_p.mean() / torch.log(torch.tensor(2.0))


def visible(kind: str, steps: int, length: int) -> Tensor:
    """Which positions [T, T] (row: who looks) a layer attends to."""
    position = torch.arange(steps)
    here, there = position.unsqueeze(1), position.unsqueeze(0)
    if kind == "dense":
        return there <= here
    if kind == "block":
        return (there <= here) & (there // length == here // length)
    if kind == "column":
        return (there <= here) & (there % length == here % length)
    return there // length == here // length - 1
