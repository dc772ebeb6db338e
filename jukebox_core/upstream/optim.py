"""The originals' optimisation: their Adam, schedule, loss scale, weight average and clipping.

For numerical parity, and for going on with a run of theirs; `jukebox_core.training.trainer`
trains with AdamW and a schedule of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LossScale", "OriginalAdam", "OriginalWeightAverage", "clip_gradients", "lr_factor"]


class OriginalAdam(torch.optim.Optimizer):
    """p -= lr sqrt(1 - b2^t) / (1 - b1^t) (m / (sqrt(v) + eps) + wd p).

    Epsilon is added before the bias correction, and the bias correction scales the weight decay:
    in both it differs from `torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        size = group["lr"] * correction
        denominator = square.sqrt().add_(group["eps"])
        if group["weight_decay"]:
            change = (mean / denominator).add_(parameter, alpha=group["weight_decay"])
            parameter.add_(change, alpha=-size)
        else:
            parameter.addcdiv_(mean, denominator, value=-size)


def lr_factor(
    step: int, warmup: float = 100.0, decay_start: float | None = None, decay: float = math.inf
) -> float:
    """What the rate of step `step` (from 0) is multiplied by.

    Linear warm-up that starts at 0, so that the first step changes nothing; then 1; from step
    `decay_start` on linearly down to 0 over `decay` steps.
    """
    factor = min(1.0, step / warmup) if warmup else 1.0
    if decay_start is not None:
        factor *= min(1.0, max(0.0, 1.0 - (step - decay_start) / decay))
    return factor


@dataclass
class LossScale:
    """Dynamic loss scale of half-precision training."""

    scale: float = 2.0**16
    growth: float = 2.0 ** (1 / 250)
    """Per step without overflow."""
    backoff: float = 0.5
    """After an overflow."""
    maximum: float = 2.0**24

    def update(self, overflow: bool) -> float:
        """The scale of the next step; a step that overflowed is to be skipped."""
        factor = self.backoff if overflow else self.growth
        self.scale = min(self.scale * factor, self.maximum)
        return self.scale


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[Tensor], limit: float, loss_scale: float = 1.0
) -> tuple[float, float]:
    """Divide the gradients by `loss_scale` and by max(1, norm / limit), in place.

    Returns:
        The norm (over all parameters, loss scale removed) and what clipping divided by.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([gradient.float().norm() for gradient in gradients])
    norm = norms.norm().item() / loss_scale
    scale = max(1.0, norm / limit) if limit > 0 else 1.0
    for gradient in gradients:
        gradient.div_(loss_scale * scale)
    return norm, scale


class OriginalWeightAverage:
    """Exponential average of parameters: a <- mu^n a + (1 - mu^n) p on every n-th step.

    n = 1 is the average kept on the device; a larger n, with `device="cpu"`, is the one that spares
    its memory (the priors', n = 100). Codebooks are buffers and are not averaged.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        mu: float = 0.999,
        every: int = 1,
        device: str | torch.device | None = None,
    ):
        """Start from the parameters as they are.

        Raises:
            ValueError: `every` is not positive.
        """
        if every < 1:
            raise ValueError(f"every is {every}, expected at least 1")
        self._parameters = list(parameters)
        self._decay = mu**every
        self._every = every
        self._steps = 0
        self.values = [p.detach().to(device, copy=True) for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after a step."""
        self._steps += 1
        if self._steps % self._every:
            return
        for value, parameter in zip(self.values, self._parameters, strict=True):
            value.mul_(self._decay).add_(parameter.to(value), alpha=1 - self._decay)
