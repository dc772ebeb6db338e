"""Sampling and training steps written in the obvious way, for comparison with the package.

Sampling: PyTorch's operations one after the other, in float32, one prior after the other; the
posterior of a step is one explicit table over pairs. That table by itself: a pass for every
operation.

Training of the codec: every level is trained, every term of the loss is computed for every level,
with or without a weight, and the modules run as they are. Of the prior: every layer computes the
whole T x T table of scores and masks the future.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.prior.model import AutoregressivePrior, Block
from jukebox_core.separation.likelihood import FactoredScores, Scores
from jukebox_core.vqvae.losses import reconstruction_terms, spectral_convergence
from jukebox_core.vqvae.model import VQVAE

_PART = 1 << 18  # scores at a time: they stay in the cache


class PlainDecoder:
    """One prior over N sequences."""

    def __init__(self, prior: AutoregressivePrior, sequences: int, positions: int):
        """Make room for the keys and values of all positions."""
        self._prior = prior
        shape = (len(prior.blocks), sequences, positions, prior.config.attn_width)
        self.keys = prior.positions.new_empty(shape)
        self.values = prior.positions.new_empty(shape)

    def pretend(self, positions: int) -> None:
        """Fill the caches with some keys and values of the first positions."""
        self.keys[:, :, :positions] = 0.1
        self.values[:, :, :positions] = 0.1

    @torch.no_grad()
    def step(self, codes: Tensor | None, position: int) -> Tensor:
        """Logits [N, K] of the next code, after [N] (None at the start)."""
        prior = self._prior
        last = prior.start.expand(self.keys.shape[1], -1) if codes is None else prior.embed(codes)
        x = last + prior.positions[position]
        for layer, block in enumerate(cast("list[Block]", prior.blocks)):
            attention = block.attn
            query, key, value = attention.qkv(block.ln_attn(x)).chunk(3, -1)
            self.keys[layer, :, position] = key
            self.values[layer, :, position] = value
            seen = visible(attention.kind, position, attention.block_length)
            keys, values = self.keys[layer, :, seen], self.values[layer, :, seen]
            weights = query.unsqueeze(1) @ keys.transpose(1, 2) / query.shape[-1] ** 0.5
            # The first block sees no previous one: a sum over nothing is zero.
            attended = torch.softmax(weights, -1) @ values
            x = x + attention.out(attended.squeeze(1))
            x = x + block.mlp(block.ln_mlp(x))
        return prior.head(x)


def visible(kind: str, position: int, length: int) -> slice:
    """The positions that a layer attends to."""
    start = position - position % length
    if kind == "dense":
        return slice(0, position + 1)
    if kind == "block":
        return slice(start, position + 1)
    if kind == "column":
        return slice(position % length, position + 1, length)
    return slice(max(0, start - length), start)


@torch.no_grad()
def plain_draw(log_p1: Tensor, log_p2: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """A pair of codes [N] from the explicit joint."""
    scores = scores.explicit()
    if scores.pairs is None:
        joint = (log_p1[:, :, None] + log_p2[:, None, :]).flatten(1) + scores.values  # [N, K * K]
    else:
        joint = log_p1[:, scores.pairs[0]] + log_p2[:, scores.pairs[1]] + scores.values
    drawn = torch.multinomial(torch.softmax(joint, -1), 1).squeeze(1)
    if scores.pairs is None:
        return drawn // log_p2.shape[1], drawn % log_p2.shape[1]
    return scores.pairs[0][drawn], scores.pairs[1][drawn]


class PlainTable(NamedTuple):
    """scores and weights = exp(scores - maximum) of all pairs, [K * K]; scores None: not needed."""

    scores: Tensor | None
    weights: Tensor
    maximum: Tensor


def plain_table(
    given: FactoredScores, log_rest: Tensor | None, lookup: Tensor | None
) -> PlainTable:
    """The table of factored scores in separate passes: logarithm, sum, look-up, exponential.

    Args:
        given: the factors; what belongs to the stored pairs is used as it is.
        log_rest: exponent * log of `given.power.rest`.
        lookup: that of `given.gathered`, int32.
    """
    if given.power is None:
        assert given.gathered is not None and lookup is not None
        values = given.gathered.values
        weights = _exp(values - values.max())
        return PlainTable(None, weights.index_select(0, lookup), values.max())
    assert log_rest is not None
    scores = (given.power.first.unsqueeze(1) + given.power.second).flatten()
    for part, rest in zip(scores.split(_PART), log_rest.split(_PART), strict=True):
        torch.add(rest, part.log_(), alpha=given.power.exponent, out=part)
    if given.gathered is not None:
        assert lookup is not None
        scores = scores + given.gathered.values.index_select(0, lookup)
    if given.stored is not None:
        scores[given.stored.pairs] = given.stored.scores.float()
    maximum, weights = scores.max(), torch.empty_like(scores)
    for part, out in zip(scores.split(_PART), weights.split(_PART), strict=True):
        _exp(torch.sub(part, maximum, out=out))
    return PlainTable(scores, weights, maximum)


def _exp(x: Tensor) -> Tensor:
    return F.threshold(x.clamp_min_(-87.0).exp_(), 2e-38, 0.0, inplace=True)


def plain_latents(codec: VQVAE, audio: Tensor, level: int) -> Tensor:
    """Latents [B, D, T / hop] of waveforms [B, T]."""
    x = audio.unsqueeze(1)
    for stage in codec.encoder(level).stages:
        x = stage(x)
    return x


def plain_waveforms(codec: VQVAE, latents: Tensor, level: int) -> Tensor:
    """Waveforms [B, T] of latents [B, D, T / hop]."""
    decoder = codec.decoder(level)
    for stage in reversed(decoder.stages):
        latents = stage(latents)
    return decoder.out(latents).squeeze(1)


class PlainCodecObjective(nn.Module):
    """The Jukebox loss of all levels; with `linearise`, the LQ-VAE's linearisation."""

    def __init__(self, codec: VQVAE, linearise: bool):
        super().__init__()
        self.codec = codec
        self._linearise = linearise

    def forward(self, audio: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of waveforms [B, T]."""
        config, loss = LossConfig(), audio.new_zeros(())
        for level in self.codec.levels:
            bottleneck = self.codec.bottleneck(level)
            quantised = bottleneck(plain_latents(self.codec, audio, level), generator)
            decoded = plain_waveforms(self.codec, quantised.latents, level)
            terms = reconstruction_terms(audio, decoded, config, Bandwidths(), spectral=True)
            loss = loss + terms["recons_loss"] + config.spectral * terms["spectral_loss"]
            loss = loss + terms["multispectral_loss"] + quantised.commit
            spectral_convergence(audio, decoded.detach(), config.spectral_stft)
            if self._linearise:
                summed = bottleneck(_mean(quantised.latents), generator)
                latents = plain_latents(self.codec, _mean(audio), level)
                encoded = bottleneck(latents, generator)
                loss = loss + (summed.latents - encoded.latents).square().mean() + summed.commit
        return loss


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
            seen = _visible_table(attention.kind, steps, attention.block_length)
            # The first block sees no previous one: its rows are all masked, and attend to nothing.
            weights = torch.softmax(scores.masked_fill(~seen, -1e30), -1) * seen.any(1, True)
            x = x + attention.out((weights @ value).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_mlp(x))
        logits = prior.head(x)
        log_p = torch.log_softmax(logits, -1).gather(2, codes.unsqueeze(2))
        return -log_p.mean() / torch.log(torch.tensor(2.0))


@cache
def _visible_table(kind: str, steps: int, length: int) -> Tensor:
    """Which positions [T, T] (row: who looks) a layer attends to."""
    table = torch.zeros(steps, steps, dtype=torch.bool)
    for position in range(steps):
        table[position, visible(kind, position, length)] = True
    return table
