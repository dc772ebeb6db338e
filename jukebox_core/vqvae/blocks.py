"""Convolutional stacks of the Jukebox VQ-VAE (arXiv 2005.00341, appendix)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from jukebox_core.config import VQVAEConfig
from jukebox_core.vqvae import cpu


class ResidualBlock(nn.Module):
    """x + conv1(relu(conv3(relu(x)))), the kernel-3 convolution dilated."""

    def __init__(self, width: int, hidden: int, dilation: int):
        super().__init__()
        self.dilated = nn.Conv1d(width, hidden, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv1d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] to [B, C, T]."""
        return x + self.pointwise(F.relu(self.dilated(F.relu(x))))


def dilations(config: VQVAEConfig, level: int) -> list[int]:
    """Dilations of the residual blocks of every stage in the stack of `level`."""
    depth = config.depth * config.multipliers[level]
    cycle = depth if config.dilation_cycle is None else config.dilation_cycle
    return [config.dilation_growth_rate ** (block % cycle) for block in range(depth)]


def residual_stack(config: VQVAEConfig, level: int, *, reverse: bool) -> nn.Sequential:
    """The residual blocks of one down- or upsampling step in the stack of `level`."""
    width, step = config.width * config.multipliers[level], -1 if reverse else 1
    hidden = int(config.m_conv * width)
    blocks = (ResidualBlock(width, hidden, d) for d in dilations(config, level)[::step])
    return nn.Sequential(*blocks)


def encoder_stage(config: VQVAEConfig, level: int, stage: int) -> nn.Sequential:
    """One stage of a level's encoder: [B, 1 or D, T] to [B, D, T / (stride ** downs)]."""
    width = config.width * config.multipliers[level]
    stride, downs = config.strides_t[stage], config.downs_t[stage]
    first = 1 if stage == 0 else config.emb_width
    steps = [
        nn.Sequential(
            nn.Conv1d(channels, width, 2 * stride, stride, stride // 2),
            residual_stack(config, level, reverse=False),
        )
        for channels in [first, *[width] * (downs - 1)]
    ]
    return nn.Sequential(*steps, nn.Conv1d(width, config.emb_width, 3, padding=1))


def decoder_stage(config: VQVAEConfig, level: int, stage: int) -> nn.Sequential:
    """One stage of a level's decoder: [B, D, T] to [B, D, T * stride ** downs]."""
    width = config.width * config.multipliers[level]
    stride, downs = config.strides_t[stage], config.downs_t[stage]
    first = nn.Conv1d(config.emb_width, width, 3, padding=1)
    steps = (
        nn.Sequential(
            residual_stack(config, level, reverse=config.reverse_decoder_dilation),
            nn.ConvTranspose1d(width, channels, 2 * stride, stride, stride // 2),
        )
        for channels in [*[width] * (downs - 1), config.emb_width]
    )
    return nn.Sequential(first, *steps)


class Encoder(nn.Module):
    """Waveform to latents of one level, through the stages of levels 0..level."""

    def __init__(self, config: VQVAEConfig, level: int):
        super().__init__()
        self.stages = nn.ModuleList(
            encoder_stage(config, level, stage) for stage in range(level + 1)
        )

    def forward(self, audio: Tensor) -> Tensor:
        """[B, 1, T] to [B, D, T / hop]."""
        if cpu.applies(audio):
            return cpu.run(self.stages, audio, audio.shape[-1])
        return self.stage_outputs(audio)[-1]

    def stage_outputs(self, audio: Tensor) -> list[Tensor]:
        """The output of every stage, [B, D, T / hop_of_stage]."""
        outputs: list[Tensor] = []
        for stage in self.stages:
            outputs.append(stage(outputs[-1] if outputs else audio))
        return outputs


class Decoder(nn.Module):
    """Latents of one level to waveform, through the stages level..0."""

    def __init__(self, config: VQVAEConfig, level: int):
        super().__init__()
        self.hop = config.hops[level]
        self.stages = nn.ModuleList(
            decoder_stage(config, level, stage) for stage in range(level + 1)
        )
        self.out = nn.Conv1d(config.emb_width, 1, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, D, T / hop] to [B, 1, T]."""
        if cpu.applies(latents):
            modules = [*reversed(self.stages), self.out]
            return cpu.run(modules, latents, latents.shape[-1] * self.hop)
        for stage in reversed(self.stages):
            latents = stage(latents)
        return self.out(latents)
