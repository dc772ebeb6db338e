"""Decoding on a CPU: the prior's weights prepared for one position at a time.

The weights of the layer norms go into the linear layers after them, and the slope of the quick GELU
(x sigmoid(1.702 x) = swish(1.702 x) / 1.702) into the layers around it, so that a layer is four
matrix products, an attention and two norms. The residual stream, the sums inside every product, the
attention and the output layer are float32; in bfloat16 the weights, the products' results and the
cache are rounded; in int8 the weights and inputs of the products, not their sums or the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from jukebox_core.prior.cache import PriorCache
from jukebox_core.prior.kernels import Kernels, find_kernels
from jukebox_core.prior.model import AutoregressivePrior, Block, check_step

_SLOPE = 1.702  # of the quick GELU


class CpuDecoder:
    """A `Prior` that steps faster than the module it was made from, which it keeps a reference to.

    Changes of the module's weights after construction are not seen.
    """

    def __init__(
        self,
        prior: AutoregressivePrior,
        dtype: torch.dtype = torch.float32,
        kernels: Kernels | None = None,
    ):
        """Prepare the weights.

        Args:
            prior: on the CPU, float32.
            dtype: of weights and cache, float32 or bfloat16; int8: of the products' factors.
            kernels: default: the compiled ones where there is a compiler.

        Raises:
            ValueError: another type or device.
        """
        device, own = prior.positions.device, prior.positions.dtype
        if device.type != "cpu" or own != torch.float32 or dtype not in _DTYPES:
            raise ValueError(
                f"a CPU decoder in {dtype} of a prior in {own} on {device}: expected float32 on "
                f"the CPU, to be decoded in {' or '.join(map(str, _DTYPES))}"
            )
        self.n_codes, self.n_ctx = prior.n_codes, prior.n_ctx
        self.dtype = activation_dtype(dtype)
        self._prior = prior
        self._kernels = kernels or find_kernels()
        with torch.no_grad():
            product = self._kernels.product
            of_layer = self._kernels.quantised_product if dtype == torch.int8 else product
            self._layers = [
                Layer(*(of_layer(w.to(self.dtype), b) for w, b in folded_weights(block)))
                for block in cast("list[Block]", prior.blocks)
            ]
            self._head = product(prior.head.weight, torch.zeros(prior.n_codes))
            every = torch.arange(prior.n_codes, device=device)
            self._embedding: Tensor = prior.embed(every)  # [K, W]

    def new_cache(self, batch_size: int, length: int) -> PriorCache:
        """An empty cache for `batch_size` sequences of at most `length` codes."""
        like = torch.empty(0, dtype=self.dtype)
        return PriorCache(self._prior.config, batch_size, length, like)

    @torch.no_grad()
    def step(self, codes: Tensor | None, cache: PriorCache) -> Tensor:
        """Logits [B, K], float32, of the next code, given the last codes [B] (None at the start).

        Raises:
            ValueError: the cache is full, or codes are given exactly at the start or not later.
        """
        position = check_step(codes, cache)
        if codes is None:
            last = self._prior.start.expand(cache.batch_size, -1)
        else:
            last = self._embedding.index_select(0, codes)
        x = last + self._prior.positions[position]  # float32 [B, W], the residual stream
        norm, attend = self._kernels.norm, self._kernels.attend
        for layer, own in zip(self._layers, cache.layers, strict=True):
            attended = attend(layer.qkv(norm(x, self.dtype)), own, position)
            layer.out.add_to(x, attended)
            layer.down.add_to(x, layer.up.swish(norm(x, self.dtype)))
        cache.position = position + 1
        return self._head(x)


def activation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of caches and products' results for this type of weights."""
    return torch.float32 if dtype == torch.int8 else dtype


_DTYPES = (torch.float32, torch.bfloat16, torch.int8)


class Layer(NamedTuple):
    """The four products of a layer, in a decoder's own form."""

    qkv: Any
    out: Any
    up: Any
    down: Any


def folded_weights(block: Block) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the products qkv, out, up and down: norms bare, the GELU a swish."""
    attn, mlp = block.attn, block.mlp
    up_weight, up_bias = _after_norm(mlp.up, block.ln_mlp)
    products = [
        _after_norm(attn.qkv, block.ln_attn),
        (attn.out.weight, attn.out.bias),
        (_SLOPE * up_weight, _SLOPE * up_bias),
        (mlp.down.weight / _SLOPE, mlp.down.bias),
    ]
    return [(weight.detach(), bias.detach()) for weight, bias in products]


def _after_norm(linear: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of linear(norm(x)) as a function of the norm without its own."""
    weight, bias = linear.weight.double(), linear.bias.double()
    folded = weight * norm.weight.double(), bias + weight @ norm.bias.double()
    return folded[0].float(), folded[1].float()
