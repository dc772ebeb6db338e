"""Optimiser, learning rate schedule and weight averaging."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from jukebox_core.config import OptimConfig


@runtime_checkable
class HasHiddenMatrices(Protocol):
    """A module that names the matrices for Muon: no embeddings, filters of raw input, or heads."""

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices."""
        ...


def build_optimizer(
    module: nn.Module, config: OptimConfig, *, fused: bool, sharded: bool = False
) -> Optimizer:
    """AdamW (decoupled weight decay) over the trainable parameters; vectors are not decayed.

    With `config.muon` the module's `hidden_matrices()` are updated by Muon.

    Args:
        module: module to train.
        config: rates and decays.
        fused: use PyTorch's fused kernel.
        sharded: each process of torch.distributed keeps the moments of its share of the parameters
            and sends the updated ones to the others (ZeRO stage 1, arXiv 1910.02054).

    Raises:
        ValueError: Muon is to be sharded, or the module names no hidden matrices.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = tuple(float(beta) for beta in config.betas)
    options: dict[str, Any] = {"betas": betas, "eps": config.eps, "fused": fused}
    if config.muon:
        if sharded:
            raise ValueError("Muon's state is not sharded: leave out muon or shard_optimizer")
        if not isinstance(module, HasHiddenMatrices):
            raise ValueError("muon is True, but this model names no matrices for it: leave it out")
        hidden = {id(p) for p in module.hidden_matrices()}
        return MuonWithAdamW(
            [p for p in parameters if id(p) in hidden],
            [
                group | {"params": [p for p in group["params"] if id(p) not in hidden]}
                for group in groups
            ],
            config,
            options,
        )
    if sharded:
        return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, lr=config.lr, **options)
    return torch.optim.AdamW(groups, lr=config.lr, **options)


class Float32Muon(torch.optim.Muon):
    """PyTorch's Muon, with Nesterov momentum and `match_rms_adamw`; in float32 on a CPU.

    Its own Newton-Schulz iterations are in bfloat16; on a CPU that emulates it they took half of a
    training step or more.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all matrices."""
        matrices = [p for group in self.param_groups for p in group["params"]]
        if any(p.device.type != "cpu" for p in matrices):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                average = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = p.grad.lerp(average, momentum)
                update = newton_schulz(update, group["ns_coefficients"], group["ns_steps"])
                p.mul_(1 - rate * group["weight_decay"])
                p.add_(update, alpha=-rate * 0.2 * math.sqrt(max(p.shape)))  # match_rms_adamw
        return loss


def newton_schulz(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Iterations that move the singular values of x [m, n] close to one."""
    a, b, c = coefficients
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / wide.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if x.shape[0] <= x.shape[1] else wide.T


class MuonWithAdamW(Optimizer):
    """PyTorch's Muon for hidden matrices and its AdamW for all other parameters, as one optimiser.

    Muon's updates are scaled to the size of AdamW's, so that both share one learning rate.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        others: list[dict[str, Any]],
        config: OptimConfig,
        options: Mapping[str, Any],
    ):
        """Make both.

        Args:
            matrices: for Muon.
            others: groups for AdamW.
            config: rates and decays.
            options: of AdamW.
        """
        muon = Float32Muon(
            matrices,
            lr=config.lr,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = torch.optim.AdamW(others, lr=config.lr, **options)
        self._parts: dict[str, Optimizer] = {"muon": muon, "adamw": adamw}
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        """The parts' own groups: a change of the learning rate reaches them."""
        return [group for part in self._parts.values() for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from stored states."""
        for name, part in self._parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = self._groups()


_OF_THE_MACHINE = ("lr", "fused", "foreach", "capturable")
"""Options of a group that a continued run chooses anew; the learning rate, at every step."""


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Continue from stored averages; all options stay those of the optimiser.

    Raises:
        ValueError: An average has another shape than its parameter, or an option another value.
        Exception: Of many types, if the state is damaged.
    """
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for number, (group, options) in enumerate(zip(optimizer.param_groups, own, strict=True)):
        for name, value in options.items():
            stored = group.get(name, value)
            if name not in _OF_THE_MACHINE and stored != value:
                raise ValueError(
                    f"{name} of the optimiser's group {number} is {str(stored)[:40]!r}, expected "
                    f"{value!r}"
                )
        group.update(options)
    check_shapes(optimizer)


def check_shapes(optimizer: Optimizer) -> None:
    """Refuse stored averages that do not have the shape of their parameter.

    Raises:
        ValueError: One has another shape.
    """
    if isinstance(optimizer, MuonWithAdamW):
        for part in optimizer._parts.values():
            check_shapes(part)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"{name} is {tuple(value.shape)} for a parameter {tuple(parameter.shape)}"
                )


def learning_rate(config: OptimConfig, step: int, steps: int, position: float = 0.0) -> float:
    """Learning rate of step `step` (from 0) of `steps`: linear warm-up, constant, cosine to zero.

    `position` is the run's progress through its time budget, in steps: the decay follows whichever
    is ahead.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if not config.decay_steps:
        return config.lr * warm
    remaining = (steps - max(step, position)) / config.decay_steps
    return config.lr * warm * 0.5 * (1 - math.cos(math.pi * min(1.0, max(0.0, remaining))))


class WeightAverage:
    """Exponential average of a module's trainable parameters.

    Step t (from 0) decays by min(decay, (1 + t) / (10 + t)), so that a short run does not average
    over its random start. Buffers, such as codebooks, are not averaged.
    """

    def __init__(self, module: nn.Module, decay: float):
        self._decay = decay
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.values = [p.detach().clone() for p in self._parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after step `step` to the average."""
        if self._decay:
            decay = min(self._decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(self.values, self._parameters, 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the module has the averaged weights."""
        if not self._decay:
            yield
            return
        original = [p.detach().clone() for p in self._parameters]
        _copy(self.values, self._parameters)
        try:
            yield
        finally:
            _copy(original, self._parameters)

    def load(self, values: list[Tensor]) -> None:
        """Continue from stored values."""
        _copy(values, self.values)


@torch.no_grad()
def _copy(values: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
