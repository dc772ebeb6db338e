"""The codec's stacks on a CPU: the same function, faster than module by module.

What makes the difference (`python -m benchmarks.bench_codec` and `bench_training` measure it):

- channels last: oneDNN convolves [B, T, C] in place, while [B, C, T] is copied into its own blocked
  layout before every convolution and back after it;
- a residual block is one call of our own (`residual`);
- a transposed convolution whose kernel is two strides long is a convolution of kernel 3 with
  `stride` times the outputs: channels last, these are already in the order of time;
- between the last transposed convolution and the last convolution nothing is nonlinear: they are
  one, from the channels of the one to the waveform (`_waveform`);
- items are taken a few at a time, so that what lies between two convolutions stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jukebox_core.vqvae import residual

_SAMPLES = 1 << 17  # audio samples of the items taken at a time
_LAYOUT = torch.channels_last


_applies = True


@contextmanager
def own_forward() -> Iterator[None]:
    """Within the context, modules run their own forward: tools can count their operators."""
    global _applies
    before, _applies = _applies, False
    try:
        yield
    finally:
        _applies = before


def applies(x: Tensor) -> bool:
    """Whether `run` may stand for the modules' own forward on this input.

    `run` calls no hooks of submodules and has no second derivatives.
    """
    return (
        _applies
        and type(x) in (Tensor, nn.Parameter)  # not a fake one
        and x.numel() > 0
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def run(modules: Iterable[nn.Module], x: Tensor, samples: int) -> Tensor:
    """Apply the modules in order: [B, C, T] to [B, C', T'].

    Args:
        modules: nn.Conv1d, nn.ConvTranspose1d, `ResidualBlock`, or sequences of these.
        x: [B, C, T].
        samples: length of an item as audio.
    """
    leaves = list(_leaves(modules))
    end = len(leaves) - 2 if _can_merge(leaves[-2:]) else len(leaves)
    parts = []
    for part in x.unsqueeze(2).split(max(1, _SAMPLES // samples)):
        part = part.contiguous(memory_format=_LAYOUT)  # [B, C, 1, T]
        for module in leaves[:end]:
            part = _forward(module, part)
        if end < len(leaves):
            parts.append(_waveform(*leaves[end:], part))  # type: ignore[call-arg,arg-type]
        else:
            parts.append(part.squeeze(2).contiguous())
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _leaves(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _leaves(module)
        else:
            yield module


def _forward(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.Conv1d):
        return _convolution(module, x)
    if isinstance(module, nn.ConvTranspose1d):
        return _transposed(module, x)
    dilated, pointwise = cast("tuple[nn.Conv1d, nn.Conv1d]", (module.dilated, module.pointwise))
    if residual.supports(dilated, pointwise, x.shape[-1]):
        in_time = residual.block(x.squeeze(2).transpose(1, 2), dilated, pointwise)
        return in_time.transpose(1, 2).unsqueeze(2)
    # The second ReLU and the sum are in place: their inputs are the block's own.
    hidden = _convolution(dilated, F.relu(x)).relu_()
    return _convolution(pointwise, hidden).add_(x)


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
    if not _spans_two_strides(module):
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


def _spans_two_strides(module: nn.ConvTranspose1d) -> bool:
    """Whether the kernel is two strides long and the padding half a one."""
    stride = module.stride[0]
    return module.kernel_size[0] == 2 * stride == 4 * int(module.padding[0])


def _can_merge(modules: Sequence[nn.Module]) -> bool:
    """Whether `_waveform` can stand for these modules."""
    if [type(module) for module in modules] != [nn.ConvTranspose1d, nn.Conv1d]:
        return False
    transposed, last = cast("tuple[nn.ConvTranspose1d, nn.Conv1d]", modules)
    shape = (last.out_channels, last.kernel_size[0], last.stride[0], last.padding[0])
    biased = transposed.bias is not None and last.bias is not None
    return (
        biased and _spans_two_strides(transposed) and (*shape, last.dilation[0]) == (1, 3, 1, 1, 1)
    )


def _waveform(transposed: nn.ConvTranspose1d, last: nn.Conv1d, x: Tensor) -> Tensor:
    """last(transposed(x)) as one transposed convolution, [B, C, 1, T] to [B, 1, T * stride].

    Its kernel, two longer than that of `transposed`, is the convolution of both kernels. It also
    counts a value of transposed(x) before the first and one after the last, where `last` has zeros:
    both are subtracted.
    """
    assert transposed.bias is not None and last.bias is not None
    stride, padding = transposed.stride[0], int(transposed.padding[0])
    kernel = F.conv1d(transposed.weight, last.weight, padding=2).squeeze(1)  # [C, 2 * stride + 2]
    kernel = F.pad(kernel, (stride - padding - 1, padding - 1))
    x = x.squeeze(2).transpose(1, 2)  # [B, T, C]
    # Item by item, so that none depends on the others.
    spread = torch.stack([item @ kernel for item in x])
    before, same, after = F.pad(spread, (0, 0, 1, 1)).split(stride, -1)
    y = before[:, 2:] + same[:, 1:-1] + after[:, :-2]  # [B, T, stride]
    bias = last.bias + last.weight[0].sum(1) @ transposed.bias
    y = y.flatten(1) + bias
    for at, tap, lag in ((0, 0, padding - 1), (-1, 2, stride + padding)):
        weight = transposed.weight[:, :, lag] @ last.weight[0, :, tap]  # [C]
        outside = (x[:, at] * weight).sum(1) + transposed.bias @ last.weight[0, :, tap]
        y[:, at] -= outside
    return y.unsqueeze(1)
