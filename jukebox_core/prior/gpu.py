"""All priors in one pass of fixed shapes, for GPUs: a step that a CUDA graph can hold.

Priors of one architecture are stacked, every matrix product is one batched product, and the
position is a number on the device: shapes, addresses and the order of kernels are the same at every
step, which is recorded once per cache and replayed. Attention reads all rows that a layer may see
and masks those that it does not see yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core.prior.cache import LayerCache, PriorCache, Slot, slot_of
from jukebox_core.prior.cpu import Layer, folded_weights
from jukebox_core.prior.kernels import EPSILON
from jukebox_core.prior.model import AutoregressivePrior, Block, check_step


def can_stack(priors: Mapping[str, AutoregressivePrior]) -> bool:
    """Whether the priors have the same architecture."""
    return len({prior.config for prior in priors.values()}) == 1


class StackedDecoder:
    """`JointPriors` of S priors with one architecture, on any device.

    Changes of the modules' weights after construction are not seen.
    """

    def __init__(
        self, priors: Mapping[str, AutoregressivePrior], dtype: torch.dtype = torch.float32
    ):
        """Stack the weights.

        Args:
            priors: by source, in the order of the codes.
            dtype: of weights and cache. The residual stream, softmax and logits are float32.

        Raises:
            ValueError: the architectures differ.
        """
        if not can_stack(priors):
            raise ValueError(f"the priors of {' and '.join(priors)} differ in architecture")
        self.names = tuple(priors)
        self._priors = tuple(priors.values())
        first = self._priors[0]
        self.config, self.n_codes, self.n_ctx = first.config, first.n_codes, first.n_ctx
        self.dtype = dtype
        self.device = first.positions.device
        with torch.no_grad():
            every = torch.arange(self.n_codes, device=self.device)
            # The start stands behind the codes, as one more of them.
            self._embedding = torch.cat(
                [torch.cat([prior.embed(every), prior.start[None]]) for prior in self._priors]
            ).float()  # [S * (K + 1), W]
            self._positions = torch.stack([p.positions for p in self._priors]).float()
            self._head = self._stack([p.head.weight for p in self._priors], torch.float32)
            blocks = [cast("Sequence[Block]", prior.blocks) for prior in self._priors]
            self._layers = [self._layer(same) for same in zip(*blocks, strict=True)]

    def new_cache(self, batch_size: int, length: int) -> StackedCache:
        """An empty cache for `batch_size` sequences per source, of at most `length` codes."""
        return StackedCache(self, batch_size, length)

    @torch.no_grad()
    def step(self, codes: Tensor | None, cache: StackedCache) -> Tensor:
        """Logits [S, B, K], float32, of the next codes, after [S, B] (None at the start).

        The next step overwrites what a graph returned.

        Raises:
            ValueError: the cache is full, or codes are given exactly at the start or not later.
        """
        check_step(codes, cache.state)
        cache.set_codes(codes)
        on_cuda = self.device.type == "cuda"
        logits = cache.replay() if on_cuda else self.static_step(cache)
        cache.state.position += 1
        return logits

    def static_step(self, cache: StackedCache) -> Tensor:
        """The step from the cache's own codes and position, which moves on; no host decisions."""
        position = cache.position
        x = self._embedding.index_select(0, cache.codes.flatten()).view(*cache.codes.shape, -1)
        x = x + self._positions.index_select(1, position)  # [S, B, W]
        kinds = {layer.kind: layer.keys.shape[3] for layer in cache.state.layers}
        # Tensors of one element: PyTorch reads numbers without dimensions back to the host.
        zero, length = torch.zeros_like(position), self.config.block_length
        slots = {
            kind: Slot(*(zero + number for number in slot_of(kind, position, length)))
            for kind in kinds
        }
        masks = {
            kind: torch.arange(rows, device=self.device) < slots[kind].rows
            for kind, rows in kinds.items()
        }
        for layer, own in zip(self._layers, cache.state.layers, strict=True):
            qkv = _product(self._norm(x), layer.qkv)
            attended = self._attend(qkv, own, slots[own.kind], masks[own.kind])
            x = x + _product(attended, layer.out)
            x = x + _product(F.silu(_product(self._norm(x), layer.up)), layer.down)
        position += 1
        return torch.bmm(x, self._head)

    def _attend(self, qkv: Tensor, cache: LayerCache, slot: Slot, visible: Tensor) -> Tensor:
        """[S, B, 3 A] to [S, B, A], through the cache of S * B sequences.

        slot: tensors [1]. visible: which rows of the part that is read, [rows].
        """
        stacked, batch, _ = qkv.shape
        heads = self.config.heads
        query, key, value = qkv.view(stacked * batch, 3, heads, -1).unbind(1)  # [S B, H, d]
        cache.keys[slot.part, :, :, slot.row] = key
        cache.values[slot.part, :, :, slot.row] = value
        keys, values = (
            buffer[0] if len(buffer) == 1 else buffer.index_select(0, slot.read_part)[0]
            for buffer in (cache.keys, cache.values)
        )  # [S B, H, rows, d]
        # The query is scaled before the product: float16 must not overflow.
        scaled = query.unsqueeze(2) / math.sqrt(query.shape[-1])
        scores = torch.matmul(scaled, keys.transpose(2, 3)).float()
        scores = scores.masked_fill(~visible, -math.inf)
        # Nothing is visible in the first block of previous-block attention: zeros.
        weights = scores.softmax(-1).nan_to_num(0.0).to(values.dtype)
        return torch.matmul(weights, values).view(stacked, batch, -1)

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=EPSILON).to(self.dtype)

    def _layer(self, blocks: Sequence[Block]) -> Layer:
        """One layer's weights [S, in, out] and biases [S, 1, out], of all priors."""
        products = zip(*(folded_weights(block) for block in blocks), strict=True)
        return Layer(
            *(
                (
                    self._stack([weight for weight, _ in product], self.dtype),
                    torch.stack([bias for _, bias in product]).to(self.dtype).unsqueeze(1),
                )
                for product in products
            )
        )

    @staticmethod
    def _stack(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """[out, in] of every prior to [S, in, out]."""
        return torch.stack([weight.T for weight in weights]).to(dtype).contiguous()


def _product(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    weight, bias = weights
    return torch.baddbmm(bias, x, weight)


class StackedCache:
    """The priors' caches, source after source, and the step recorded on them."""

    def __init__(self, decoder: StackedDecoder, batch_size: int, length: int):
        self.batch_size = batch_size
        sources, device = len(decoder.names), decoder.device
        like = torch.empty(0, dtype=decoder.dtype, device=device)
        self.state = PriorCache(decoder.config, sources * batch_size, length, like)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.codes = torch.zeros(sources, batch_size, dtype=torch.int64, device=device)
        self._offsets = torch.arange(sources, device=device).unsqueeze(1)
        self._decoder = decoder
        self._recorded: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def set_codes(self, codes: Tensor | None) -> None:
        """The last codes [S, B] as rows of the stacked embedding; None: the start."""
        rows = self._offsets * (self._decoder.n_codes + 1)
        last = self._decoder.n_codes if codes is None else codes
        self.codes.copy_(rows + last)

    def replay(self) -> Tensor:
        """The step as a CUDA graph, recorded at the first call; logits [S, B, K]."""
        if self._recorded is None:
            self._recorded = self._record()
        graph, logits = self._recorded
        graph.replay()
        return logits

    def reorder(self, parents: Tensor) -> None:
        """Replace sequence b of every source by sequence parents[b] (int64 [B])."""
        self.state.reorder((self._offsets * self.batch_size + parents).flatten())

    def nbytes(self) -> int:
        """Bytes held by the buffers."""
        return self.state.nbytes()

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Run once to warm up, put the position back, record.

        What the warm-up stores at the current position is stored again by the step itself.
        """
        at = self.position.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._decoder.static_step(self)
        torch.cuda.current_stream().wait_stream(stream)
        self.position.copy_(at)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._decoder.static_step(self)
        return graph, logits
