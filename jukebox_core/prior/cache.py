"""Key-value caches of the prior: one pre-allocated buffer per layer, laid out for its reader.

Every sequence of a batch is at the same position, a host integer: no step waits for the device.
Heads H, width per head d, block length L.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from jukebox_core.config import PriorConfig


class LayerCache(Protocol):
    """Stores the keys and values of one attention layer."""

    batch_size: int

    def update(self, key: Tensor, value: Tensor, position: int) -> tuple[Tensor, Tensor] | None:
        """Store [B, H, d] of `position`; return what it attends to, [B, H, n, d], or None."""
        ...

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Store positions 0 to P - 1, [B, H, P, d]."""
        ...

    def reorder(self, parents: Tensor) -> None:
        """Replace sequence b by sequence parents[b]."""
        ...


class _Buffers:
    """Keys and values, the batch on axis `batch_axis`."""

    def __init__(self, shape: tuple[int, ...], batch_axis: int, like: Tensor):
        self._keys = like.new_zeros(shape)
        self._values = like.new_zeros(shape)
        self._batch_axis = batch_axis
        self.batch_size = shape[batch_axis]

    def reorder(self, parents: Tensor) -> None:
        """In place, and only what changes: sequences that stay where they are cost nothing."""
        moved = (parents != torch.arange(len(parents), device=parents.device)).nonzero().squeeze(1)
        if len(moved):
            for buffer in (self._keys, self._values):
                source = buffer.index_select(self._batch_axis, parents[moved])
                buffer.index_copy_(self._batch_axis, moved, source)


class DenseCache(_Buffers):
    """All earlier positions and the current one."""

    def __init__(self, batch: int, config: PriorConfig, length: int, like: Tensor):
        head_width = config.attn_width // config.heads
        super().__init__((batch, config.heads, length, head_width), 0, like)

    def update(self, key: Tensor, value: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Store [B, H, d], return [B, H, position + 1, d]."""
        self._keys[:, :, position] = key
        self._values[:, :, position] = value
        return self._keys[:, :, : position + 1], self._values[:, :, : position + 1]

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Store [B, H, P, d]."""
        steps = key.shape[2]
        self._keys[:, :, :steps] = key
        self._values[:, :, :steps] = value


class BlockCache(_Buffers):
    """The current block up to the current position; only one block is kept."""

    def __init__(self, batch: int, config: PriorConfig, length: int, like: Tensor):
        self._length = config.block_length
        kept = min(self._length, length)
        head_width = config.attn_width // config.heads
        super().__init__((batch, config.heads, kept, head_width), 0, like)

    def update(self, key: Tensor, value: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Store [B, H, d], return [B, H, position % L + 1, d]."""
        offset = position % self._length
        self._keys[:, :, offset] = key
        self._values[:, :, offset] = value
        return self._keys[:, :, : offset + 1], self._values[:, :, : offset + 1]

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Store the block that is current after P positions, of [B, H, P, d]."""
        start = (key.shape[2] - 1) // self._length * self._length
        steps = key.shape[2] - start
        self._keys[:, :, :steps] = key[:, :, start:]
        self._values[:, :, :steps] = value[:, :, start:]


class ColumnCache(_Buffers):
    """The same offset in all earlier blocks and in this one; a column is contiguous."""

    def __init__(self, batch: int, config: PriorConfig, length: int, like: Tensor):
        self._length = config.block_length
        columns, rows = min(self._length, length), -(-length // self._length)
        head_width = config.attn_width // config.heads
        super().__init__((columns, batch, config.heads, rows, head_width), 1, like)

    def update(self, key: Tensor, value: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Store [B, H, d], return [B, H, position // L + 1, d]."""
        row, column = divmod(position, self._length)
        self._keys[column, :, :, row] = key
        self._values[column, :, :, row] = value
        return self._keys[column, :, :, : row + 1], self._values[column, :, :, : row + 1]

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Store [B, H, P, d], row by row."""
        for row, start in enumerate(range(0, key.shape[2], self._length)):
            for buffer, x in ((self._keys, key), (self._values, value)):
                part = x[:, :, start : start + self._length]
                buffer[: part.shape[2], :, :, row] = part.permute(2, 0, 1, 3)


class PreviousBlockCache(_Buffers):
    """All of the block before the current one; two blocks are kept."""

    def __init__(self, batch: int, config: PriorConfig, length: int, like: Tensor):
        self._length = config.block_length
        kept = min(self._length, length)
        head_width = config.attn_width // config.heads
        super().__init__((2, batch, config.heads, kept, head_width), 1, like)

    def update(self, key: Tensor, value: Tensor, position: int) -> tuple[Tensor, Tensor] | None:
        """Store [B, H, d], return [B, H, L, d] of the block before, None in the first block."""
        row, column = divmod(position, self._length)
        self._keys[row % 2, :, :, column] = key
        self._values[row % 2, :, :, column] = value
        if row == 0:
            return None
        return self._keys[1 - row % 2], self._values[1 - row % 2]

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Store the last two blocks of [B, H, P, d]."""
        last = (key.shape[2] - 1) // self._length
        for row in range(max(0, last - 1), last + 1):
            part = slice(row * self._length, (row + 1) * self._length)
            for buffer, x in ((self._keys, key), (self._values, value)):
                buffer[row % 2, :, :, : x[:, :, part].shape[2]] = x[:, :, part]


_CACHES: dict[str, type[DenseCache | BlockCache | ColumnCache | PreviousBlockCache]] = {
    "dense": DenseCache,
    "block": BlockCache,
    "column": ColumnCache,
    "previous_block": PreviousBlockCache,
}


class PriorCache:
    """The state of B sequences being decoded together: the caches of all layers and a position."""

    def __init__(self, config: PriorConfig, batch_size: int, length: int, like: Tensor):
        if not 1 <= length <= config.n_ctx:
            raise ValueError(f"cache length is {length}, the prior's context is {config.n_ctx}")
        self.batch_size = batch_size
        self.length = length
        self.position = 0
        self.layers: list[LayerCache] = [
            _CACHES[kind](batch_size, config, length, like) for kind in config.attention_kinds
        ]

    def reorder(self, parents: Tensor) -> None:
        """Replace sequence b by sequence parents[b] (int64 [B]) in every layer."""
        for layer in self.layers:
            layer.reorder(parents)

    def nbytes(self) -> int:
        """Bytes held by the buffers."""
        buffers = (b for layer in self.layers for b in vars(layer).values())
        return sum(b.nbytes for b in buffers if isinstance(b, torch.Tensor))
