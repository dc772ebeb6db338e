"""Key-value caches of the prior: one pre-allocated buffer per layer, laid out for its reader.

A layer's keys are [parts, B, H, rows, d]: what a step reads is one part's first rows, contiguous
for every sequence. Every sequence of a batch is at the same position, a host integer: no step waits
for the device. Heads H, width per head d, block length L.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jukebox_core.config import PriorConfig


class Slot(NamedTuple):
    """Place of a position in the cache; it attends to the first `rows` rows of `read_part`.

    Integers, or integer tensors.
    """

    part: Any
    row: Any
    read_part: Any
    rows: Any


def slot_of(kind: str, position: Any, length: int) -> Slot:
    """The slot of a position, an integer or a tensor, in a layer of a kind, in blocks of L."""
    block, offset = position // length, position % length
    if kind == "dense":
        return Slot(0, position, 0, position + 1)
    if kind == "block":
        return Slot(0, offset, 0, offset + 1)
    if kind == "column":
        return Slot(offset, block, offset, block + 1)
    return Slot(block % 2, offset, 1 - block % 2, length * (block > 0))


def _size(kind: str, length: int, positions: int) -> tuple[int, int]:
    """Parts and rows of a layer's buffers for `positions` positions in blocks of `length`."""
    kept = min(length, positions)
    blocks = -(-positions // length)
    sizes = {"dense": (1, positions), "block": (1, kept), "column": (kept, blocks)}
    return sizes.get(kind, (2, kept))


class LayerCache:
    """The keys and values of one attention layer, [parts, B, H, rows, d] each."""

    def __init__(
        self, kind: str, batch_size: int, config: PriorConfig, positions: int, like: Tensor
    ):
        self.kind = kind
        self.batch_size = batch_size
        self.block_length = config.block_length
        parts, rows = _size(kind, config.block_length, positions)
        shape = (parts, batch_size, config.heads, rows, config.attn_width // config.heads)
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)

    def slot(self, position: int) -> Slot:
        """The slot of `position`."""
        return slot_of(self.kind, position, self.block_length)

    def update(self, key: Tensor, value: Tensor, position: int) -> tuple[Tensor, Tensor] | None:
        """Store [B, H, d] of `position`; return what it attends to, [B, H, n, d], or None."""
        slot = self.slot(position)
        self.keys[slot.part, :, :, slot.row] = key
        self.values[slot.part, :, :, slot.row] = value
        if slot.rows == 0:
            return None
        read = (slot.read_part, slice(None), slice(None), slice(slot.rows))
        return self.keys[read], self.values[read]

    def reorder(self, parents: Tensor) -> None:
        """Replace sequence b by parents[b] (int64 [B]), in place; what stays costs nothing."""
        moved = (parents != torch.arange(len(parents), device=parents.device)).nonzero().squeeze(1)
        if len(moved):
            for buffer in (self.keys, self.values):
                buffer.index_copy_(1, moved, buffer.index_select(1, parents[moved]))

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return self.keys.nbytes + self.values.nbytes


class PriorCache:
    """The state of B sequences being decoded together: the caches of all layers and a position."""

    def __init__(self, config: PriorConfig, batch_size: int, length: int, like: Tensor):
        """Allocate for `length` positions, in the type and on the device of `like`.

        Raises:
            ValueError: the length does not fit the prior's context.
        """
        if not 1 <= length <= config.n_ctx:
            raise ValueError(f"cache length is {length}, the prior's context is {config.n_ctx}")
        self.batch_size = batch_size
        self.length = length
        self.position = 0
        self.layers = [
            LayerCache(kind, batch_size, config, length, like) for kind in config.attention_kinds
        ]

    def reorder(self, parents: Tensor) -> None:
        """Replace sequence b by sequence parents[b] (int64 [B]) in every layer."""
        for layer in self.layers:
            layer.reorder(parents)

    def nbytes(self) -> int:
        """Bytes held by the buffers."""
        return sum(layer.nbytes for layer in self.layers)
