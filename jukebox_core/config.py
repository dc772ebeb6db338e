"""Configuration: frozen dataclasses and the named presets built from them.

Field names follow the hyper-parameters of the original systems where they describe the same thing
(Jukebox, arXiv 2005.00341; LQ-VAE, arXiv 2110.05313; LASS, arXiv 2301.08562).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from jukebox_core.checks import require, require_fields, require_types

T = TypeVar("T")

_WIDEST = 65_536  # channels: the size of the largest tensor of such layers still fits in int64
_MOST_BLOCKS = 4096
_LONGEST = 1 << 20  # samples of a hop, an STFT or a dilation


MOST_CODES = 2**21 - 1
"""Codes of a codec, so that a triple of them has one 64-bit key (LASS's counts)."""


@dataclass(frozen=True)
class VQVAEConfig:
    """Architecture of the codec. Levels are independent stacks; the last one is the top level."""

    sample_rate: int = 22_050
    levels: int = 3
    downs_t: tuple[int, ...] = (2, 2, 2)
    strides_t: tuple[int, ...] = (2, 2, 2)
    l_bins: int = 2048
    emb_width: int = 64
    l_mu: float = 0.99
    width: int = 32
    depth: int = 4
    m_conv: float = 1.0
    dilation_growth_rate: int = 3
    dilation_cycle: int | None = None
    reverse_decoder_dilation: bool = True
    multipliers: tuple[int, ...] = (2, 1, 1)
    revival_threshold: float = 1.0
    top_only: bool = False
    """Build and train the top level alone: the same separation for a third of the cost."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        require_types(self)
        # The largest rate of FLAC, in which data sets are stored.
        require_fields(self, "sample_rate", whole=True, at_least=1, at_most=655_350)
        require_fields(self, "levels", whole=True, at_least=1, at_most=32)
        for name in ("downs_t", "strides_t", "multipliers"):
            value = getattr(self, name)
            if len(value) != self.levels:
                raise ValueError(f"{name} has {len(value)} entries, levels is {self.levels}")
        require_fields(self, "l_bins", whole=True, at_least=1, at_most=MOST_CODES)
        require_fields(self, "emb_width", "width", whole=True, at_least=1, at_most=_WIDEST)
        require_fields(self, "depth", "downs_t", "multipliers", whole=True, at_least=1)
        require_fields(self, "dilation_cycle", optional=True, whole=True, at_least=1)
        require_fields(self, "dilation_growth_rate", "strides_t", whole=True, at_least=1)
        require_fields(self, "l_mu", at_least=0, at_most=1)
        require_fields(self, "revival_threshold", at_least=0)
        require_fields(self, "m_conv", above=0, at_most=_WIDEST)
        self._require_sizes()

    def _require_sizes(self) -> None:
        """Refuse products of fields that are too large, before anything is allocated."""
        octaves = zip(self.strides_t, self.downs_t, strict=True)
        if sum(down * math.log2(stride) for stride, down in octaves) > math.log2(_LONGEST):
            raise ValueError(
                f"strides_t {self.strides_t} and downs_t {self.downs_t} make a hop of more than "
                f"{_LONGEST:,} samples; expected a smaller one"
            )
        depths = [self.depth * multiplier for multiplier in self.multipliers]
        blocks = sum(2 * depths[n] * sum(self.downs_t[: n + 1]) for n in self.built_levels)
        if blocks > _MOST_BLOCKS:
            raise ValueError(
                f"depth {self.depth}, multipliers {self.multipliers} and downs_t {self.downs_t} "
                f"make {blocks:,} residual blocks, expected at most {_MOST_BLOCKS:,}"
            )
        exponent = min(max(depths), self.dilation_cycle or max(depths)) - 1
        if exponent * math.log2(self.dilation_growth_rate) > math.log2(_LONGEST):
            raise ValueError(
                f"dilation_growth_rate {self.dilation_growth_rate} makes a dilation of "
                f"{self.dilation_growth_rate}^{exponent} (depth {self.depth}, multipliers "
                f"{self.multipliers}, dilation_cycle {self.dilation_cycle}), expected at most "
                f"{_LONGEST:,}"
            )
        widths = [self.width * multiplier for multiplier in self.multipliers]
        require("width x multipliers", max(widths), whole=True, at_most=_WIDEST)
        narrowest = int(self.m_conv * min(widths))
        require("int(m_conv x width x multipliers)", narrowest, whole=True, at_least=1)
        require("m_conv x width x multipliers", self.m_conv * max(widths), at_most=_WIDEST)

    @property
    def hops(self) -> tuple[int, ...]:
        """Samples per code, of every level."""
        factors = [stride**down for stride, down in zip(self.strides_t, self.downs_t, strict=True)]
        return tuple(math.prod(factors[: level + 1]) for level in range(self.levels))

    @property
    def hop(self) -> int:
        """Samples per code of the top level."""
        return self.hops[-1]

    @property
    def built_levels(self) -> tuple[int, ...]:
        """Levels that exist in the model."""
        return (self.levels - 1,) if self.top_only else tuple(range(self.levels))


@dataclass(frozen=True)
class LossConfig:
    """Weights of the codec's loss (Jukebox: `lmix` plus multi-scale spectral terms)."""

    commit: float = 1.0
    spectral: float = 0.0
    multispectral: float = 1.0
    linearisation: float = 1.0
    lmix_l1: float = 0.0
    lmix_l2: float = 1.0
    lmix_linf: float = 0.02
    linf_k: int = 2048
    spectral_stft: tuple[int, int, int] = (2048, 256, 1536)
    """n_fft, hop, window of the single-scale spectral loss and of the spectral bandwidth."""
    relative_spectral: bool = False
    """Divide the single-scale spectral loss by the norm of the target's spectrogram instead of the
    bandwidth (the originals' `use_nonrelative_specloss: false`)."""
    multispectral_stfts: tuple[tuple[int, int, int], ...] = (
        (2048, 240, 1200),
        (1024, 120, 600),
        (512, 50, 240),
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_types(self)
        require_fields(self, "commit", "spectral", "multispectral", "linearisation", at_least=0)
        require_fields(self, "lmix_l1", "lmix_l2", "lmix_linf", at_least=0)
        require_fields(self, "linf_k", whole=True, at_least=1)
        if not self.multispectral_stfts:
            raise ValueError("multispectral_stfts is empty, expected at least one STFT")
        stfts = {
            f"multispectral_stfts[{n}]": stft for n, stft in enumerate(self.multispectral_stfts)
        }
        for name, (n_fft, hop, window) in {"spectral_stft": self.spectral_stft, **stfts}.items():
            if not 1 <= hop <= window <= n_fft <= _LONGEST:
                raise ValueError(
                    f"{name} is {(n_fft, hop, window)}, expected n_fft, hop, window with 1 <= hop "
                    f"<= window <= n_fft <= {_LONGEST:,}"
                )


@dataclass(frozen=True)
class Bandwidths:
    """Normalisers of the loss terms, measured on training audio."""

    l1: float = 1.0
    l2: float = 1.0
    spec: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a bandwidth that would turn the loss into inf or NaN."""
        for name, value in vars(self).items():
            # A float32 loss divided by a smaller bandwidth can become infinite.
            require(
                f"bandwidth {name}", value, at_least=1e-30, hint="is the training audio silent?"
            )


ATTENTION_PATTERNS: Mapping[int, tuple[str, ...]] = {
    0: ("dense",),
    1: ("block", "column"),
    2: ("block", "column", "previous_block"),
    9: ("block", "column", "previous_block", "dense"),
}
"""Attention kinds that the layers cycle through, by `attn_order` of the original systems."""


@dataclass(frozen=True)
class PriorConfig:
    """Architecture of the autoregressive prior over the top level's codes."""

    n_ctx: int = 8192
    l_bins: int = 2048
    width: int = 1024
    depth: int = 48
    heads: int = 1
    blocks: int = 64
    attn_order: int = 2
    m_attn: float = 0.25
    m_mlp: float = 1.0
    init_scale: float = 0.7
    embedding: Literal["table", "codebook"] = "codebook"
    """`table`: embedding tied to the output layer (Jukebox, LASS); `codebook`: a linear map of the
    codec's codebook vectors, untied (LQ-VAE, hybrid)."""
    emb_width: int = 64
    """Width of the codebook vectors; used by the `codebook` embedding only."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        require_types(self)
        if self.attn_order not in ATTENTION_PATTERNS:
            raise ValueError(
                f"attn_order is {self.attn_order}; implemented are "
                f"{', '.join(map(str, ATTENTION_PATTERNS))} (no lyrics, no encoder attention)"
            )
        require_fields(self, "n_ctx", whole=True, at_least=1, at_most=2**24)
        require_fields(self, "l_bins", whole=True, at_least=1, at_most=MOST_CODES)
        require_fields(self, "width", "emb_width", whole=True, at_least=1, at_most=_WIDEST)
        require_fields(self, "depth", whole=True, at_least=1, at_most=1024)
        require_fields(self, "heads", "blocks", whole=True, at_least=1)
        require_fields(self, "m_attn", "m_mlp", above=0, at_most=_WIDEST)
        require_fields(self, "init_scale", at_least=0, at_most=1000)
        require_fields(self, "dropout", at_least=0, below=1)
        for name in ("m_attn", "m_mlp"):
            product = int(getattr(self, name) * self.width)
            require(f"int({name} x width)", product, whole=True, at_least=1, at_most=_WIDEST)
        if self.n_ctx % self.blocks:
            raise ValueError(f"n_ctx {self.n_ctx} is not a multiple of blocks {self.blocks}")
        if self.attn_width % self.heads:
            raise ValueError(
                f"heads is {self.heads}, which does not divide the attention's width "
                f"{self.attn_width} (int(m_attn x width))"
            )

    @property
    def block_length(self) -> int:
        """Positions in a block of the sparse attention kinds."""
        return self.n_ctx // self.blocks

    @property
    def attn_width(self) -> int:
        """Width of queries, keys and values, all heads together."""
        return int(self.m_attn * self.width)

    @property
    def attention_kinds(self) -> tuple[str, ...]:
        """The attention kind of every layer."""
        pattern = ATTENTION_PATTERNS[self.attn_order]
        return tuple(pattern[layer % len(pattern)] for layer in range(self.depth))


@dataclass(frozen=True)
class MaskEstimatorConfig:
    """Architecture of the supervised baseline (Open-Unmix, Stoeter et al. 2019, of one channel)."""

    sample_rate: int = 22_050
    n_fft: int = 2048
    hop: int = 512
    hidden: int = 512
    """Width of the layers; either direction of the LSTM has half of it."""
    layers: int = 3
    """Of the LSTM."""
    dropout: float = 0.4
    """Between the LSTM's layers."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        require_types(self)
        require_fields(self, "sample_rate", whole=True, at_least=1, at_most=655_350)
        require_fields(self, "n_fft", "hop", whole=True, at_least=1, at_most=_LONGEST)
        require_fields(self, "hidden", whole=True, at_least=1, at_most=_WIDEST)
        require_fields(self, "layers", whole=True, at_least=1, at_most=1024)
        require_fields(self, "dropout", at_least=0, below=1)
        if self.n_fft % (2 * self.hop):
            raise ValueError(f"n_fft {self.n_fft} is not an even multiple of hop {self.hop}")
        if self.hidden % 2:
            raise ValueError(f"hidden is {self.hidden}; two directions need an even number")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and weight averaging."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 100
    decay_steps: int = 0
    """Cosine decay to zero over the last `decay_steps` steps; 0 keeps the rate constant."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    ema_decay: float = 0.999
    """Weight averaging per optimiser step; 0 switches it off."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_types(self)
        require_fields(self, "lr", "weight_decay", "grad_clip", at_least=0)
        require_fields(self, "betas", at_least=0, below=1)
        # float32 may round a smaller value to zero; a zero gradient would be divided by zero.
        require_fields(self, "eps", at_least=1e-30)
        require_fields(self, "warmup_steps", "decay_steps", whole=True, at_least=0)
        require_fields(self, "ema_decay", at_least=0, at_most=1)


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    steps: int = 19_160
    batch_size: int = 2
    """Crops per optimiser step, over all processes."""
    crop: int = 131_072
    """Samples per crop."""
    log_every: int = 20
    validate_every: int = 500
    validate_batches: int = 8
    """Batches of the validation set; 0 switches validation off."""
    checkpoint_every: int = 500
    workers: int = 0
    """Processes that load batches; 0 loads them in the training process."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_types(self)
        require_fields(self, "steps", "crop", whole=True, at_least=1)
        require_fields(self, "batch_size", whole=True, at_least=1, at_most=1_000_000)
        require_fields(self, "log_every", "validate_every", whole=True, at_least=1)
        require_fields(self, "checkpoint_every", whole=True, at_least=1)
        require_fields(self, "validate_batches", "workers", whole=True, at_least=0)
        require_fields(self, "seed", whole=True, at_least=0, at_most=2**63 - 1)


@dataclass(frozen=True)
class Preset:
    """Everything a size needs: architecture, losses, optimisation."""

    vqvae: VQVAEConfig
    vqvae_train: TrainConfig
    prior: PriorConfig
    prior_train: TrainConfig
    loss: LossConfig = field(default_factory=LossConfig)
    vqvae_optim: OptimConfig = field(default_factory=OptimConfig)
    prior_optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.01))
    mask: MaskEstimatorConfig = field(default_factory=MaskEstimatorConfig)
    mask_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=40_000, batch_size=32, crop=131_072)
    )
    mask_optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=1e-5, decay_steps=20_000)
    )
    window: int = 1024
    """Codes per separated window."""
    candidates: int = 64
    activation_checkpointing: bool = False
    """Train the prior with less memory in more time."""

    def __post_init__(self) -> None:
        """Refuse values of another type, and a window longer than the prior's context."""
        require_types(self)
        require_fields(self, "candidates", whole=True, at_least=1)
        most = self.prior.n_ctx
        require_fields(self, "window", whole=True, at_least=1, at_most=most, hint="prior.n_ctx")


def to_dict(config: Any) -> dict[str, Any]:
    """A JSON-ready dictionary of a configuration."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """The configuration `cls` from a (JSON) dictionary, strict about names.

    Raises:
        ValueError: a field is unknown or missing (the message names it), or `values` is not a
            dictionary.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} is {values!r}, expected a dictionary of its fields")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}")
    missing = sorted(set(fields) - set(values))
    if missing:
        raise ValueError(f"{cls.__name__} misses the field {', '.join(missing)}")
    return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


_PAPER = Preset(
    vqvae=VQVAEConfig(),
    vqvae_train=TrainConfig(),
    prior=PriorConfig(),
    prior_train=TrainConfig(batch_size=8, crop=524_288),
    activation_checkpointing=True,
)

_DEMO = Preset(
    # Stride 4 three times: the same hop of 64 as stride 2 six times, for a third of the work.
    vqvae=VQVAEConfig(
        levels=1, downs_t=(3,), strides_t=(4,), l_bins=512, emb_width=32, multipliers=(1,)
    ),
    vqvae_train=TrainConfig(
        steps=500,
        batch_size=8,
        crop=16_384,
        log_every=10,
        validate_every=100,
        validate_batches=4,
        checkpoint_every=100,
    ),
    vqvae_optim=OptimConfig(lr=2e-3, warmup_steps=50, decay_steps=250, ema_decay=0.99),
    prior=PriorConfig(
        n_ctx=1024, l_bins=512, width=128, depth=4, blocks=16, m_attn=0.5, m_mlp=2.0, emb_width=32
    ),
    prior_train=TrainConfig(
        steps=900,
        batch_size=4,
        crop=65_536,
        log_every=10,
        validate_every=100,
        validate_batches=4,
        checkpoint_every=100,
    ),
    prior_optim=OptimConfig(
        lr=2e-3, weight_decay=0.01, warmup_steps=30, decay_steps=500, ema_decay=0.98
    ),
    mask=MaskEstimatorConfig(hidden=128, layers=1, dropout=0.0),
    mask_train=TrainConfig(
        steps=1200,
        batch_size=32,
        crop=32_768,
        log_every=10,
        validate_every=100,
        validate_batches=4,
        checkpoint_every=100,
    ),
    mask_optim=OptimConfig(
        lr=4e-3, weight_decay=0.01, warmup_steps=30, decay_steps=700, ema_decay=0.98
    ),
    candidates=32,
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
        vqvae_train=TrainConfig(
            steps=6,
            batch_size=4,
            crop=4096,
            log_every=1,
            validate_every=3,
            validate_batches=1,
            checkpoint_every=3,
        ),
        prior=PriorConfig(
            n_ctx=256, l_bins=32, width=32, depth=3, blocks=16, emb_width=16, m_attn=0.5
        ),
        prior_train=TrainConfig(
            steps=6,
            batch_size=4,
            crop=4096,
            log_every=1,
            validate_every=3,
            validate_batches=1,
            checkpoint_every=3,
        ),
        mask=MaskEstimatorConfig(n_fft=256, hop=64, hidden=16, layers=2, dropout=0.1),
        mask_optim=OptimConfig(),
        mask_train=TrainConfig(
            steps=6,
            batch_size=4,
            crop=4096,
            log_every=1,
            validate_every=3,
            validate_batches=1,
            checkpoint_every=3,
        ),
        window=256,
        candidates=4,
    ),
    "demo": _DEMO,
    "small": dataclasses.replace(
        _PAPER,
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
        activation_checkpointing=False,
    ),
    "t4": dataclasses.replace(
        _PAPER,
        vqvae=VQVAEConfig(top_only=True),
        prior_train=TrainConfig(batch_size=2, crop=524_288),
    ),
    "paper": _PAPER,
    "jukebox_5b": dataclasses.replace(
        _PAPER,
        vqvae=VQVAEConfig(sample_rate=44_100, downs_t=(3, 2, 2), strides_t=(2, 2, 2)),
        mask=MaskEstimatorConfig(sample_rate=44_100, n_fft=4096, hop=1024),
        loss=LossConfig(commit=0.02),
        prior=PriorConfig(embedding="table"),
    ),
}
"""Named sizes: `tiny` (tests, seconds), `demo` (CPU, minutes), `small` (one modern GPU), `t4` (the
paper's size fitted to 16 GB), `paper`, `jukebox_5b` (OpenAI's codec, which LASS's weights use)."""
