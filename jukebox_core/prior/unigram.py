"""Priors without memory: a code's frequency, whatever came before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ANY_LENGTH = 1 << 31
"""The context, in codes, of priors without memory."""


@dataclass(frozen=True)
class NoCache:
    """The cache of a prior without memory: the number of sequences."""

    sequences: int

    def reorder(self, parents: Tensor) -> None:
        """Nothing moves."""

    def nbytes(self) -> int:
        """Nothing is held."""
        return 0


class UnigramPriors:
    """The sources' code frequencies as `JointPriors`.

    With the neural likelihood and exponent 1 the posterior is then the network's own, q_i: what is
    left of a separation without autoregressive priors.
    """

    n_ctx = ANY_LENGTH

    def __init__(self, log_frequencies: Mapping[str, Tensor]):
        """Use normalised log-frequencies {source: [K]}."""
        self.names = tuple(log_frequencies)
        self._logits = torch.stack(list(log_frequencies.values()))  # [S, K]
        self.n_codes = self._logits.shape[1]

    def new_cache(self, batch_size: int, length: int) -> NoCache:
        """A cache for `batch_size` sequences."""
        return NoCache(batch_size)

    def step(self, codes: Tensor | None, cache: NoCache) -> Tensor:
        """Logits [S, B, K], the same at every step."""
        return self._logits.unsqueeze(1).expand(-1, cache.sequences, -1)
