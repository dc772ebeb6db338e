"""Causal self-attention of the prior: dense, block, column and previous-block (Jukebox, sec. 4.2).

Positions are laid out in blocks of L. `block` attends within the current block, `column` to the
same offset of this and all earlier blocks, `previous_block` to all of the block before (zeros for
the first), `dense` to everything before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jukebox_core.config import PriorConfig
from jukebox_core.prior.cache import LayerCache


class Attention(nn.Module):
    """Multi-head self-attention of one kind."""

    def __init__(self, config: PriorConfig, kind: str):
        super().__init__()
        self.kind = kind
        self.heads = config.heads
        self.block_length = config.block_length
        self.qkv = nn.Linear(config.width, 3 * config.attn_width)
        self.out = nn.Linear(config.attn_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Whole sequences [B, T, W] to [B, T, W]."""
        batch, steps, _ = x.shape
        query, key, value = (
            part.view(batch, steps, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )  # [B, H, T, d]
        attended = _attend(self.kind, query, key, value, self.block_length)
        return self.out(attended.transpose(1, 2).reshape(batch, steps, -1))

    def step(self, x: Tensor, cache: LayerCache, position: int) -> Tensor:
        """One position [B, W] to [B, W], through the cache."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)) for part in self.qkv(x).chunk(3, dim=-1)
        )  # [B, H, d]
        context = cache.update(key, value, position)
        if context is None:
            return self.out(torch.zeros_like(query).flatten(1))
        attended = F.scaled_dot_product_attention(query.unsqueeze(2), *context)  # [B, H, 1, d]
        return self.out(attended.flatten(1))


def _attend(kind: str, query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
    """The attention output of whole sequences; all tensors are [B, H, T, d]."""
    if kind == "dense":
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    steps = query.shape[2]
    # Blocks [B, H, n, L, d], zeros after the end: nothing attends to them.
    q, k, v = (
        F.pad(x, (0, 0, 0, -steps % length)).unflatten(2, (-1, length)) for x in (query, key, value)
    )
    if kind == "block":
        attended = _within_groups(q, k, v, is_causal=True)
    elif kind == "column":
        columns = (x.transpose(2, 3) for x in (q, k, v))
        attended = _within_groups(*columns, is_causal=True).transpose(2, 3)
    elif q.shape[2] == 1:
        return torch.zeros_like(query)
    else:
        later = _within_groups(q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], is_causal=False)
        attended = torch.cat([torch.zeros_like(q[:, :, :1]), later], dim=2)
    return attended.flatten(2, 3)[:, :, :steps]


def _within_groups(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
    """Attention within every group of [B, H, n, L, d]; fused kernels take four axes, not five."""
    groups = query.shape[1:3]
    q, k, v = (x.flatten(1, 2) for x in (query, key, value))  # [B, H * n, L, d]
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).unflatten(1, groups)
