"""The codec: one encoder, bottleneck and decoder per level (Jukebox VQ-VAE)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jukebox_core.config import VQVAEConfig
from jukebox_core.vqvae.blocks import Decoder, Encoder
from jukebox_core.vqvae.bottleneck import Bottleneck, Quantised


class LevelOutput(NamedTuple):
    """audio: [B, T], decoded from this level only. latents: encoder output [B, D, T / hop]."""

    audio: Tensor
    latents: Tensor
    quantised: Quantised


class VQVAE(nn.Module):
    """Waveforms [B, T] to code sequences and back. T must be a multiple of the level's hop."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        book = (config.l_bins, config.emb_width, config.l_mu, config.revival_threshold)
        levels = config.built_levels
        self.encoders = nn.ModuleDict({str(level): Encoder(config, level) for level in levels})
        self.bottlenecks = nn.ModuleDict({str(level): Bottleneck(*book) for level in levels})
        self.decoders = nn.ModuleDict({str(level): Decoder(config, level) for level in levels})

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that exist, finest first."""
        return self.config.built_levels

    @property
    def top(self) -> int:
        """The coarsest level, the one that separation works on."""
        return self.config.levels - 1

    @property
    def codebook(self) -> Tensor:
        """The top level's codebook, [K, D]."""
        return self.bottleneck(self.top).codebook

    def encoder(self, level: int) -> Encoder:
        """The encoder of `level`."""
        return self._part(self.encoders, level)

    def bottleneck(self, level: int) -> Bottleneck:
        """The quantiser of `level`."""
        return self._part(self.bottlenecks, level)

    def decoder(self, level: int) -> Decoder:
        """The decoder of `level`."""
        return self._part(self.decoders, level)

    def forward(
        self, audio: Tensor, generator: torch.Generator | None = None
    ) -> dict[int, LevelOutput]:
        """Reconstruct [B, T] from every level; in training mode the codebooks are updated."""
        outputs = {}
        for level in self.levels:
            latents = self.latents(audio, level)
            quantised = self.bottleneck(level)(latents, generator)
            decoded = self.decoder(level)(quantised.latents).squeeze(1)
            outputs[level] = LevelOutput(decoded, latents, quantised)
        return outputs

    def latents(self, audio: Tensor, level: int | None = None) -> Tensor:
        """Unquantised latents [B, D, T / hop] of waveforms [B, T] at `level` (default: top).

        Raises:
            ValueError: audio is not [B, T], or T is not a positive multiple of the level's hop.
        """
        level = self.top if level is None else level
        hop = self.config.hops[level]
        if audio.ndim != 2 or audio.shape[1] == 0 or audio.shape[1] % hop:
            raise ValueError(
                f"audio is {tuple(audio.shape)}, expected [B, T], T a positive multiple of {hop}"
            )
        return self.encoder(level)(audio.unsqueeze(1))

    @torch.no_grad()
    def encode(self, audio: Tensor, level: int | None = None) -> Tensor:
        """Codes [B, T / hop] of waveforms [B, T] at `level` (default: top); only it is computed.

        Codes have no gradient: with or without gradients enabled they are computed alike.
        """
        level = self.top if level is None else level
        return self.bottleneck(level).encode(self.latents(audio, level))

    def decode(self, codes: Tensor, level: int | None = None) -> Tensor:
        """Waveforms [B, T * hop] of codes [B, T] of `level` (default: top)."""
        level = self.top if level is None else level
        return self.decoder(level)(self.bottleneck(level).decode(codes)).squeeze(1)

    def _part(self, parts: nn.ModuleDict, level: int) -> Any:
        if str(level) not in parts:
            raise ValueError(f"level {level} does not exist; this codec has {list(self.levels)}")
        return parts[str(level)]
