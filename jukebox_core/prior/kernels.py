"""The operations of a decoding step on a CPU: `kernels.c`, or the same in plain PyTorch.

Where the C file cannot be compiled (`jukebox_core.compiled`), the PyTorch twins serve.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.compiled import function_of, load
from jukebox_core.inverse_cdf import invert
from jukebox_core.prior.cache import LayerCache

SOURCE = Path(__file__).with_name("kernels.c")
EPSILON = 1e-5  # of the layer norms
_PANEL = 32  # outputs side by side, in kernels.c
_GROUP = 8  # inputs that are multiplied at a time as integers, in kernels.c
_LANES = 4  # rows of masses side by side, in kernels.c
_PRODUCTS = 1 << 21  # of pairs, held at a time
_SMALLEST = torch.finfo(torch.float32).tiny


class Pairs(NamedTuple):
    """Pairs of codes, sorted by group.

    first: int32 [P]. second: int32 [P]. offsets: int64 [G + 1]; group g has the pairs from
    offsets[g] to offsets[g + 1]. shares: factors of the pairs [P], float64 where the device has
    it; None: ones.
    """

    first: Tensor
    second: Tensor
    offsets: Tensor
    shares: Tensor | None = None


class TorchKernels:
    """The operations of a decoding step in plain PyTorch."""

    integer_limit = 0
    """Largest integer of `quantised_product`; 0: no fast integer products here."""

    def attend(self, qkv: Tensor, cache: LayerCache, position: int) -> Tensor:
        """Store keys and values of [B, 3 A] at `position`; what the queries attend to, [B, A]."""
        heads = cache.keys.shape[2]
        query, key, value = (part.unflatten(-1, (heads, -1)) for part in qkv.chunk(3, dim=-1))
        context = cache.update(key, value, position)
        if context is None:
            return torch.zeros_like(qkv[:, : qkv.shape[1] // 3])
        # Half-precision attention is slower than its conversion on a CPU.
        q, k, v = (x.float() for x in (query.unsqueeze(2), *context))
        return F.scaled_dot_product_attention(q, k, v).flatten(1).to(qkv.dtype)

    def norm(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Layer norm, without weights, of x [B, W] float32."""
        return F.layer_norm(x, x.shape[-1:], eps=EPSILON).to(dtype)

    def product(self, weight: Tensor, bias: Tensor) -> Product:
        """A linear layer with weights [out, in], in their type; bias [out] float32."""
        return TorchProduct(weight, bias)

    def quantised_product(self, weight: Tensor, bias: Tensor) -> Product:
        """A linear layer that rounds weights [out, in] and inputs, see `quantise_rows`."""
        return TorchQuantised(weight, bias, limit=127)

    def pair_mass(self, pairs: Pairs, one: Tensor, other: Tensor) -> Tensor:
        """Sums of one[n, first] other[n, second] shares over the pairs of every group, [N, G].

        Args:
            pairs: P pairs in G groups.
            one: [N, K], float64 where the device has it.
            other: [N, K].
        """
        first, second, offsets, shares = pairs
        rows, columns = one.T.contiguous(), other.T.contiguous()
        total = one.new_zeros(len(offsets) - 1, len(one))
        groups = torch.arange(len(total), device=one.device).repeat_interleave(offsets.diff())
        size = max(1, _PRODUCTS // len(one))
        for at in (slice(start, start + size) for start in range(0, len(first), size)):
            products = rows[first[at]] * columns[second[at]]
            if shares is not None:
                products *= shares[at].unsqueeze(1)
            total.index_add_(0, groups[at], products)
        return total.T

    def draw_pairs(
        self, pairs: Pairs, groups: Tensor, one: Tensor, other: Tensor, uniform: Tensor
    ) -> Tensor:
        """The place [N] of a pair of each of the groups, with probability ~ one other shares.

        Args:
            pairs: see `pair_mass`.
            groups: [N], none of them empty.
            one: [N, K].
            other: [N, K].
            uniform: [N], in [0, 1).
        """
        places = []
        bounds = torch.stack([pairs.offsets[groups], pairs.offsets[groups + 1]], 1).tolist()
        for n, (start, stop) in enumerate(bounds):
            weights = one[n, pairs.first[start:stop]] * other[n, pairs.second[start:stop]]
            if pairs.shares is not None:
                weights *= pairs.shares[start:stop]
            place, _ = invert(weights, uniform[n])
            places.append(start + place)
        return torch.stack(places)

    def weigh_pairs(
        self,
        n_codes: int,
        power: tuple[Tensor, Tensor, Tensor, float] | None,
        gathered: tuple[Tensor, Tensor] | None,
        scale: float,
    ) -> tuple[Tensor, float]:
        """The product scale ((first[i] + second[j]) rest[i, j])^exponent values[lookup[i, j]].

        Zero where it would be subnormal.

        Args:
            n_codes: K.
            power: first and second [K], their sums in (0, 1] up to rounding; rest [K * K], in
                (0, 1]; the exponent, above 0. None: no such factor.
            gathered: values [U], in [0, 1], and their lookup [K * K]; None: no such factor.
            scale: in [0, 1].

        Returns:
            [K, K], and the largest of them.
        """
        product = torch.full((n_codes, n_codes), scale)
        if power is not None:
            first, second, rest, exponent = power
            base = (first.unsqueeze(1) + second).mul_(rest.view(n_codes, n_codes))
            product = base.clamp_(max=1).pow_(exponent).mul_(scale)
        if gathered is not None:
            values, lookup = gathered
            product *= values.index_select(0, lookup.int()).view(n_codes, n_codes)
        product = F.threshold(product, _SMALLEST, 0.0, inplace=True)
        return product, float(product.max())


class CompiledKernels:
    """kernels.c. Tensors are contiguous, on the CPU, activations float32 or bfloat16."""

    def __init__(self, library: ctypes.CDLL):
        names = {torch.float32: "float", torch.bfloat16: "bf16"}
        self._attend = {t: function_of(library, f"attend_{names[t]}", 7, 6) for t in names}
        self._norm = {
            t: function_of(library, f"norm_{names[t]}", 2, 2, ctypes.c_float) for t in names
        }
        self._pair_mass = function_of(library, "pair_mass", 7, 3)
        self._draw_pairs = function_of(library, "draw_pairs", 9, 2)
        floats = [ctypes.c_float] * 2
        self._weigh_pairs = function_of(library, "weigh_pairs", 7, 1, *floats)
        self._library = library
        self.integer_limit = int(function_of(library, "integer_limit", 0, 0)())
        self._multiplies_bfloat16 = bool(function_of(library, "has_product_bf16", 0, 0)())
        self._scratch = torch.empty(0)

    def attend(self, qkv: Tensor, cache: LayerCache, position: int) -> Tensor:
        """See `TorchKernels`."""
        _, batch, heads, rows, width = cache.keys.shape
        if qkv.shape != (batch, 3 * heads * width) or qkv.dtype != cache.keys.dtype:
            raise ValueError(
                f"qkv is {tuple(qkv.shape)} {qkv.dtype}, the cache "
                f"{tuple(cache.keys.shape)} {cache.keys.dtype}"
            )
        qkv = qkv.contiguous()
        out = qkv.new_empty(batch, heads * width)
        if self._scratch.numel() < batch * heads * rows:
            self._scratch = torch.empty(batch * heads * rows)
        slot = cache.slot(position)
        step = batch * heads * rows * width * cache.keys.element_size()  # bytes of a part
        keys, values = cache.keys.data_ptr(), cache.values.data_ptr()
        self._attend[qkv.dtype](
            qkv.data_ptr(),
            keys + slot.part * step,
            values + slot.part * step,
            keys + slot.read_part * step,
            values + slot.read_part * step,
            out.data_ptr(),
            self._scratch.data_ptr(),
            batch,
            heads,
            width,
            rows,
            slot.row,
            slot.rows,
        )
        return out

    def norm(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """See `TorchKernels`."""
        assert x.is_contiguous() and x.dtype == torch.float32
        out = torch.empty(x.shape, dtype=dtype)
        self._norm[dtype](x.data_ptr(), out.data_ptr(), *x.shape, EPSILON)
        return out

    def product(self, weight: Tensor, bias: Tensor) -> Product:
        """See `TorchKernels`."""
        half = self._multiplies_bfloat16 and weight.shape[1] % 2 == 0
        if weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and half):
            return PanelProduct(self._library, weight, bias)
        return TorchProduct(weight, bias)

    def quantised_product(self, weight: Tensor, bias: Tensor) -> Product:
        """See `TorchKernels`."""
        if not self.integer_limit:
            return TorchKernels().quantised_product(weight, bias)
        return QuantisedProduct(self._library, weight, bias, self.integer_limit)

    def pair_mass(self, pairs: Pairs, one: Tensor, other: Tensor) -> Tensor:
        """See `TorchKernels`."""
        (count, codes), groups = one.shape, len(pairs.offsets) - 1
        # Whole vectors: no sum depends on the number of rows in its last digit.
        one, other = (
            F.pad(x, (0, 0, 0, -count % _LANES))
            .view(-1, _LANES, codes)
            .transpose(1, 2)
            .contiguous()
            for x in (one, other)
        )
        out = torch.empty(len(one), groups, _LANES, dtype=torch.float64)
        self._pair_mass(
            *_addresses(torch.float64, one, other),
            *_of_pairs(pairs),
            out.data_ptr(),
            groups,
            len(one),
            codes,
        )
        return out.transpose(1, 2).reshape(-1, groups)[:count]

    def draw_pairs(
        self, pairs: Pairs, groups: Tensor, one: Tensor, other: Tensor, uniform: Tensor
    ) -> Tensor:
        """See `TorchKernels`."""
        groups = groups.contiguous()
        one, other, uniform = (x.contiguous() for x in (one, other, uniform))
        places = torch.empty_like(groups)
        self._draw_pairs(
            *_addresses(torch.float64, one, other),
            *_of_pairs(pairs),
            *_addresses(torch.int64, groups),
            *_addresses(torch.float64, uniform),
            places.data_ptr(),
            *one.shape,
        )
        return places

    def weigh_pairs(
        self,
        n_codes: int,
        power: tuple[Tensor, Tensor, Tensor, float] | None,
        gathered: tuple[Tensor, Tensor] | None,
        scale: float,
    ) -> tuple[Tensor, float]:
        """See `TorchKernels`; the lookup is int16 there."""
        first, second, rest, exponent = power or (None, None, None, 1.0)
        values, lookup = gathered or (None, None)
        if lookup is not None and lookup.dtype != torch.int16:
            return TorchKernels().weigh_pairs(n_codes, power, gathered, scale)
        floats = [x for x in (first, second, rest, values) if x is not None]
        assert all(x.dtype == torch.float32 and x.is_contiguous() for x in floats)
        assert lookup is None or lookup.is_contiguous()
        product, largest = torch.empty(n_codes, n_codes), torch.empty(n_codes)
        tables = (first, second, rest, values, lookup, product, largest)
        addresses = (None if x is None else x.data_ptr() for x in tables)
        self._weigh_pairs(*addresses, n_codes, exponent, scale)
        return product, float(largest.max())


class PanelProduct:
    """A linear layer from weights packed in panels (kernels.c), float32 or bfloat16."""

    _STORE, _SWISH, _ADD = range(3)

    def __init__(self, library: ctypes.CDLL, weight: Tensor, bias: Tensor):
        weight = weight.contiguous()  # lives until it is packed
        self._outputs, self._inputs = weight.shape
        self._dtype = weight.dtype
        name = {torch.float32: "float", torch.bfloat16: "bf16"}[weight.dtype]
        panels = -(-self._outputs // _PANEL)
        self._packed = weight.new_empty(panels * _PANEL * self._inputs)
        self._bias = bias.float().contiguous()
        pack = function_of(library, f"pack_{name}", 2, 2)
        pack(weight.data_ptr(), self._packed.data_ptr(), *weight.shape)
        self._product = function_of(library, f"product_{name}", 4, 4)

    def __call__(self, x: Tensor) -> Tensor:
        """See `TorchProduct`."""
        return self._checked(x, x.new_empty(x.shape[0], self._outputs), self._STORE)

    def swish(self, x: Tensor) -> Tensor:
        """See `TorchProduct`."""
        return self._checked(x, x.new_empty(x.shape[0], self._outputs), self._SWISH)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """See `TorchProduct`."""
        assert total.dtype == torch.float32 and total.is_contiguous()
        assert total.shape == (x.shape[0], self._outputs)
        self._checked(x, total, self._ADD)

    def _checked(self, x: Tensor, out: Tensor, post: int) -> Tensor:
        assert x.dtype == self._dtype and x.is_contiguous() and x.shape[1] == self._inputs
        self._run(x, out, post)
        return out

    def _run(self, x: Tensor, out: Tensor, post: int) -> None:
        addresses = (tensor.data_ptr() for tensor in (x, self._packed, self._bias, out))
        self._product(*addresses, x.shape[0], self._inputs, self._outputs, post)


class QuantisedProduct(PanelProduct):
    """A linear layer in integers, see `quantise_rows`: the same in panels (kernels.c)."""

    def __init__(self, library: ctypes.CDLL, weight: Tensor, bias: Tensor, limit: int):
        self._outputs, self._inputs = weight.shape
        self._dtype = torch.float32
        whole, sizes = quantise_rows(weight.float(), limit)
        rows, self._padded = -self._outputs % _PANEL, self._inputs + -self._inputs % _GROUP
        whole = F.pad(whole, (0, self._padded - self._inputs, 0, rows))
        # What inputs that are stored `limit + 1` higher add to the sums.
        self._start = -(limit + 1) * whole.sum(1, dtype=torch.int32)
        panels = whole.view(-1, _PANEL, self._padded // 4, 4).transpose(1, 2)
        self._packed = panels.contiguous()
        self._sizes, self._bias = (F.pad(x, (0, rows)) for x in (sizes, bias.float()))
        self._product = function_of(library, "product_integer", 8, 5)

    def _run(self, x: Tensor, out: Tensor, post: int) -> None:
        rounded = x.new_empty(len(x), self._padded, dtype=torch.uint8)
        steps = x.new_empty(len(x))
        layer = (self._packed, self._start, self._sizes, self._bias)
        addresses = (tensor.data_ptr() for tensor in (x, *layer, out, rounded, steps))
        shape = (len(x), self._inputs, self._padded, self._outputs)
        self._product(*addresses, *shape, post)


class TorchProduct:
    """A linear layer x W^T + b of rows x [B, in]."""

    def __init__(self, weight: Tensor, bias: Tensor):
        self._weight = weight
        self._bias = bias.to(weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, out], in the weights' type."""
        return F.linear(x, self._weight, self._bias)

    def swish(self, x: Tensor) -> Tensor:
        """The product y, then y sigmoid(y)."""
        return F.silu(self(x), inplace=True)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the product to `total`, float32 [B, out]."""
        total += self(x)


class TorchQuantised(TorchProduct):
    """A linear layer in integers, see `quantise_rows`."""

    def __init__(self, weight: Tensor, bias: Tensor, limit: int):
        whole, self._sizes = quantise_rows(weight.float(), limit)
        self._weight, self._bias, self._limit = whole.double(), bias.float(), limit

    def __call__(self, x: Tensor) -> Tensor:
        """[B, out], float32."""
        whole, steps = quantise_rows(x, self._limit)
        sums = F.linear(whole.double(), self._weight)  # exact
        return self._bias + sums.float() * (steps.unsqueeze(1) * self._sizes)


def quantise_rows(x: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Rows of float32 [B, n] as integers times a step each: symmetric uniform quantisation.

    Returns:
        int8 [B, n], a row's largest magnitude at the limit; steps float32 [B].
    """
    largest = x.abs().amax(1)
    # `limit / largest` would multiply by a rounded reciprocal.
    inverse = torch.where(largest > 1e-30, torch.full_like(largest, limit) / largest, 0.0)
    return (x * inverse.unsqueeze(1)).round().to(torch.int8), largest / limit


Kernels: TypeAlias = TorchKernels | CompiledKernels
Product: TypeAlias = TorchProduct | PanelProduct


def _of_pairs(pairs: Pairs) -> tuple[int | None, ...]:
    """Their addresses, in kernels.c's order."""
    return (
        *_addresses(torch.int32, pairs.first, pairs.second),
        None if pairs.shares is None else _addresses(torch.float64, pairs.shares)[0],
        *_addresses(torch.int64, pairs.offsets),
    )


def _addresses(dtype: torch.dtype, *tensors: Tensor) -> list[int]:
    assert all(x.dtype == dtype and x.is_contiguous() for x in tensors)
    return [x.data_ptr() for x in tensors]


@functools.cache
def find_kernels() -> Kernels:
    """The compiled kernels if they can be compiled, otherwise PyTorch's."""
    return load(SOURCE, CompiledKernels) or TorchKernels()
