"""The codec's residual block on a CPU, forward and backward, in one call each (residual.c)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jukebox_core.compiled import function_of, load

SOURCE = Path(__file__).with_name("residual.c")
_PANEL = 32  # outputs side by side, in vectors.h


class _Functions(NamedTuple):
    forward: Callable[..., Any]
    backward: Callable[..., Any]


def _of(library: ctypes.CDLL) -> _Functions:
    return _Functions(
        function_of(library, "residual_forward", 8, 5),
        function_of(library, "residual_backward", 11, 5),
    )


@functools.cache
def _functions() -> _Functions | None:
    return load(SOURCE, _of)


def supports(dilated: nn.Conv1d, pointwise: nn.Conv1d, time: int) -> bool:
    """Whether `block` takes a `ResidualBlock` of these convolutions, on [B, T, C]."""
    widths = (dilated.in_channels, dilated.out_channels)
    fits = not any(width % _PANEL for width in widths) and dilated.dilation[0] <= time
    biased = dilated.bias is not None and pointwise.bias is not None
    return fits and biased and _functions() is not None


def block(x: Tensor, dilated: nn.Conv1d, pointwise: nn.Conv1d) -> Tensor:
    """The sum of x and pointwise(relu(dilated(relu(x)))), float32 [B, T, C] on the CPU."""
    weights = (dilated.weight, dilated.bias, pointwise.weight, pointwise.bias)
    return _Block.apply(x.contiguous(), *weights, dilated.dilation[0])


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, dilation: int
    ) -> Tensor:
        """[B, T, C]; the weights are those of the convolutions."""
        items, time, width = x.shape
        inner = len(b1)
        rectified = x.new_empty(items, time + 2 * dilation, width)
        hidden, y = x.new_empty(items, time, inner), torch.empty_like(x)
        given = (x, _packed(w1), b1.contiguous(), _packed(w2), b2.contiguous())
        shape = (items, time, width, inner, dilation)
        _run("forward", (*given, rectified, hidden, y), shape)
        ctx.save_for_backward(w1, w2, rectified, hidden)
        ctx.shape = shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the block's input, weights and biases."""
        w1, w2, rectified, hidden = ctx.saved_tensors
        items, time, width, inner, dilation = ctx.shape
        backwards = (_packed(w1.transpose(0, 1).flip(2)), _packed(w2.transpose(0, 1)))
        inside = gy.new_empty(items, time + 2 * dilation, inner)
        gx = gy.new_empty(items, time, width)
        sizes = ((3, width, inner), (inner,), (inner, width), (width,))
        wanted = any(ctx.needs_input_grad[1:5])
        own = [gy.new_zeros(items, *size) if wanted else None for size in sizes]
        given = (gy.contiguous(), *backwards, rectified, hidden)
        _run("backward", (*given, inside, gx, *own), ctx.shape)
        if not wanted:
            return gx, None, None, None, None, None
        gw1, gb1, gw2, gb2 = (x.sum(0) for x in own if x is not None)
        return gx, gw1.permute(2, 1, 0), gb1, gw2.T.unsqueeze(2), gb2, None


def _packed(weight: Tensor) -> Tensor:
    """Weights [out, in, taps] as [panels, taps, in, 32]."""
    return weight.unflatten(0, (-1, _PANEL)).permute(0, 3, 2, 1).contiguous()


def _run(name: str, tensors: tuple[Tensor | None, ...], shape: tuple[int, ...]) -> None:
    for x in tensors:
        right = x is None or (x.dtype == torch.float32 and x.device.type == "cpu")
        if not right or not (x is None or x.is_contiguous()):
            layout = "" if x is None else f"{x.dtype} on {x.device}, strides {x.stride()}"
            raise ValueError(
                f"a residual block of {layout}: expected contiguous float32 on the CPU"
            )
    functions = _functions()
    assert functions is not None
    addresses = (None if x is None else x.data_ptr() for x in tensors)
    getattr(functions, name)(*addresses, *shape)
