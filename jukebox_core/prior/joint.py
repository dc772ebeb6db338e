"""Priors that are decoded together, in the form that is fastest on their device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from jukebox_core.prior.cache import PriorCache
from jukebox_core.prior.cpu import CpuDecoder
from jukebox_core.prior.gpu import StackedDecoder, can_stack
from jukebox_core.prior.kernels import find_kernels
from jukebox_core.prior.model import AutoregressivePrior

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
"""Type of weights and, but for int8, of caches; residual stream, attention sums and logits are
float32. int8, on CPUs with AVX2 only: weights and inputs of the layers' products are integers times
a step, caches are float32."""

_LARGE = 1 << 24  # weights of a prior from which bfloat16 pays on a CPU


class Prior(Protocol):
    """An autoregressive model of one source's codes."""

    n_codes: int
    n_ctx: int

    def new_cache(self, batch_size: int, length: int) -> PriorCache:
        """An empty cache for `batch_size` sequences of at most `length` codes."""
        ...

    def step(self, codes: Tensor | None, cache: PriorCache) -> Tensor:
        """Logits [B, K] of the next code, after the last codes [B] (None at the start)."""
        ...


class JointPriors(Protocol):
    """The sources' priors, advanced together; the order of `names` is (z1, z2, ...)."""

    names: tuple[str, ...]
    n_codes: int
    n_ctx: int

    def new_cache(self, batch_size: int, length: int) -> Any:
        """An empty cache for `batch_size` sequences per source, of at most `length` codes.

        Its `reorder(parents)` replaces sequence b of every source by sequence parents[b] (int64
        [B]); `nbytes()` are held.
        """
        ...

    def step(self, codes: Tensor | None, cache: Any) -> Tensor:
        """Logits [S, B, K] of the next codes, after the last codes [S, B] (None at the start)."""
        ...


def as_joint(priors: Mapping[str, Prior] | JointPriors) -> JointPriors:
    """Priors by name as one object; a joint object is returned unchanged.

    Raises:
        ValueError: no prior, or priors over different codes.
    """
    return EachPrior(priors) if isinstance(priors, Mapping) else priors


class EachPrior:
    """Priors of any kind, one after the other: the plain form of `JointPriors`."""

    def __init__(self, priors: Mapping[str, Prior]):
        if not priors:
            raise ValueError("separation needs a prior per source, got none")
        self.names = tuple(priors)
        self._priors = tuple(priors.values())
        first = self._priors[0]
        for name, prior in priors.items():
            if prior.n_codes != first.n_codes:
                raise ValueError(
                    f"the prior of {self.names[0]} has {first.n_codes} codes, the prior of "
                    f"{name} {prior.n_codes}: they belong to different codecs"
                )
        self.n_codes = first.n_codes
        self.n_ctx = min(prior.n_ctx for prior in self._priors)

    def new_cache(self, batch_size: int, length: int) -> EachCache:
        """An empty cache for `batch_size` sequences per source."""
        return EachCache(prior.new_cache(batch_size, length) for prior in self._priors)

    def step(self, codes: Tensor | None, cache: EachCache) -> Tensor:
        """Logits [S, B, K] of the next codes, after [S, B] (None at the start)."""
        last = (None,) * len(self._priors) if codes is None else codes.unbind()
        steps = zip(self._priors, last, cache, strict=True)
        return torch.stack([prior.step(part, own) for prior, part, own in steps])


class EachCache(list[PriorCache]):
    """The priors' caches."""

    def reorder(self, parents: Tensor) -> None:
        """Replace sequence b by sequence parents[b] in all."""
        for cache in self:
            cache.reorder(parents)

    def nbytes(self) -> int:
        """Bytes held by all."""
        return sum(cache.nbytes() for cache in self)


def accelerate(
    priors: Mapping[str, AutoregressivePrior], precision: Precision = "auto"
) -> JointPriors:
    """Priors prepared for decoding on their device.

    CPU: folded weights and compiled kernels. CUDA: the priors stacked, the step a CUDA graph,
    where they have one architecture. Otherwise (MPS; architectures that differ) the modules step
    as they are, in float32.

    Raises:
        ValueError: a precision that the device does not have.
    """
    device = next(iter(priors.values())).positions.device
    sizes = [sum(x.numel() for x in prior.parameters()) for prior in priors.values()]
    dtype = choose_dtype(device, precision, min(sizes))
    if dtype == torch.int8 and not find_kernels().integer_limit:
        raise ValueError(
            "precision int8 needs a processor with AVX2, a C compiler and kernels that are not "
            "switched off (JUKEBOX_CORE_KERNELS); use auto"
        )
    if device.type == "cpu":
        return EachPrior({name: CpuDecoder(prior, dtype) for name, prior in priors.items()})
    if device.type == "cuda" and can_stack(priors):
        return StackedDecoder(priors, dtype)
    if dtype != torch.float32:
        raise ValueError(
            f"precision {precision} on {device.type} needs priors of one architecture on CUDA; "
            "use float32"
        )
    return EachPrior(priors)


def choose_dtype(
    device: torch.device, precision: Precision = "auto", parameters: int = _LARGE
) -> torch.dtype:
    """The type for a requested precision.

    `auto` is bfloat16 on a CPU that multiplies it, for priors large enough to gain by it; bfloat16
    or, before Ampere (T4), float16 on CUDA; otherwise float32.

    Raises:
        ValueError: the device does not have it.
    """
    if precision != "auto":
        dtype = getattr(torch, precision)
        if dtype == torch.float16 and device.type == "cpu":
            raise ValueError("precision float16 is unusable on a CPU; use bfloat16 or float32")
        if dtype == torch.int8 and device.type != "cpu":
            raise ValueError(f"precision int8 is for CPUs, the device is {device.type}; use auto")
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
