"""Named sizes: everything that training and separation need to know about a size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from jukebox_core.checks import require_fields, require_types
from jukebox_core.config import (
    LossConfig,
    MaskEstimatorConfig,
    MaskNetworkConfig,
    NeuralLikelihoodConfig,
    OptimConfig,
    PriorConfig,
    TrainConfig,
    VQVAEConfig,
)

PresetName = Literal["tiny", "demo", "small", "t4", "paper", "jukebox_5b"]
DEFAULT_PRESET: PresetName = "demo"


@dataclass(frozen=True)
class Preset:
    """Architectures, losses, optimisation and windows of one size; the defaults are the paper's."""

    vqvae: VQVAEConfig = VQVAEConfig()
    vqvae_train: TrainConfig = TrainConfig()
    prior: PriorConfig = PriorConfig()
    prior_train: TrainConfig = TrainConfig(batch_size=8, crop=524_288)
    loss: LossConfig = LossConfig()
    vqvae_optim: OptimConfig = OptimConfig()
    prior_optim: OptimConfig = OptimConfig(weight_decay=0.01)
    mask: MaskEstimatorConfig = MaskEstimatorConfig()
    mask_train: TrainConfig = TrainConfig(steps=40_000, batch_size=32, crop=131_072)
    mask_optim: OptimConfig = OptimConfig(lr=1e-3, weight_decay=1e-5, decay_steps=20_000)
    neural: NeuralLikelihoodConfig = NeuralLikelihoodConfig()
    neural_train: TrainConfig = TrainConfig(steps=40_000, batch_size=32, crop=131_072)
    neural_optim: OptimConfig = OptimConfig(
        lr=2e-3, weight_decay=0.01, decay_steps=30_000, muon=True
    )
    mask_network: MaskNetworkConfig = MaskNetworkConfig()
    mask_network_train: TrainConfig = TrainConfig(steps=20_000, batch_size=320, crop=131_072)
    mask_network_optim: OptimConfig = OptimConfig(lr=1e-3, weight_decay=0.01, decay_steps=10_000)
    mask_network_items: int = 20_000
    """Crops whose candidates the mask network learns from."""
    window: int = 1024
    """Codes per separated window."""
    candidates: int = 64
    """Joint candidates per window."""
    activation_checkpointing: bool = True
    """Recompute the prior's activations in the backward pass, to save memory."""

    def __post_init__(self) -> None:
        require_types(self)
        require_fields(self, "candidates", "mask_network_items", whole=True, at_least=1)
        most = self.prior.n_ctx
        require_fields(self, "window", whole=True, at_least=1, at_most=most, hint="prior.n_ctx")


_TINY_TRAIN = TrainConfig(
    steps=6,
    batch_size=4,
    crop=4096,
    log_every=1,
    validate_every=3,
    validate_batches=1,
    checkpoint_every=3,
)
_DEMO_TRAIN = TrainConfig(
    steps=500,
    batch_size=8,
    crop=16_384,
    log_every=10,
    validate_every=100,
    validate_batches=4,
    checkpoint_every=100,
)

PRESETS: Mapping[str, Preset] = {
    "tiny": Preset(
        vqvae=VQVAEConfig(
            levels=2,
            downs_t=(2, 2),
            strides_t=(2, 2),
            l_bins=32,
            emb_width=16,
            width=8,
            depth=2,
            multipliers=(2, 1),
        ),
        vqvae_train=_TINY_TRAIN,
        prior=PriorConfig(
            n_ctx=256, l_bins=32, width=32, depth=3, blocks=16, emb_width=16, m_attn=0.5
        ),
        prior_train=_TINY_TRAIN,
        mask=MaskEstimatorConfig(n_fft=256, hop=64, hidden=16, layers=2, dropout=0.1),
        mask_optim=OptimConfig(),
        mask_train=_TINY_TRAIN,
        neural=NeuralLikelihoodConfig(
            hop=16,
            l_bins=32,
            emb_width=16,
            mels=8,
            n_fft=256,
            long_n_fft=512,
            frame_width=8,
            coarse_width=16,
            coarse_depth=2,
            width=16,
            depth=2,
            dilation_cycle=2,
        ),
        neural_train=_TINY_TRAIN,
        neural_optim=OptimConfig(muon=True),
        mask_network=MaskNetworkConfig(channels=4, depth=2),
        mask_network_train=replace(_TINY_TRAIN, batch_size=20),
        mask_network_optim=OptimConfig(),
        mask_network_items=16,
        window=256,
        candidates=4,
        activation_checkpointing=False,
    ),
    "demo": Preset(
        # Stride 4 three times: the same hop of 64 as stride 2 six times, for a third of the work.
        vqvae=VQVAEConfig(
            levels=1, downs_t=(3,), strides_t=(4,), l_bins=512, emb_width=32, multipliers=(1,)
        ),
        vqvae_train=_DEMO_TRAIN,
        vqvae_optim=OptimConfig(lr=2e-3, warmup_steps=50, decay_steps=250, ema_decay=0.99),
        prior=PriorConfig(
            n_ctx=1024,
            l_bins=512,
            width=128,
            depth=4,
            blocks=16,
            m_attn=0.5,
            m_mlp=2.0,
            emb_width=32,
        ),
        prior_train=replace(_DEMO_TRAIN, steps=360, batch_size=4, crop=65_536),
        prior_optim=OptimConfig(
            lr=4e-3, weight_decay=0.01, warmup_steps=30, decay_steps=240, ema_decay=0.98, muon=True
        ),
        mask=MaskEstimatorConfig(hidden=128, layers=1, dropout=0.0),
        mask_train=replace(_DEMO_TRAIN, steps=1200, batch_size=32, crop=32_768),
        mask_optim=OptimConfig(
            lr=4e-3, weight_decay=0.01, warmup_steps=30, decay_steps=700, ema_decay=0.98
        ),
        neural=NeuralLikelihoodConfig(
            hop=64,
            l_bins=512,
            emb_width=32,
            mels=64,
            long_n_fft=4096,
            frame_width=128,
            coarse_width=256,
            coarse_depth=0,
            width=160,
            depth=9,
            dilation_cycle=8,
        ),
        neural_train=replace(_DEMO_TRAIN, steps=500, batch_size=16, crop=32_768),
        neural_optim=OptimConfig(
            lr=4e-3,
            weight_decay=0.01,
            warmup_steps=30,
            decay_steps=380,
            ema_decay=0.98,
            muon=True,
        ),
        mask_network=MaskNetworkConfig(channels=16, depth=3),
        mask_network_train=replace(_DEMO_TRAIN, steps=300, batch_size=80, crop=32_768),
        mask_network_optim=OptimConfig(
            lr=2e-3, weight_decay=0.01, warmup_steps=20, decay_steps=200, ema_decay=0.98
        ),
        mask_network_items=480,
        candidates=32,
        activation_checkpointing=False,
    ),
    "small": Preset(
        vqvae=VQVAEConfig(
            levels=1, downs_t=(6,), strides_t=(2,), l_bins=1024, multipliers=(1,), width=64
        ),
        vqvae_train=TrainConfig(steps=10_000, batch_size=16, crop=32_768),
        prior=PriorConfig(
            n_ctx=4096, l_bins=1024, width=512, depth=12, heads=4, blocks=32, m_attn=0.5, m_mlp=2.0
        ),
        prior_train=TrainConfig(steps=10_000, batch_size=8, crop=262_144),
        mask=MaskEstimatorConfig(hidden=256, layers=2, dropout=0.2),
        mask_train=TrainConfig(steps=10_000, batch_size=32, crop=65_536),
        mask_optim=OptimConfig(lr=2e-3, weight_decay=0.01, decay_steps=5_000),
        neural=NeuralLikelihoodConfig(
            hop=64,
            l_bins=1024,
            mels=80,
            long_n_fft=4096,
            frame_width=192,
            coarse_width=512,
            coarse_depth=12,
            width=256,
            depth=6,
        ),
        neural_train=TrainConfig(steps=10_000, batch_size=32, crop=65_536),
        mask_network=MaskNetworkConfig(channels=24, depth=4),
        mask_network_train=TrainConfig(steps=10_000, batch_size=160, crop=65_536),
        mask_network_optim=OptimConfig(lr=1e-3, weight_decay=0.01, decay_steps=5_000),
        mask_network_items=8_000,
        neural_optim=OptimConfig(lr=3e-3, weight_decay=0.01, decay_steps=7_000, muon=True),
        activation_checkpointing=False,
    ),
    "t4": Preset(
        vqvae=VQVAEConfig(top_only=True),
        prior_train=TrainConfig(batch_size=2, crop=524_288),
    ),
    "paper": Preset(),
    "jukebox_5b": Preset(
        vqvae=VQVAEConfig(sample_rate=44_100, downs_t=(3, 2, 2)),
        mask=MaskEstimatorConfig(sample_rate=44_100, n_fft=4096, hop=1024),
        neural=NeuralLikelihoodConfig(
            sample_rate=44_100, n_fft=2048, long_n_fft=16_384, coarse_depth=18
        ),
        loss=LossConfig(commit=0.02),
        prior=PriorConfig(embedding="table"),
    ),
}
"""Named sizes: `tiny` (tests, seconds), `demo` (CPU, minutes), `small` (one modern GPU), `t4` (the
paper's size fitted to 16 GB), `paper`, `jukebox_5b` (OpenAI's codec, which LASS's weights use)."""
