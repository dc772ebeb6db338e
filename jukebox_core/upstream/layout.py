"""Names and shapes of upstream's weights, and the architecture in their `hps`.

The architecture comes from `hps`, a checkpoint's hyper-parameters; every tensor's name and shape
must agree with it. A missing, unknown or differently shaped tensor is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jukebox_core.config import ATTENTION_PATTERNS, PriorConfig, VQVAEConfig
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.vqvae.model import VQVAE

__all__ = [
    "build_codec",
    "build_prior",
    "codec_config",
    "codec_hps",
    "codec_names",
    "codec_tensors",
    "kind_of",
    "prior_config",
    "prior_hps",
    "prior_names",
    "prior_tensors",
    "python_value",
    "upstream_tensors",
    "without_prefixes",
]

_CODEC_RULES = [
    (r"^((?:en|de)coders\.\d+)\.stages\.(\d+)\.", r"\1.level_blocks.\2.model."),
    (r"\.(\d+)\.dilated\.", r".model.\1.model.1."),
    (r"\.(\d+)\.pointwise\.", r".model.\1.model.3."),
    (r"^bottlenecks\.(\d+)\.codebook$", r"bottleneck.level_blocks.\1.k"),
]
_PRIOR_RULES = [
    (r"^start$", "start_token"),
    (r"^positions$", "pos_emb.pos_emb"),
    (r"^embed\.weight$", "x_emb.weight"),
    (r"^embed\.linear\.weight$", "x_embs.weight"),
    (r"^head\.weight$", "x_out.weight"),
    (r"^blocks\.(\d+)\.", r"transformer._attn_mods.\1."),
    (r"\.ln_attn\.", ".ln_0."),
    (r"\.ln_mlp\.", ".ln_1."),
    (r"\.attn\.qkv\.(.)\w+$", r".attn.c_attn.\1"),
    (r"\.attn\.out\.(.)\w+$", r".attn.c_proj.\1"),
    (r"\.mlp\.up\.(.)\w+$", r".mlp.c_fc.\1"),
    (r"\.mlp\.down\.(.)\w+$", r".mlp.c_proj.\1"),
]
_NOT_IMPLEMENTED = {
    r"\.c_enc_kv\.": "attention to an encoder (lyrics)",
    r"^prime_|^prime\.": "lyrics (a primed encoder)",
    r"^y_emb\.": "label conditioning",
    r"^(x_cond|conditioner_blocks)\b": "conditioning on another level's codes",
}
_CODEC_ALIASES = {
    "sample_rate": ("sr",),
    "l_mu": ("mu",),
    "multipliers": ("hvqvae_multipliers",),
    "reverse_decoder_dilation": ("vqvae_reverse_decoder_dilation",),
}
_PRIOR_ALIASES = {
    "width": ("prior_width",),
    "depth": ("prior_depth",),
    "l_bins": ("bins",),
}
_CODEBOOK = re.compile(r"^bottleneck\.level_blocks\.(\d+)\.k$")


def python_value(value: Any) -> Any:
    """Convert a hyper-parameter from NumPy and PyTorch types to Python; sequences become tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(python_value, value)) if isinstance(value, list | tuple) else value


def without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without `module.` (data-parallel training) and `prior.` before every name."""
    for prefix in ("module.", "prior."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    return dict(tensors)


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """`vqvae`, `prior` or `unknown`, by the names of tensors without prefixes."""
    if any(name.startswith("encoders.") for name in tensors):
        return "vqvae"
    names = ("x_emb.weight", "x_embs.weight", "pos_emb.pos_emb")
    return "prior" if any(name in tensors for name in names) else "unknown"


def codec_config(hps: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> VQVAEConfig:
    """The codec's architecture, from `hps`, confirmed by the tensors' names and shapes.

    Raises:
        ValueError: hps lack a value or contradict the tensors.
    """
    get = _Reader(hps, _CODEC_ALIASES)
    multipliers = get("multipliers", None)
    levels = get("levels")
    config = VQVAEConfig(
        sample_rate=get("sample_rate"),
        levels=levels,
        downs_t=tuple(get("downs_t")),
        strides_t=tuple(get("strides_t")),
        l_bins=get("l_bins"),
        emb_width=get("emb_width"),
        l_mu=get("l_mu", 0.99),
        width=get("width"),
        depth=get("depth"),
        m_conv=get("m_conv"),
        dilation_growth_rate=get("dilation_growth_rate"),
        dilation_cycle=get("dilation_cycle", None),
        reverse_decoder_dilation=get("reverse_decoder_dilation", True),
        multipliers=tuple(multipliers) if multipliers else (1,) * levels,
        revival_threshold=get("revival_threshold", 1.0),
    )
    _confirm(tensors, {upstream: shape for _, upstream, shape in _codec_layout(config)})
    return config


def prior_config(hps: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PriorConfig:
    """The prior's architecture, from `hps`, confirmed by the tensors' names and shapes.

    The names tell the format: `x_emb` is an embedding table, `x_embs` a linear map of codebook
    vectors.

    Raises:
        ValueError: hps lack a value or contradict the tensors, or the prior needs lyrics, labels or
            another level, which are not implemented.
    """
    _refuse_conditioning(tensors)
    get = _Reader(hps, _PRIOR_ALIASES)
    order = get("attn_order")
    if order not in ATTENTION_PATTERNS:
        raise ValueError(
            f"attn_order {order} is not implemented (no lyrics, no encoder attention); expected "
            f"one of {', '.join(map(str, ATTENTION_PATTERNS))}"
        )
    table = "x_emb.weight" in tensors
    codebooks = _codebook_levels(tensors)
    if not table and not codebooks:
        raise ValueError("the tensor bottleneck.level_blocks.2.k (the top codebook) is missing")
    if not table and get("level", max(codebooks)) != max(codebooks):
        raise ValueError(
            f"a prior of level {get('level')} is not implemented, only of the top level, "
            f"{max(codebooks)}"
        )
    emb_width = 64 if table else tensors[_codebook_name(max(codebooks))].shape[-1]
    config = PriorConfig(
        n_ctx=get("n_ctx"),
        l_bins=get("l_bins"),
        width=get("width"),
        depth=get("depth"),
        heads=get("heads"),
        blocks=get("blocks", None) or 1,
        attn_order=order,
        m_attn=get("m_attn"),
        m_mlp=get("m_mlp"),
        init_scale=get("init_scale", 1.0),
        embedding="table" if table else "codebook",
        emb_width=emb_width,
    )
    expected = {
        upstream: shape for _, upstream, shape in _prior_layout(config, max(codebooks, default=0))
    }
    _confirm(tensors, expected | {_codebook_name(level): None for level in codebooks})
    if table and not torch.equal(tensors["x_emb.weight"], tensors["x_out.weight"]):
        raise ValueError(
            "x_out.weight differs from x_emb.weight: a merged decoder with an output layer of its "
            "own is not implemented"
        )
    return config


def codec_tensors(
    tensors: Mapping[str, Tensor], config: VQVAEConfig, usage: float
) -> dict[str, Tensor]:
    """Tensors of an upstream codec under their native names.

    The files lack the codebooks' averages, which start as if every code had been used `usage`
    times.
    """
    native = {name: tensors[upstream].float() for name, upstream, _ in _codec_layout(config)}
    for level in config.built_levels:
        codebook = native[f"bottlenecks.{level}.codebook"]
        native[f"bottlenecks.{level}.ema_sum"] = codebook * usage
        native[f"bottlenecks.{level}.ema_count"] = torch.full((config.l_bins,), float(usage))
        native[f"bottlenecks.{level}.initialised"] = torch.tensor(True)
    return native


def prior_tensors(tensors: Mapping[str, Tensor], config: PriorConfig) -> dict[str, Tensor]:
    """Tensors of an upstream prior under their native names, linear weights as [out, in]."""
    top = max(_codebook_levels(tensors), default=0)
    return {
        name: _transposed(name, tensors[upstream].float())
        for name, upstream, _ in _prior_layout(config, top)
    }


def build_codec(native: Mapping[str, Tensor], config: VQVAEConfig) -> VQVAE:
    """Build a codec on these tensors, without copies, in eval mode."""
    with torch.device("meta"):
        codec = VQVAE(config)
    codec.load_state_dict(dict(native), strict=True, assign=True)
    return codec.eval().requires_grad_(False)


def build_prior(native: Mapping[str, Tensor], config: PriorConfig) -> AutoregressivePrior:
    """Build a prior on these tensors, without copies, in eval mode."""
    with torch.device("meta"):
        prior = AutoregressivePrior(config)
    prior.load_state_dict(dict(native), strict=True, assign=True)
    if config.embedding == "table":
        assert isinstance(prior.embed, torch.nn.Embedding)
        prior.head.weight = prior.embed.weight
    return prior.eval().requires_grad_(False)


def codec_names(config: VQVAEConfig) -> dict[str, str]:
    """{native name: upstream name} of the tensors that both formats hold."""
    return {name: upstream for name, upstream, _ in _codec_layout(config)}


def prior_names(config: PriorConfig, top: int = 2) -> dict[str, str]:
    """{native name: upstream name, without `prior.`}; `top` is the number of the top level."""
    return {name: upstream for name, upstream, _ in _prior_layout(config, top)}


def upstream_tensors(
    native: Mapping[str, Tensor], names: Mapping[str, str], *, turn: bool
) -> dict[str, Tensor]:
    """Native tensors under their upstream names; `turn` transposes linear weights (priors).

    They share the memory of `native`: a transposed weight is a view, which files can store.
    """
    return {
        upstream: _transposed(name, native[name]) if turn else native[name]
        for name, upstream in names.items()
    }


def codec_hps(config: VQVAEConfig) -> dict[str, Any]:
    """Hyper-parameters under upstream's names."""
    return {
        "sr": config.sample_rate,
        "levels": config.levels,
        "downs_t": config.downs_t,
        "strides_t": config.strides_t,
        "l_bins": config.l_bins,
        "emb_width": config.emb_width,
        "l_mu": config.l_mu,
        "width": config.width,
        "depth": config.depth,
        "m_conv": config.m_conv,
        "dilation_growth_rate": config.dilation_growth_rate,
        "dilation_cycle": config.dilation_cycle,
        "vqvae_reverse_decoder_dilation": config.reverse_decoder_dilation,
        "hvqvae_multipliers": config.multipliers,
        "revival_threshold": config.revival_threshold,
        "use_bottleneck": True,
    }


def prior_hps(config: PriorConfig) -> dict[str, Any]:
    """Hyper-parameters under upstream's names."""
    return {
        "n_ctx": config.n_ctx,
        "l_bins": config.l_bins,
        "prior_width": config.width,
        "prior_depth": config.depth,
        "heads": config.heads,
        "blocks": config.blocks,
        "attn_order": config.attn_order,
        "m_attn": config.m_attn,
        "m_mlp": config.m_mlp,
        "init_scale": config.init_scale,
        "emb_width": config.emb_width,
        "labels": False,
    }


class _Reader:
    """Look up hyper-parameters by their native or upstream names."""

    def __init__(self, hps: Mapping[str, Any], aliases: Mapping[str, Sequence[str]]):
        self._hps = hps
        self._aliases = aliases

    def __call__(self, name: str, *default: Any) -> Any:
        for alias in (*self._aliases.get(name, ()), name):
            if alias in self._hps and (self._hps[alias] is not None or default):
                return python_value(self._hps[alias])
        if default:
            return default[0]
        names = " or ".join((*self._aliases.get(name, ()), name))
        raise ValueError(f"its hps lack {names}; supply it as a further hyper-parameter")


def _codec_layout(config: VQVAEConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    """(native name, upstream name, upstream shape) of every tensor."""
    with torch.device("meta"):
        native = VQVAE(config).state_dict()
    return [
        (name, _renamed(name, _CODEC_RULES), tuple(tensor.shape))
        for name, tensor in native.items()
        if not name.endswith((".ema_sum", ".ema_count", ".initialised"))
    ]


def _prior_layout(config: PriorConfig, top: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """(native name, upstream name, upstream shape) of every tensor."""
    with torch.device("meta"):
        native = AutoregressivePrior(config).state_dict()
    rules = [*_PRIOR_RULES, (r"^embed\.codebook$", _codebook_name(top))]
    return [
        (name, _renamed(name, rules), tuple(_transposed(name, tensor).shape))
        for name, tensor in native.items()
    ]


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _transposed(name: str, tensor: Tensor) -> Tensor:
    """Convert between the layouts: upstream's linear weights are [in, out], its start is [1, W]."""
    if name == "start":
        return tensor.reshape(1, -1) if tensor.ndim == 1 else tensor.reshape(-1)
    return tensor.T if re.search(r"\.(qkv|out|up|down)\.weight$", name) else tensor


def _codebook_name(level: int) -> str:
    return f"bottleneck.level_blocks.{level}.k"


def _codebook_levels(tensors: Mapping[str, Tensor]) -> list[int]:
    """Levels whose codebooks are among a prior's tensors."""
    return sorted(int(match[1]) for match in map(_CODEBOOK.match, tensors) if match)


def _refuse_conditioning(tensors: Mapping[str, Tensor]) -> None:
    for pattern, what in _NOT_IMPLEMENTED.items():
        for name in tensors:
            if re.search(pattern, name):
                raise ValueError(f"{what} is not implemented (tensor {name})")
    if "start_token" not in tensors and kind_of(tensors) == "prior":
        raise ValueError(
            "label conditioning (y_cond) is not implemented: it takes the place of the missing "
            "tensor start_token"
        )


def _confirm(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...] | None]) -> None:
    """Raise ValueError unless the tensors are the expected ones (a shape None fits any)."""
    for what, names in (
        ("is missing", set(expected) - set(tensors)),
        ("is unknown", set(tensors) - set(expected)),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(f"the tensor {min(names)}{more} {what}: its hps do not describe it")
    for name, shape in expected.items():
        stored = tuple(tensors[name].shape)
        if shape is not None and stored != shape:
            raise ValueError(f"the tensor {name} is {stored}, expected {shape} by its hps")
        if not tensors[name].is_floating_point():
            raise ValueError(f"the tensor {name} is {tensors[name].dtype}, expected floating point")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"the tensor {name} holds NaN or infinite values")
