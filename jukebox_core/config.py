"""Configuration as frozen dataclasses; `presets` has named sizes.

Field names follow upstream's hyper-parameters where they mean the same (Jukebox, arXiv 2005.00341;
LQ-VAE, arXiv 2110.05313; LASS, arXiv 2301.08562).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from jukebox_core.checks import plain, require, require_fields, require_types

T = TypeVar("T")

_WIDEST = 65_536  # channels: the size of the largest tensor of such layers still fits in int64
_MOST_BLOCKS = 4096
_LONGEST = 1 << 20  # samples of a hop, an STFT or a dilation


MOST_CODES = 2**21 - 1
"""Largest codebook: a triple of codes then fits into one 64-bit key (LASS's counts)."""


@dataclass(frozen=True)
class VQVAEConfig:
    """Architecture of the codec: independent VQ-VAEs, of which the last is the top level.

    Priors and separation use only the codes of the top level.
    """

    sample_rate: int = 22_050
    """Sample rate in Hz."""
    levels: int = 3
    """Number of levels."""
    downs_t: tuple[int, ...] = (2, 2, 2)
    """Strided convolutions that each level adds to those of the level below."""
    strides_t: tuple[int, ...] = (2, 2, 2)
    """Stride of these convolutions, per level."""
    l_bins: int = 2048
    """Codebook size."""
    emb_width: int = 64
    """Width of the codebook vectors."""
    l_mu: float = 0.99
    """Decay of the codebook's moving averages."""
    width: int = 32
    """Channels of the residual blocks, before `multipliers`."""
    depth: int = 4
    """Residual blocks per strided convolution, before `multipliers`."""
    m_conv: float = 1.0
    """Channels inside a residual block, relative to its width."""
    dilation_growth_rate: int = 3
    """Factor between the dilations of consecutive residual blocks."""
    dilation_cycle: int | None = None
    """Blocks after which the dilation starts again at 1; default: never."""
    reverse_decoder_dilation: bool = True
    """Decoder blocks go from the largest dilation to the smallest."""
    multipliers: tuple[int, ...] = (2, 1, 1)
    """Factors of `width` and `depth`, per level."""
    revival_threshold: float = 1.0
    """Replace a code whose average number of uses per batch falls below this value."""
    top_only: bool = False
    """Build and train only the top level: the same separation for a fraction of the cost."""

    def __post_init__(self) -> None:
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
        # Refuse products of fields that are too large, before anything is allocated.
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
    """Weights of the codec's loss (Jukebox: `lmix` plus spectral terms; LQ-VAE, eq. 7)."""

    commit: float = 1.0
    """Weight of the commitment loss."""
    spectral: float = 0.0
    """Weight of the single-scale spectral loss."""
    multispectral: float = 1.0
    """Weight of the multi-scale spectral loss."""
    linearisation: float = 1.0
    """Weight of the LQ-VAE's linearisation loss."""
    lmix_l1: float = 0.0
    """Weight of the L1 loss of the waveform."""
    lmix_l2: float = 1.0
    """Weight of the L2 loss of the waveform."""
    lmix_linf: float = 0.02
    """Weight of the mean of the `linf_k` largest squared errors of the waveform."""
    linf_k: int = 2048
    """Number of squared errors in the mean that `lmix_linf` weights."""
    spectral_stft: tuple[int, int, int] = (2048, 256, 1536)
    """n_fft, hop and window of the single-scale spectral loss and of its bandwidth."""
    relative_spectral: bool = False
    """Divide the single-scale spectral loss by the norm of the target's spectrogram, not by the
    bandwidth (upstream: `use_nonrelative_specloss: false`)."""
    multispectral_stfts: tuple[tuple[int, int, int], ...] = (
        (2048, 240, 1200),
        (1024, 120, 600),
        (512, 50, 240),
    )
    """n_fft, hop and window of every scale of the multi-scale spectral loss."""

    def __post_init__(self) -> None:
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
"""Attention kinds that the layers cycle through, by upstream's `attn_order`."""


@dataclass(frozen=True)
class PriorConfig:
    """Architecture of the autoregressive prior over the top level's codes."""

    n_ctx: int = 8192
    """Context length in codes."""
    l_bins: int = 2048
    """Codebook size of the codec."""
    width: int = 1024
    """Width of the transformer."""
    depth: int = 48
    """Number of layers."""
    heads: int = 1
    """Attention heads."""
    blocks: int = 64
    """Blocks that sparse attention cuts the context into."""
    attn_order: int = 2
    """Attention pattern: 0 dense; 1 block, column; 2 block, column, previous block;
    9 block, column, previous block, dense."""
    m_attn: float = 0.25
    """Width of queries, keys and values, relative to `width`."""
    m_mlp: float = 1.0
    """Hidden width of the MLPs, relative to `width`."""
    init_scale: float = 0.7
    """Factor of the standard deviation of the initial weights."""
    embedding: Literal["table", "codebook"] = "codebook"
    """table: embedding tied to the output layer (Jukebox, LASS); codebook: a linear map of the
    codec's codebook vectors, untied (LQ-VAE, hybrid)."""
    emb_width: int = 64
    """Width of the codebook vectors; only the codebook embedding uses it."""
    dropout: float = 0.0
    """Dropout of the embeddings and of the residual branches."""

    def __post_init__(self) -> None:
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
    """Architecture of the supervised baseline (Open-Unmix, Stöter et al. 2019, mono)."""

    sample_rate: int = 22_050
    """Sample rate in Hz."""
    n_fft: int = 2048
    """STFT size in samples."""
    hop: int = 512
    """STFT hop in samples."""
    hidden: int = 512
    """Width of the layers; each direction of the LSTM has half of it."""
    layers: int = 3
    """LSTM layers."""
    dropout: float = 0.4
    """Dropout between the LSTM layers."""

    def __post_init__(self) -> None:
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
class NeuralLikelihoodConfig:
    """Architecture of the neural likelihood: the sources' codes given the mixture's waveform."""

    sample_rate: int = 22_050
    """Sample rate of the codec, in Hz."""
    hop: int = 128
    """Samples per code of the codec."""
    l_bins: int = 2048
    """Codebook size of the codec."""
    emb_width: int = 64
    """Width of the codec's latents."""
    mels: int = 96
    """Mel bands of each of the two spectrograms."""
    n_fft: int = 1024
    """STFT size of the spectrogram with a frame per code, in samples."""
    long_n_fft: int = 8192
    """STFT size of the spectrogram with a frame per `coarse` codes, in samples."""
    long_hertz: float = 2000.0
    """Highest frequency of the long spectrogram, in Hz."""
    taps: int = 4
    """Length of the waveform frame around a code, in codes."""
    frame_width: int = 256
    """Features of the waveform frame."""
    coarse: int = 4
    """Codes per step of the coarse blocks."""
    coarse_width: int = 768
    """Width of the coarse blocks."""
    coarse_depth: int = 12
    """Number of coarse blocks."""
    width: int = 512
    """Width of the blocks with a step per code."""
    depth: int = 6
    """Number of blocks with a step per code."""
    dilation_cycle: int = 6
    """Blocks after which the dilations 1, 2, 4, ... start again at 1."""

    def __post_init__(self) -> None:
        require_types(self)
        require_fields(self, "sample_rate", whole=True, at_least=1, at_most=655_350)
        require_fields(self, "l_bins", whole=True, at_least=1, at_most=MOST_CODES)
        require_fields(self, "hop", whole=True, at_least=1, at_most=_LONGEST)
        require_fields(self, "n_fft", "long_n_fft", whole=True, at_least=2, at_most=_LONGEST)
        widths = ("emb_width", "mels", "frame_width", "coarse_width", "width")
        require_fields(self, *widths, whole=True, at_least=1, at_most=_WIDEST)
        require_fields(self, "long_hertz", above=0)
        require_fields(self, "taps", "coarse", whole=True, at_least=1, at_most=1024)
        require_fields(self, "coarse_depth", "depth", whole=True, at_least=0, at_most=1024)
        require_fields(self, "dilation_cycle", whole=True, at_least=1, at_most=16)

    @property
    def reach(self) -> int:
        """Codes to either side that the blocks see."""
        fine, coarse = (
            sum(2 ** (block % self.dilation_cycle) for block in range(depth))
            for depth in (self.depth, self.coarse_depth)
        )
        return fine + self.coarse * coarse


@dataclass(frozen=True)
class MaskNetworkConfig:
    """Architecture of the last stage, which makes masks; its STFT is the mask estimator's."""

    channels: int = 32
    """Channels of the convolutions."""
    depth: int = 5
    """Number of convolutions besides the last one; dilations in frequency are 1, 2, 4, ..."""
    complex: bool = True
    """Complex masks: real ones corrected by the candidates' spectra, phases included."""

    def __post_init__(self) -> None:
        require_types(self)
        require_fields(self, "channels", whole=True, at_least=1, at_most=_WIDEST)
        require_fields(self, "depth", whole=True, at_least=1, at_most=12)


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser (AdamW, or Muon and AdamW), schedule and weight averaging."""

    lr: float = 3e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's first and second moments."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay; vectors are not decayed."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    decay_steps: int = 0
    """Cosine decay to zero over the last `decay_steps` steps; 0: constant learning rate."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    ema_decay: float = 0.999
    """Decay of the weight average per step; 0: no averaging."""
    muon: bool = False
    """Update hidden matrices by Muon (Jordan et al. 2024), all other parameters by AdamW."""

    def __post_init__(self) -> None:
        require_types(self)
        require_fields(self, "lr", "weight_decay", "grad_clip", at_least=0)
        require_fields(self, "betas", at_least=0, below=1)
        # float32 may round a smaller value to zero; a zero gradient would be divided by zero.
        require_fields(self, "eps", at_least=1e-30)
        require_fields(self, "warmup_steps", "decay_steps", whole=True, at_least=0)
        require_fields(self, "ema_decay", at_least=0, at_most=1)


@dataclass(frozen=True)
class TrainConfig:
    """Length, batches and intervals of a training run."""

    steps: int = 19_160
    """Optimiser steps."""
    batch_size: int = 2
    """Waveforms per optimiser step, over all processes; an item of several, such as a crop with its
    candidates, counts as many."""
    crop: int = 131_072
    """Samples per crop."""
    log_every: int = 20
    """Steps between two logged training losses."""
    validate_every: int = 500
    """Steps between two validations."""
    validate_batches: int = 8
    """Batches per validation; 0: no validation."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    workers: int = 0
    """DataLoader processes; 0: load in the training process."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        require_types(self)
        require_fields(self, "steps", "crop", whole=True, at_least=1)
        require_fields(self, "batch_size", whole=True, at_least=1, at_most=1_000_000)
        require_fields(self, "log_every", "validate_every", whole=True, at_least=1)
        require_fields(self, "checkpoint_every", whole=True, at_least=1)
        require_fields(self, "validate_batches", "workers", whole=True, at_least=0)
        require_fields(self, "seed", whole=True, at_least=0, at_most=2**63 - 1)


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
        raise ValueError(f"{cls.__name__} has no field {plain(', '.join(unknown))}")
    missing = sorted(set(fields) - set(values))
    if missing:
        raise ValueError(f"{cls.__name__} misses the field {', '.join(missing)}")
    return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
