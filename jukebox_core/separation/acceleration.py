"""Which form of two priors decodes fastest where they are, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from jukebox_core.prior.cpu import CpuDecoder
from jukebox_core.prior.gpu import StackedDecoder, can_stack
from jukebox_core.prior.joint import EachPrior
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.separation.protocols import JointPriors

__all__ = ["Precision", "accelerate", "choose_dtype"]

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Of the priors' weights and caches; residual stream, attention's sums and logits are float32."""

_LARGE = 1 << 24  # weights of a prior from which bfloat16 pays on a CPU


def accelerate(
    priors: Mapping[str, AutoregressivePrior], precision: Precision = "auto"
) -> JointPriors:
    """Two priors prepared for decoding on their device.

    CPU: folded weights and compiled kernels. CUDA: both priors stacked, the step a CUDA graph,
    where they have one architecture. Otherwise (MPS; architectures that differ) the modules step
    as they are, in float32.

    Raises:
        ValueError: a precision that the device does not have, or not two priors.
    """
    device = next(iter(priors.values())).positions.device
    dtype = choose_dtype(device, precision, min(_size(prior) for prior in priors.values()))
    if device.type == "cpu":
        return EachPrior({name: CpuDecoder(prior, dtype) for name, prior in priors.items()})
    if device.type == "cuda" and len(priors) == 2 and can_stack(priors):
        return StackedDecoder(priors, dtype)
    if dtype != torch.float32:
        raise ValueError(
            f"precision {precision} on {device.type} needs two priors of one architecture on CUDA; "
            "use float32"
        )
    return EachPrior(priors)


def choose_dtype(
    device: torch.device, precision: Precision = "auto", parameters: int = _LARGE
) -> torch.dtype:
    """The type for a precision asked for.

    `auto` is bfloat16 on a CPU that multiplies it, for priors large enough to gain by it; bfloat16
    or, before Ampere (T4), float16 on CUDA; otherwise float32.

    Raises:
        ValueError: the device does not have it.
    """
    if precision != "auto":
        dtype = {p: getattr(torch, p) for p in ("float32", "bfloat16", "float16")}[precision]
        if dtype == torch.float16 and device.type == "cpu":
            raise ValueError("precision float16 is unusable on a CPU; use bfloat16 or float32")
        if dtype != torch.float32 and device.type not in ("cpu", "cuda"):
            raise ValueError(f"precision {precision} is not there on {device.type}; use float32")
        return dtype
    if device.type == "cpu":
        return torch.bfloat16 if parameters >= _LARGE and cpu_has_bfloat16() else torch.float32
    if device.type == "cuda":
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if ampere else torch.float16
    return torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 vectors or tiles."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, check, bool)()) for check in checks)


def _size(prior: AutoregressivePrior) -> int:
    return sum(parameter.numel() for parameter in prior.parameters())
