"""Checkpoints in upstream's layout, written out name by name at tiny sizes."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.convert_upstream import main

K, D, WIDTH = 12, 6, 4

CODEC_HPS: dict[str, Any] = {
    "name": "vqvae",
    "sr": np.int64(22_050),
    "levels": 2,
    "downs_t": (2, 1),
    "strides_t": (2, 3),
    "l_bins": K,
    "emb_width": D,
    "l_mu": np.float64(0.98),
    "width": WIDTH,
    "depth": np.int32(2),
    "m_conv": np.float32(0.5),
    "dilation_growth_rate": 3,
    "dilation_cycle": None,
    "vqvae_reverse_decoder_dilation": np.bool_(True),
    "hvqvae_multipliers": (2, 1),
    "revival_threshold": 1.0,
    "bandwidth": {"l2": np.float64(0.1), "l1": np.float64(0.2), "spec": np.float64(30.0)},
    "restore_vqvae": "",
}
PRIOR_HPS: dict[str, Any] = {
    "n_ctx": 16,
    "l_bins": K,
    "width": WIDTH,  # the codec's: the prior's own are prior_width and prior_depth
    "depth": 2,
    "prior_width": 8,
    "prior_depth": np.int64(3),
    "heads": 2,
    "blocks": 4,
    "attn_order": 2,
    "m_attn": np.float64(0.25),
    "m_mlp": 2.0,
    "init_scale": 0.7,
    "emb_width": D,
    "labels": False,
}


def codec_tensors(seed: int = 0) -> OrderedDict[str, torch.Tensor]:
    """All tensors of a codec with CODEC_HPS."""
    generator = torch.Generator().manual_seed(seed)
    tensors: OrderedDict[str, torch.Tensor] = OrderedDict()

    def add(name: str, *shape: int) -> None:
        tensors[name] = torch.randn(shape, generator=generator)

    def conv(name: str, out: int, channels: int, kernel: int) -> None:
        add(f"{name}.weight", out, channels, kernel)
        add(f"{name}.bias", out)

    def residual(name: str, width: int, depth: int) -> None:
        for block in range(depth):
            conv(f"{name}.model.{block}.model.1", width // 2, width, 3)
            conv(f"{name}.model.{block}.model.3", width, width // 2, 1)

    downs, strides, multipliers = (2, 1), (2, 3), (2, 1)
    for level in range(2):
        width, depth = WIDTH * multipliers[level], 2 * multipliers[level]
        for stage in range(level + 1):
            name = f"encoders.{level}.level_blocks.{stage}.model"
            for step in range(downs[stage]):
                channels = width if step else (1 if stage == 0 else D)
                conv(f"{name}.{step}.0", width, channels, 2 * strides[stage])
                residual(f"{name}.{step}.1", width, depth)
            conv(f"{name}.{downs[stage]}", D, width, 3)
        for stage in range(level + 1):
            name = f"decoders.{level}.level_blocks.{stage}.model"
            conv(f"{name}.0", width, D, 3)
            for step in range(downs[stage]):
                out = D if step == downs[stage] - 1 else width
                residual(f"{name}.{step + 1}.0", width, depth)
                add(f"{name}.{step + 1}.1.weight", width, out, 2 * strides[stage])
                add(f"{name}.{step + 1}.1.bias", out)
        conv(f"decoders.{level}.out", 1, D, 3)
        add(f"bottleneck.level_blocks.{level}.k", K, D)
    return tensors


def prior_tensors(*, table: bool, seed: int = 0) -> OrderedDict[str, torch.Tensor]:
    """All tensors of a prior with PRIOR_HPS; a table of embeddings, or codebook vectors."""
    generator = torch.Generator().manual_seed(seed)
    tensors: OrderedDict[str, torch.Tensor] = OrderedDict()
    width, attention, hidden = 8, 2, 16

    def add(name: str, *shape: int) -> None:
        tensors[f"prior.{name}"] = torch.randn(shape, generator=generator)

    add("start_token", 1, width)
    if table:
        add("x_emb.weight", K, width)
    else:
        for level in range(2):
            tensors[f"prior.bottleneck.level_blocks.{level}.k"] = codec_tensors()[
                f"bottleneck.level_blocks.{level}.k"
            ]
        add("x_embs.weight", width, D)
    add("pos_emb.pos_emb", 16, width)
    for layer in range(3):
        name = f"transformer._attn_mods.{layer}"
        for part, inputs, outputs in (
            ("attn.c_attn", width, 3 * attention),
            ("attn.c_proj", attention, width),
            ("mlp.c_fc", width, hidden),
            ("mlp.c_proj", hidden, width),
        ):
            add(f"{name}.{part}.w", inputs, outputs)
            add(f"{name}.{part}.b", outputs)
        for norm in ("ln_0", "ln_1"):
            add(f"{name}.{norm}.weight", width)
            add(f"{name}.{norm}.bias", width)
    if table:
        tensors["prior.x_out.weight"] = tensors["prior.x_emb.weight"]
    else:
        add("x_out.weight", K, width)
    return tensors


def save_checkpoint(
    path: Path,
    tensors: OrderedDict[str, torch.Tensor],
    hps: dict[str, Any],
    *,
    module: bool = False,
    legacy: bool = False,
) -> Path:
    """`torch.save` of {hps, model, opt, step}."""
    if module:
        tensors = OrderedDict((f"module.{name}", tensor) for name, tensor in tensors.items())
    optimizer = {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": []}
    content = {"hps": hps, "model": tensors, "opt": optimizer, "step": 7}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def convert(kind, source, output, *flags):
    return main(["--kind", kind, "--input", str(source), "--output", str(output), *map(str, flags)])


def refused(capsys, kind, source, output, *flags):
    """The one line that a refused conversion says; nothing may be left behind."""
    before = set(output.parent.iterdir())
    assert convert(kind, source, output, *flags) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert set(output.parent.iterdir()) == before
    return said
