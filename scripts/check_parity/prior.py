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
    upstream_tensors,
    without_prefixes,
)
from jukebox_core.vqvae.model import VQVAE
from scripts.check_parity.fixtures import EXACT, Fixture, check

SMALL_PRIOR_ORDER = 2  # default of side-cars without one: both upstream systems use it


def prior_from(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> AutoregressivePrior:
    """A trainable prior of upstream tensors; `config` may lack the attention order."""
    own = without_prefixes(tensors)
    built = prior_config({"attn_order": SMALL_PRIOR_ORDER, **config}, own)
    return build_prior(prior_tensors(own, built), built).requires_grad_(True)


def names_of(prior: AutoregressivePrior, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{native name: upstream name without prefix} of a prior of these upstream tensors."""
    levels = sum("bottleneck.level_blocks." in name for name in tensors)
    return prior_names(prior.config, top=max(levels - 1, 0))


@torch.no_grad()
def stepwise(prior: AutoregressivePrior, codes: Tensor) -> Tensor:
    """Logits [B, T, K] through the cache, one position at a time."""
    cache = prior.new_cache(*codes.shape)
    last = [None, *codes.T[:-1]]
    return torch.stack([prior.step(code, cache) for code in last], dim=1)


@check("(lqvae_)?prior_forward")
def prior_forward(fixture: Fixture) -> None:
    """Logits, loss and gradients of one prior."""
    tensors = fixture.under("sd/")
    prior = prior_from(tensors, fixture.config())
    codes = fixture.tensor("in/z")
    with torch.no_grad():
        fixture.close("AutoregressivePrior", prior(codes), "out/logits_teacher_forced")
    fixture.close("AutoregressivePrior.step", stepwise(prior, codes), "out/logits_stepwise")
    bits = prior.bits_per_code(codes)
    fixture.close("AutoregressivePrior.bits_per_code", bits, "out/loss_bits_per_token")
    bits.backward()
    names, parameters = names_of(prior, tensors), prior.named_parameters(remove_duplicate=False)
    fixture.gradients(
        "AutoregressivePrior", "out/", {names[own]: tensor for own, tensor in parameters}
    )


@check("prior_orders")
def prior_orders(fixture: Fixture) -> None:
    """Attention kinds 0 to 3; variants with lyrics, labels or an encoder must be refused."""
    for variant, info in fixture.info["variants"].items():
        tensors = fixture.under(f"{variant}/sd/")
        config = fixture.config() | info
        conditions = ("encoder_dims", "prime_len", "x_cond", "y_cond", "merged_decoder")
        needs = [key for key in conditions if info.get(key)]
        if needs or info["attn_order"] not in ATTENTION_PATTERNS:
            _refused(fixture, variant, tensors, config, needs)
            continue
        prior = prior_from(tensors, config)
        codes = fixture.tensor(f"{variant}/in/z")
        name, logits = f"AutoregressivePrior ({variant})", f"{variant}/out/logits"
        with torch.no_grad():
            fixture.close(name, prior(codes), logits)
            fixture.close(f"{name} step", stepwise(prior, codes), logits)
            fixture.close(f"{name} bits", prior.bits_per_code(codes), f"{variant}/out/loss")


def _refused(
    fixture: Fixture,
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
            fixture.listed(variant, f"{what}: no system here uses it, loading is refused")
        else:
            fixture.fail(variant, f"{what} is refused with an unclear message: {error}")
    else:
        fixture.fail(variant, f"{what} is not implemented, yet its weights were accepted")


@check("param_listing_.+")
def param_listing(fixture: Fixture) -> None:
    """Names, shapes and numbers of parameters of the full-size presets."""
    for title, listed in fixture.info.items():
        if title.startswith("vqvae"):
            kind, prefix = "vqvae", ""
            codec = PRESETS["paper"].vqvae
            if downs := re.search(r"downs ([\d,]+)", title):
                codec = replace(codec, downs_t=tuple(map(int, downs[1].split(","))))
            with torch.device("meta"):
                model: torch.nn.Module = VQVAE(codec)
            names = codec_names(codec)
        elif title.startswith("small_prior"):
            kind, prefix = "prior", "prior."
            preset = PRESETS["jukebox_5b" if "prior.x_emb.weight" in listed else "paper"]
            with torch.device("meta"):
                model = AutoregressivePrior(preset.prior)
            names = prior_names(preset.prior)
        else:
            continue
        tensors = upstream_tensors(model.state_dict(), names, turn=kind == "prior")
        ours = {prefix + name: tuple(tensor.shape) for name, tensor in tensors.items()}
        lower = {n for n in listed if n.startswith("prior.bottleneck.") and n not in ours}
        theirs = {n: tuple(shape) for n, (shape, _) in listed.items() if n not in lower}
        different = {n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)}
        fixture.error(f"preset {kind} names and shapes", float(len(different)), EXACT)
        if (recorded := fixture.info.get(f"n_params_{kind}")) is not None:
            total = sum(parameter.numel() for parameter in model.parameters())
            fixture.equal(f"preset {kind} number of parameters", total, recorded)
