"""Sampling written in the obvious way, for comparison with the package.

Keys and values of all positions grow by concatenation; chunks and priors are stepped one by one in
float32; the posterior of a step is one explicit table over pairs.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from jukebox_core.prior.model import AutoregressivePrior, Block
from jukebox_core.separation.likelihood import PairScores


class PlainDecoder:
    """One prior over N sequences."""

    def __init__(self, prior: AutoregressivePrior):
        self._prior = prior
        self.keys: list[Tensor | None] = [None] * len(prior.blocks)
        self.values: list[Tensor | None] = [None] * len(prior.blocks)

    def pretend(self, sequences: int, positions: int) -> None:
        """Fill the caches with some keys and values of `positions` earlier positions."""
        shape = (sequences, positions, self._prior.config.attn_width)
        for layer in range(len(self.keys)):
            self.keys[layer] = self._prior.positions.new_full(shape, 0.1)
            self.values[layer] = self._prior.positions.new_full(shape, 0.1)

    @torch.no_grad()
    def step(self, codes: Tensor | None, position: int, sequences: int) -> Tensor:
        """Logits [N, K] of the next code, after [N] (None at the start)."""
        prior = self._prior
        last = prior.start.expand(sequences, -1) if codes is None else prior.embed(codes)
        x = last + prior.positions[position]
        for layer, block in enumerate(cast("list[Block]", prior.blocks)):
            attention = block.attn
            query, key, value = attention.qkv(block.ln_attn(x)).unsqueeze(1).chunk(3, -1)
            keys, values = self.keys[layer], self.values[layer]
            keys = key if keys is None else torch.cat([keys, key], 1)
            values = value if values is None else torch.cat([values, value], 1)
            self.keys[layer], self.values[layer] = keys, values  # [N, t + 1, A]
            seen = _visible(attention.kind, position, attention.block_length)
            if seen is None:
                attended = torch.zeros_like(query)
            else:
                weights = query @ keys[:, seen].transpose(1, 2) / query.shape[-1] ** 0.5
                attended = torch.softmax(weights, -1) @ values[:, seen]
            x = x + attention.out(attended.squeeze(1))
            x = x + block.mlp(block.ln_mlp(x))
        return prior.head(x)


def _visible(kind: str, position: int, length: int) -> slice | None:
    """The positions that a layer attends to."""
    start = position - position % length
    if kind == "dense":
        return slice(0, position + 1)
    if kind == "block":
        return slice(start, position + 1)
    if kind == "column":
        return slice(position % length, position + 1, length)
    return slice(start - length, start) if start else None


@torch.no_grad()
def plain_draw(log_p1: Tensor, log_p2: Tensor, scores: PairScores) -> tuple[Tensor, Tensor]:
    """A pair of codes [N] from the explicit joint."""
    scores = scores.explicit()
    if scores.pairs is None:
        joint = (log_p1[:, :, None] + log_p2[:, None, :]).flatten(1) + scores.values  # [N, K * K]
    else:
        joint = log_p1[:, scores.pairs[0]] + log_p2[:, scores.pairs[1]] + scores.values
    chosen = torch.multinomial(torch.softmax(joint, -1), 1).squeeze(1)
    if scores.pairs is None:
        return chosen // log_p2.shape[1], chosen % log_p2.shape[1]
    return scores.pairs[0][chosen], scores.pairs[1][chosen]
