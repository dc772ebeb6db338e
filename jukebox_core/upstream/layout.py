"""Names and shapes of upstream's weights, and the architecture in their `hps`.

The architecture comes from `hps`, a checkpoint's hyper-parameters; every tensor's name and shape
must agree with it. A missing, unknown or differently shaped tensor is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from jukebox_core.config import ATTENTION_PATTERNS, PriorConfig, VQVAEConfig
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.vqvae.model import VQVAE

M = TypeVar("M", VQVAE, AutoregressivePrior)

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
# {field of the configuration: upstream's name} of the hyper-parameters that differ.
_CODEC_HPS = {
    "sample_rate": "sr",
    "reverse_decoder_dilation": "vqvae_reverse_decoder_dilation",
    "multipliers": "hvqvae_multipliers",
}
_PRIOR_HPS = {"width": "prior_width", "depth": "prior_depth"}
_CODEBOOK = "bottleneck.level_blocks.{}.k"  # of a level


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
    defaults = {
        "l_mu": 0.99,
        "dilation_cycle": None,
        "reverse_decoder_dilation": True,
        "multipliers": None,
        "revival_threshold": 1.0,
    }
    get = _Reader(hps, _CODEC_HPS | {"l_mu": "mu"}, defaults)
    names = [field.name for field in fields(VQVAEConfig) if field.name != "top_only"]
    values = {name: get(name) for name in names}
    values["multipliers"] = values["multipliers"] or (1,) * values["levels"]
    config = VQVAEConfig(**values)
    state = _skeleton(VQVAE, config).state_dict()
    _confirm(tensors, upstream_tensors(state, codec_names(config), turn=False))
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
    books = codebooks(tensors)
    top, table = max(books, default=0), "x_emb.weight" in tensors
    defaults = {"blocks": None, "init_scale": 1.0, "level": top}
    get = _Reader(hps, _PRIOR_HPS | {"l_bins": "bins"}, defaults)
    order = get("attn_order")
    if order not in ATTENTION_PATTERNS:
        raise ValueError(
            f"attn_order {order} is not implemented (no lyrics, no encoder attention); expected "
            f"one of {', '.join(map(str, ATTENTION_PATTERNS))}"
        )
    if not table and not books:
        raise ValueError("the tensor bottleneck.level_blocks.2.k (the top codebook) is missing")
    if not table and get("level") != top:
        raise ValueError(
            f"a prior of level {get('level')} is not implemented, only of the top level, {top}"
        )
    derived: dict[str, Any] = {
        "blocks": get("blocks") or 1,
        "embedding": "table" if table else "codebook",
        "emb_width": 64 if table else books[top].shape[-1],
        "dropout": 0.0,
    }
    names = [field.name for field in fields(PriorConfig) if field.name not in derived]
    config = PriorConfig(**{name: get(name) for name in names}, **derived)
    state = _skeleton(AutoregressivePrior, config).state_dict()
    expected = upstream_tensors(state, prior_names(config, top), turn=True)
    _confirm(tensors, {**expected, **{_CODEBOOK.format(level): None for level in books}})
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
    native = {name: tensors[upstream].float() for name, upstream in codec_names(config).items()}
    for level in config.built_levels:
        codebook = native[f"bottlenecks.{level}.codebook"]
        native[f"bottlenecks.{level}.ema_sum"] = codebook * usage
        native[f"bottlenecks.{level}.ema_count"] = torch.full((config.l_bins,), float(usage))
        native[f"bottlenecks.{level}.initialised"] = torch.tensor(True)
    return native


def prior_tensors(tensors: Mapping[str, Tensor], config: PriorConfig) -> dict[str, Tensor]:
    """Tensors of an upstream prior under their native names, linear weights as [out, in]."""
    names = prior_names(config, max(codebooks(tensors), default=0))
    return {name: _transposed(name, tensors[own].float()) for name, own in names.items()}


def build_codec(native: Mapping[str, Tensor], config: VQVAEConfig) -> VQVAE:
    """Build a codec on these tensors, without copies, in eval mode."""
    codec = _skeleton(VQVAE, config)
    codec.load_state_dict(dict(native), strict=True, assign=True)
    return codec.eval().requires_grad_(False)


def build_prior(native: Mapping[str, Tensor], config: PriorConfig) -> AutoregressivePrior:
    """Build a prior on these tensors, without copies, in eval mode."""
    prior = _skeleton(AutoregressivePrior, config)
    prior.load_state_dict(dict(native), strict=True, assign=True)
    if config.embedding == "table":
        assert isinstance(prior.embed, torch.nn.Embedding)
        prior.head.weight = prior.embed.weight
    return prior.eval().requires_grad_(False)


def codec_names(config: VQVAEConfig) -> dict[str, str]:
    """{native name: upstream name} of the tensors that both formats hold."""
    own = (".ema_sum", ".ema_count", ".initialised")
    names = [name for name in _skeleton(VQVAE, config).state_dict() if not name.endswith(own)]
    return {name: _renamed(name, _CODEC_RULES) for name in names}


def prior_names(config: PriorConfig, top: int = 2) -> dict[str, str]:
    """{native name: upstream name, without `prior.`}; `top` is the number of the top level."""
    rules = [*_PRIOR_RULES, (r"^embed\.codebook$", _CODEBOOK.format(top))]
    names = _skeleton(AutoregressivePrior, config).state_dict()
    return {name: _renamed(name, rules) for name in names}


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
    hps = {_CODEC_HPS.get(name, name): value for name, value in asdict(config).items()}
    del hps["top_only"]
    return hps | {"use_bottleneck": True}


def prior_hps(config: PriorConfig) -> dict[str, Any]:
    """Hyper-parameters under upstream's names."""
    hps = {_PRIOR_HPS.get(name, name): value for name, value in asdict(config).items()}
    del hps["embedding"], hps["dropout"]
    return hps | {"labels": False}


class _Reader:
    """Look up hyper-parameters by their upstream or native names."""

    def __init__(
        self, hps: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, Any]
    ):
        self._hps, self._names, self._defaults = hps, names, defaults

    def __call__(self, name: str) -> Any:
        aliases = dict.fromkeys((self._names.get(name, name), name))
        for alias in aliases:
            if alias in self._hps and (self._hps[alias] is not None or name in self._defaults):
                return python_value(self._hps[alias])
        if name in self._defaults:
            return self._defaults[name]
        names = " or ".join(aliases)
        raise ValueError(f"its hps lack {names}; supply it as a further hyper-parameter")


def _skeleton(cls: Callable[[Any], M], config: VQVAEConfig | PriorConfig) -> M:
    """A model without memory for its tensors."""
    with torch.device("meta"):
        return cls(config)


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _transposed(name: str, tensor: Tensor) -> Tensor:
    """Convert between the layouts: upstream's linear weights are [in, out], its start is [1, W]."""
    if name == "start":
        return tensor.reshape(1, -1) if tensor.ndim == 1 else tensor.reshape(-1)
    return tensor.T if re.search(r"\.(qkv|out|up|down)\.weight$", name) else tensor


def codebooks(tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """{level: codebook} among a prior's upstream tensors, finest first."""
    pattern = re.compile(re.escape(_CODEBOOK).replace(r"\{\}", r"(\d+)"))
    books = {int(m[1]): t for name, t in tensors.items() if (m := pattern.fullmatch(name))}
    return dict(sorted(books.items()))


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


def _confirm(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor | None]) -> None:
    """Raise ValueError unless names and shapes are the expected ones (None fits any shape)."""
    for what, names in (
        ("is missing", set(expected) - set(tensors)),
        ("is unknown", set(tensors) - set(expected)),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(f"the tensor {min(names)}{more} {what}: its hps do not describe it")
    for name, model in expected.items():
        stored = tuple(tensors[name].shape)
        if model is not None and stored != model.shape:
            raise ValueError(
                f"the tensor {name} is {stored}, expected {tuple(model.shape)} by its hps"
            )
        if not tensors[name].is_floating_point():
            raise ValueError(f"the tensor {name} is {tensors[name].dtype}, expected floating point")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"the tensor {name} holds NaN or infinite values")
