"""Draws by inversion of cumulated weights."""

from __future__ import annotations

import torch
from torch import Tensor


def invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Index [...] of weights [..., P] at `uniform` of their sum, and the sum."""
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
