"""Inverse-CDF sampling from weights that need not sum to one."""

from __future__ import annotations

import torch
from torch import Tensor


def invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The index [...] at which cumulated weights [..., P] pass `uniform` of their sum; the sum.

    No entry of weight zero is drawn.
    """
    cumulated = weights.cumsum(-1, dtype=precise(weights.device))
    total = cumulated[..., -1:].contiguous()
    target = uniform.unsqueeze(-1).to(cumulated.dtype) * total
    # `right` skips entries of weight zero; rounding must not lead beyond the last positive one.
    index = torch.searchsorted(cumulated, target, right=True)
    index = torch.minimum(index, torch.searchsorted(cumulated, total))
    return index.squeeze(-1), total.squeeze(-1)


def precise(device: torch.device) -> torch.dtype:
    """float64, except on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64
