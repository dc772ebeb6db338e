"""The autoregressive prior over one source's top-level codes (Jukebox `small_prior`, no labels)."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from jukebox_core.config import PriorConfig
from jukebox_core.prior.attention import Attention
from jukebox_core.prior.cache import LayerCache, PriorCache


class MLP(nn.Module):
    """Two linear layers around x * sigmoid(1.702 x)."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        hidden = int(config.m_mlp * config.width)
        self.up = nn.Linear(config.width, hidden)
        self.down = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] to [..., W]."""
        x = self.up(x)
        return self.down(x * torch.sigmoid(1.702 * x))


class Block(nn.Module):
    """x + a + mlp(ln(x + a)), a = attn(ln(x)): both branches summed onto the input."""

    def __init__(self, config: PriorConfig, kind: str):
        super().__init__()
        self.ln_attn = nn.LayerNorm(config.width)
        self.attn = Attention(config, kind)
        self.ln_mlp = nn.LayerNorm(config.width)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Whole sequences [B, T, W]."""
        x = x + self.dropout(self.attn(self.ln_attn(x)))
        return x + self.dropout(self.mlp(self.ln_mlp(x)))

    def step(self, x: Tensor, cache: LayerCache, position: int) -> Tensor:
        """One position [B, W]."""
        x = x + self.attn.step(self.ln_attn(x), cache, position)
        return x + self.mlp(self.ln_mlp(x))


class CodebookEmbedding(nn.Module):
    """A code's embedding is a linear map of its codebook vector (LQ-VAE and hybrid)."""

    codebook: Tensor

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.register_buffer("codebook", torch.zeros(config.l_bins, config.emb_width))
        self.linear = nn.Linear(config.emb_width, config.width, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """[...] codes to [..., W]."""
        return self.linear(F.embedding(codes, self.codebook))


def check_step(codes: Tensor | None, cache: PriorCache) -> int:
    """The cache's position; ValueError where it is full, or codes are or are not needed."""
    if cache.position >= cache.length:
        raise ValueError(f"the cache holds {cache.length} positions and is full")
    if (codes is None) != (cache.position == 0):
        raise ValueError("codes must be None at the first position, and only there")
    return cache.position


class AutoregressivePrior(nn.Module):
    """p(codes) of one source. Codes are int64 in [0, K)."""

    def __init__(self, config: PriorConfig, codebook: Tensor | None = None):
        """Build with random weights.

        Args:
            config: the architecture.
            codebook: the codec's [K, D], for the `codebook` embedding (or loaded later with the
                weights).

        Raises:
            ValueError: the codebook does not fit the configuration.
        """
        super().__init__()
        self.config = config
        self.n_codes = config.l_bins
        self.n_ctx = config.n_ctx
        self.start = nn.Parameter(torch.zeros(config.width))
        self.positions = nn.Parameter(torch.zeros(config.n_ctx, config.width))
        self.embed: nn.Module
        self.head = nn.Linear(config.width, config.l_bins, bias=False)
        if config.embedding == "table":
            self.embed = nn.Embedding(config.l_bins, config.width)
            self.head.weight = self.embed.weight
        else:
            self.embed = CodebookEmbedding(config)
            if codebook is not None:
                self.set_codebook(codebook)
        self.blocks = nn.ModuleList(Block(config, kind) for kind in config.attention_kinds)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_checkpointing = False
        self._initialise()

    def set_codebook(self, codebook: Tensor) -> None:
        """Use the codec's codebook [K, D] for the `codebook` embedding."""
        assert isinstance(self.embed, CodebookEmbedding)
        if codebook.shape != self.embed.codebook.shape:
            raise ValueError(
                f"codebook is {tuple(codebook.shape)}, the prior expects "
                f"{tuple(self.embed.codebook.shape)}"
            )
        self.embed.codebook.copy_(codebook)

    def forward(self, codes: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, K]: entry t is for codes[:, t], given those before it.

        Raises:
            ValueError: codes [B, T] are longer than the context.
        """
        x = self.dropout(self._inputs(codes))
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.head(x)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Matrices of the layers, for Muon."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def bits_per_code(self, codes: Tensor) -> Tensor:
        """Mean negative log2-likelihood per code of [B, T], the training loss."""
        logits = self(codes).float()
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten()) / math.log(2)

    def new_cache(self, batch_size: int, length: int) -> PriorCache:
        """An empty cache for `batch_size` sequences of at most `length` codes."""
        return PriorCache(self.config, batch_size, length, self.positions)

    def step(self, codes: Tensor | None, cache: PriorCache) -> Tensor:
        """Logits [B, K] of the next code, given the last codes [B] (None at the start).

        Raises:
            ValueError: the cache is full, or codes are given exactly at the start or not later.
        """
        position = check_step(codes, cache)
        if codes is None:
            x = self.start.expand(cache.batch_size, -1)
        else:
            x = self.embed(codes)
        x = x + self.positions[position]
        for block, layer in zip(cast("list[Block]", self.blocks), cache.layers, strict=True):
            x = block.step(x, layer, position)
        cache.position = position + 1
        return self.head(x)

    def _inputs(self, codes: Tensor) -> Tensor:
        """[B, T, W]: the start and all codes but the last, with their positions."""
        batch, steps = codes.shape
        if steps > self.n_ctx:
            raise ValueError(f"{steps} codes do not fit the prior's context of {self.n_ctx}")
        start = self.start.expand(batch, 1, -1)
        return torch.cat([start, self.embed(codes[:, :-1])], dim=1) + self.positions[:steps]

    def _initialise(self) -> None:
        """Normal weights of scale 0.02 (0.01 for positions and start) times `init_scale`."""
        scale = self.config.init_scale
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02 * scale)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, std=0.01 * scale)
        nn.init.normal_(self.start, std=0.01 * scale)
