"""Parity checks of the prior: teacher forcing, single steps, both formats, attention kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jukebox_core.config import ATTENTION_PATTERNS
from jukebox_core.presets import PRESETS
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.upstream.layout import (
    build_prior,
    codec_names,
    prior_config,
    prior_names,
    prior_tensors,
    without_prefixes,
)
from jukebox_core.vqvae.model import VQVAE
from scripts.check_parity.fixtures import FORWARD, GRADIENT, Fixture, Report, check, sub_config

SMALL_PRIOR_ORDER = 2  # default of side-cars without one: both upstream systems use it


def prior_from(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> AutoregressivePrior:
    """A trainable prior of upstream tensors; `config` may lack the attention order."""
    own = without_prefixes(tensors)
    built = prior_config({"attn_order": SMALL_PRIOR_ORDER, **config}, own)
    return build_prior(prior_tensors(own, built), built).requires_grad_(True)


def native_parameters(prior: AutoregressivePrior, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{upstream name without prefix: native name} of the tensors of a fixture."""
    own = without_prefixes(tensors)
    levels = sum(name.startswith("bottleneck.level_blocks.") for name in own)
    native = prior_names(prior.config, top=max(levels - 1, 0))
    return {upstream: name for name, upstream in native.items()}


@torch.no_grad()
def stepwise(prior: AutoregressivePrior, codes: Tensor) -> Tensor:
    """Logits [B, T, K] through the cache, one position at a time."""
    cache = prior.new_cache(*codes.shape)
    last = [None, *codes.T[:-1]]
    return torch.stack([prior.step(code, cache) for code in last], dim=1)


@check("(lqvae_)?prior_forward")
def prior_forward(fixture: Fixture, report: Report) -> None:
    """Logits, loss and gradients of one prior."""
    tensors = fixture.under("sd/")
    prior = prior_from(tensors, sub_config(fixture.info))
    codes = fixture.tensor("in/z")
    _compare(report, "AutoregressivePrior", prior, codes, fixture, "out/logits_teacher_forced")
    recorded = fixture.tensor("out/logits_stepwise")
    report.close("AutoregressivePrior.step", stepwise(prior, codes), recorded)
    bits = prior.bits_per_code(codes)
    loss = fixture.tensor("out/loss_bits_per_token")
    report.close("AutoregressivePrior.bits_per_code", bits, loss)
    bits.backward()
    native = native_parameters(prior, tensors)
    parameters = dict(prior.named_parameters())
    listed = [name.removeprefix("prior.") for name in fixture.info["param_names_for_grad_norms"]]
    norms = fixture.tensor("out/grad_norms").tolist()
    for name, expected in zip(listed, norms, strict=True):
        gradient = parameters[_tied(native[name], parameters)].grad
        got = -1.0 if gradient is None else gradient.norm()
        report.close("AutoregressivePrior gradient norms", got, expected, GRADIENT)
    for name, expected_gradient in fixture.under("out/grad/").items():
        gradient = parameters[_tied(native[name.removeprefix("prior.")], parameters)].grad
        assert gradient is not None
        if name.endswith(".w"):
            gradient = gradient.T
        expected_gradient = expected_gradient.reshape(gradient.shape)
        report.close("AutoregressivePrior gradients", gradient, expected_gradient, GRADIENT)


@check("prior_orders")
def prior_orders(fixture: Fixture, report: Report) -> None:
    """Attention kinds 0 to 3; variants with lyrics, labels or an encoder must be refused."""
    for variant, info in fixture.info["variants"].items():
        tensors = fixture.under(f"{variant}/sd/")
        config = sub_config(fixture.info) | info
        needs = [k for k in ("encoder_dims", "prime_len", "x_cond", "y_cond") if info.get(k)]
        needs += ["merged_decoder"] if info.get("merged_decoder") else []
        if needs or info["attn_order"] not in ATTENTION_PATTERNS:
            _refused(report, variant, tensors, config, needs)
            continue
        prior = prior_from(tensors, config)
        codes = fixture.tensor(f"{variant}/in/z")
        name = f"AutoregressivePrior ({variant})"
        _compare(report, name, prior, codes, fixture, f"{variant}/out/logits")
        recorded = fixture.tensor(f"{variant}/out/logits")
        report.close(f"{name} step", stepwise(prior, codes), recorded)
        bits = prior.bits_per_code(codes)
        report.close(f"{name} bits", bits, fixture.tensor(f"{variant}/out/loss"))


def _refused(
    report: Report,
    variant: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    needs: list[str],
) -> None:
    """List a variant that is not implemented; loading its weights must be refused as such."""
    what = f"attn_order {config['attn_order']}" + (f", {', '.join(needs)}" if needs else "")
    try:
        prior_from(tensors, config)
    except ValueError as error:
        if "not implemented" in str(error):
            report.listed(variant, f"{what}: no system here uses it, loading is refused")
            return
        report.fail(variant, f"{what} is refused with an unclear message: {error}")
        return
    report.fail(variant, f"{what} is not implemented, yet its weights were accepted")


@check("param_listing_.+")
def param_listing(fixture: Fixture, report: Report) -> None:
    """Names, shapes and numbers of parameters of the full-size presets."""
    counts = {
        "vqvae": fixture.info.get("n_params_vqvae"),
        "prior": fixture.info.get("n_params_prior"),
    }
    for title, listed in fixture.info.items():
        kind = "vqvae" if title.startswith("vqvae") else "prior"
        if not title.startswith(("vqvae", "small_prior")):
            continue
        table = "prior.x_emb.weight" in listed
        preset = PRESETS["jukebox_5b" if table else "paper"]
        downs = re.search(r"downs ([\d,]+)", title)
        codec = PRESETS["paper"].vqvae
        if downs is not None:
            codec = replace(codec, downs_t=tuple(map(int, downs[1].split(","))))
        with torch.device("meta"):
            if kind == "vqvae":
                model: torch.nn.Module = VQVAE(codec)
                names = codec_names(codec)
            else:
                model = AutoregressivePrior(preset.prior)
                names = prior_names(preset.prior)
        ours = _upstream_shapes(model, names, prefix="" if kind == "vqvae" else "prior.")
        lower = {n for n in listed if n.startswith("prior.bottleneck.") and n not in ours}
        theirs = {n: tuple(shape) for n, (shape, _) in listed.items() if n not in lower}
        different = {n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)}
        report.error(f"preset {kind} names and shapes", float(len(different)), 0.0)
        if counts[kind] is not None:
            total = sum(parameter.numel() for parameter in model.parameters())
            report.equal(f"preset {kind} number of parameters", total, counts[kind])


def _upstream_shapes(
    model: torch.nn.Module, names: Mapping[str, str], prefix: str
) -> dict[str, tuple[int, ...]]:
    """{upstream name: shape}, linear weights turned where upstream's are."""
    shapes = {}
    for name, tensor in model.state_dict().items():
        if name not in names:
            continue
        shape = tuple(tensor.shape)
        if name == "start":
            shape = (1, *shape)
        shapes[prefix + names[name]] = shape[::-1] if names[name].endswith(".w") else shape
    return shapes


def _compare(
    report: Report,
    name: str,
    prior: AutoregressivePrior,
    codes: Tensor,
    fixture: Fixture,
    key: str,
) -> None:
    with torch.no_grad():
        report.close(name, prior(codes), fixture.tensor(key), FORWARD)


def _tied(name: str, parameters: Mapping[str, Any]) -> str:
    """The parameter's name: a tied weight has only the first of its names."""
    return name if name in parameters else "head.weight"
