"""Recover the start of a training trajectory that its file lacks.

The recorded trajectories hold their parameters by reference: `sd_before` has the values after the
last step, and only the codebooks are the start's. A seeded generator drew the start and can draw it
again. The seed is searched near the seeds in the folder's side-cars: the right one draws weights
that correlate with the recorded ones, which training moved only a little.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from scripts.check_parity.fixtures import Fixture

REACH = 600  # seeds on either side of the recorded ones
STREAM = 1 << 18  # numbers that the model built before the prior may have drawn
MATCH = 6.0  # standard deviations of a correlation that chance does not reach


def recorded_by_reference(fixture: Fixture) -> bool:
    """Whether the parameters before and after training are equal although training moved them."""
    before, after = fixture.under("sd_before/"), fixture.under("sd_after/")
    trained = [name for name in before if not re.search(r"bottleneck.*\.k$", name)]
    moved = any(step["lr"] > 0 for step in fixture.info["steps"])
    return moved and all(torch.equal(before[name], after[name]) for name in trained)


def drawn_codec(fixture: Fixture) -> tuple[dict[str, Tensor], int] | None:
    """The codec's parameters at the start and their seed, None if no seed fits."""
    tensors = fixture.under("sd_before/")
    names = [name for name in tensors if not name.startswith("bottleneck.")]
    levels = sorted({name.split(".")[1] for name in names}, key=int)
    parts = [f"{part}.{level}." for level in levels for part in ("encoders", "decoders")]
    built = [n for part in parts for n in names if n.startswith(part)]
    if fixture.info["config"].get("reverse_decoder_dilation", True):
        built = _as_built(built)
    for seed in _seeds(fixture.path.parent):
        recorded = tensors[built[0]]
        first = _uniform(torch.Generator().manual_seed(seed), recorded.shape)
        if torch.stack([first.flatten(), recorded.flatten()]).corrcoef()[0, 1] < 0.9:
            continue
        generator = torch.Generator().manual_seed(seed)
        start, fan = {}, 1
        for name in built:
            if name.endswith("weight"):
                fan = tensors[name][0].numel()
            start[name] = _uniform(generator, tensors[name].shape, fan)
        scale = round(float((recorded * first).sum() / first.square().sum()), 2)
        for name in names:  # the weights were enlarged, the biases drawn anew
            if name.endswith("weight"):
                start[name] = start[name] * scale
            else:
                start[name] = torch.randn(tensors[name].shape, generator=generator) * 0.1
        if _within_reach(fixture, start):
            return start, seed
    return None


def drawn_prior(fixture: Fixture) -> tuple[dict[str, Tensor], int] | None:
    """The prior's parameters at the start and their seed, None if no seed fits."""
    tensors = fixture.under("sd_before/")
    own = {name.removeprefix("prior."): tensor for name, tensor in tensors.items()}
    first = "transformer._attn_mods.0.mlp.c_fc.w"
    depth = fixture.info["config"]["depth"]
    linear = ("attn.c_attn.w", "attn.c_proj.w", "mlp.c_fc.w", "mlp.c_proj.w")
    embedding = "x_emb.weight" if "x_emb.weight" in own else "x_embs.weight"
    drawn = [embedding, "start_token", "pos_emb.pos_emb"]
    drawn += [f"transformer._attn_mods.{layer}.{part}" for layer in range(depth) for part in linear]
    before = sum(own[name].numel() for name in drawn[: drawn.index(first)])
    folder = fixture.path.parent
    codecs = map(Fixture, sorted(folder.glob("train_traj_vqvae_*.npz")))
    starts = (drawn_codec(codec) for codec in codecs if recorded_by_reference(codec))
    codec = next(filter(None, starts), None)  # the prior's seed is a few numbers higher
    for seed in range(codec[1], codec[1] + 60) if codec else ():
        offset = _offset(seed, own[first])
        if offset is None:
            continue
        generator = torch.Generator().manual_seed(seed)
        torch.rand(max(offset - before, 0), generator=generator)
        start = _initial(own, drawn, fixture.info["config"]["init_scale"], generator)
        if embedding == "x_emb.weight":
            start["x_out.weight"] = start["x_emb.weight"]
        else:
            start["x_out.weight"] = _uniform(generator, own["x_out.weight"].shape)
        named = {f"prior.{name}": tensor for name, tensor in start.items()}
        if _within_reach(fixture, named):
            return named, seed
    return None


def _initial(
    own: Mapping[str, Tensor], drawn: Iterable[str], scale: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Normal weights times the init scale, unit layer norms, zero biases."""
    start = {}
    for name in drawn:
        std = 0.01 * scale if name in ("start_token", "pos_emb.pos_emb") else 0.02 * scale
        start[name] = torch.empty(own[name].shape).normal_(0.0, std, generator=generator)
    for name, tensor in own.items():
        if re.search(r"\.ln_\d\.weight$", name):
            start[name] = torch.ones_like(tensor)
        elif name.endswith((".b", ".bias")):
            start[name] = torch.zeros_like(tensor)
    return start


def _offset(seed: int, weight: Tensor) -> int | None:
    """Offset of `weight` in a seed's stream of normal numbers, by correlation."""
    stream = torch.rand(STREAM + 16, generator=torch.Generator().manual_seed(seed))
    target = weight.flatten() / weight.norm()
    size = STREAM + len(target)
    spectrum = torch.fft.rfft(target, size).conj()
    best, where = 0.0, 0
    for shift in range(0, 16, 4):  # torch makes normal numbers of blocks of 16
        block = stream[shift : shift + STREAM].view(-1, 16)
        radius, angle = (-2 * torch.log1p(-block[:, :8])).sqrt(), 2 * math.pi * block[:, 8:]
        normal = torch.cat([radius * angle.cos(), radius * angle.sin()], 1).flatten()
        match = torch.fft.irfft(torch.fft.rfft(normal, size) * spectrum, size)[:STREAM]
        peak = int(match.argmax())
        if float(match[peak]) > best:
            best, where = float(match[peak]), peak + shift
    return where if best > MATCH else None


def _within_reach(fixture: Fixture, start: Mapping[str, Tensor]) -> bool:
    """Whether training can lead from `start` to the recorded weights: Adam moves by about lr."""
    reach = 1.5 * sum(step["lr"] for step in fixture.info["steps"])
    return all(
        (tensor - fixture.tensor(f"sd_before/{name}")).abs().max() <= reach
        for name, tensor in start.items()
    )


def _as_built(names: list[str]) -> list[str]:
    """Residual stacks of decoders were built in order of dilation, then reversed."""
    block = re.compile(r"(decoders\..*\.0\.model\.)(\d+)\.model\.")
    order: list[str] = []
    for stack, group in groupby(names, lambda name: (m := block.match(name)) and m[1]):
        own = list(group)
        if stack:
            own.sort(key=lambda name: int(name.removeprefix(stack).split(".")[0]), reverse=True)
        order += own
    return order


def _seeds(folder: Path) -> range:
    """Seeds to try, near the seeds in the folder's side-cars."""
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("*.json")]
    named = [int(seed) for seed in re.findall(r'"manual_seed": (\d+)', "\n".join(texts))]
    return range(max(0, min(named) - REACH), max(named) + REACH) if named else range(0)


def _uniform(generator: torch.Generator, shape: torch.Size, fan: int | None = None) -> Tensor:
    """Torch's default initialisation of convolutions and linear layers."""
    bound = 1 / math.sqrt(fan or math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
