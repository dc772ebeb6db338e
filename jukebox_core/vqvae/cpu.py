"""The codec's stacks on a CPU without gradients: the same function, several times faster.

Three things make the difference (`python -m benchmarks.bench_codec` measures it):

- channels last: oneDNN convolves [B, T, C] in place, while [B, C, T] is copied into its own blocked
  layout before every convolution and back after it;
- a transposed convolution whose stride is even is a convolution of kernel 3 to `stride` times the
  channels, whose output, channels last, already lies in the order of time;
- items are taken a few at a time, so that what lies between two convolutions stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SAMPLES = 1 << 16  # audio samples of the items taken at a time
_LAYOUT = torch.channels_last


def applies(x: Tensor) -> bool:
    """Whether `run` may stand for the modules' own forward on this input."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def run(modules: Iterable[nn.Module], x: Tensor, samples: int) -> Tensor:
    """Apply the modules in order: [B, C, T] to [B, C', T'].

    Args:
        modules: nn.Conv1d, nn.ConvTranspose1d, `ResidualBlock`, or sequences of these.
        x: [B, C, T].
        samples: length of an item as audio.
    """
    modules = list(modules)
    parts = []
    for part in x.unsqueeze(2).split(max(1, _SAMPLES // samples)):
        part = part.contiguous(memory_format=_LAYOUT)  # [B, C, 1, T]
        for module in modules:
            part = _forward(module, part)
        parts.append(part.squeeze(2).contiguous())
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _forward(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.Sequential):
        for child in module:
            x = _forward(child, x)
        return x
    if isinstance(module, nn.Conv1d):
        return _convolution(module, x)
    if isinstance(module, nn.ConvTranspose1d):
        return _transposed(module, x)
    # A residual block. Its second ReLU and its sum are in place: their inputs are its own.
    hidden = _convolution(module.dilated, F.relu(x)).relu_()  # type: ignore[arg-type]
    return _convolution(module.pointwise, hidden).add_(x)  # type: ignore[arg-type]


def _convolution(module: nn.Conv1d, x: Tensor) -> Tensor:
    weight, padding = module.weight.unsqueeze(2), int(module.padding[0])
    stride, dilation = (1, module.stride[0]), (1, module.dilation[0])
    convolved = F.conv2d(x, weight, module.bias, stride, (0, padding), dilation)
    return convolved.contiguous(memory_format=_LAYOUT)  # after one channel the layout is ambiguous


def _transposed(module: nn.ConvTranspose1d, x: Tensor) -> Tensor:
    """[B, C, 1, T] to [B, C', 1, T * stride], for a kernel of two strides, padding of half a one.

    Output stride * n + r is the sum over i of weight[r + padding + stride * (n - i)] of input i;
    the index is within the kernel for i = n, and for n - 1 or n + 1.
    """
    stride, padding = module.stride[0], int(module.padding[0])
    if module.kernel_size[0] != 2 * stride or stride != 2 * padding:
        weight = module.weight.unsqueeze(2)
        spread = F.conv_transpose2d(x, weight, module.bias, (1, stride), (0, padding))
        return spread.contiguous(memory_format=_LAYOUT)
    inputs, outputs, _ = module.weight.shape
    kernel = module.weight.new_zeros(stride, outputs, inputs, 1, 3)
    taps = module.weight.permute(2, 1, 0).unsqueeze(3)  # [2 * stride, C', C, 1]
    kernel[:padding, ..., 0] = taps[stride + padding :]
    kernel[..., 1] = taps[padding : stride + padding]
    kernel[padding:, ..., 2] = taps[:padding]
    bias = None if module.bias is None else module.bias.repeat(stride)
    phases = F.conv2d(x, kernel.flatten(0, 1), bias, padding=(0, 1))  # [B, stride * C', 1, T]
    in_time = phases.permute(0, 2, 3, 1).reshape(len(x), 1, -1, outputs)  # [B, 1, T * stride, C']
    return in_time.permute(0, 3, 1, 2)
