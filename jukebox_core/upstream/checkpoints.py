"""Convert upstream checkpoints (`.pth.tar`) to run folders, and back.

A checkpoint is a dictionary {hps, model, opt, step} written by `torch.save`; `model` holds the
averaged weights. It is read with `weights_only=True` and NumPy's scalar types allowed by name: a
pickle that asks for anything else is refused before it runs.

Exported checkpoints have a further entry, `native`, which upstream programs ignore: our metadata,
and the codebooks' averages that the upstream format lacks. It makes the round trip exact.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jukebox_core.checkpoints import load_codec, load_meta, provenance, save_model, stored_prior
from jukebox_core.checks import one_line
from jukebox_core.config import (
    Bandwidths,
    LossConfig,
    PriorConfig,
    VQVAEConfig,
    from_dict,
)
from jukebox_core.files import atomic_folder, durable_path
from jukebox_core.tables import save_tensors, utf8_name
from jukebox_core.upstream.layout import (
    build_codec,
    build_prior,
    codebooks,
    codec_config,
    codec_hps,
    codec_names,
    codec_tensors,
    kind_of,
    prior_config,
    prior_hps,
    prior_names,
    prior_tensors,
    upstream_tensors,
    without_prefixes,
)
from jukebox_core.upstream.loss import bandwidths_of, loss_config, loss_hps
from jukebox_core.upstream.tables import check_new, read_torch

CODEBOOKS = "codebooks.safetensors"
"""The lower levels' codebooks in a converted prior's folder; only the export needs them."""

USAGE = 2.0
"""Averaged use that a converted codebook starts with if its training continues (the files lack it):
twice the restart threshold, so that no code restarts at the first step."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of a file. tensors: by upstream names without prefixes. native: see the module."""

    path: Path
    hps: dict[str, Any]
    tensors: dict[str, Tensor]
    step: int
    native_meta: dict[str, Any] | None = None
    native_tensors: dict[str, Tensor] = field(default_factory=dict)


def read_checkpoint(
    path: str | Path, hps: Mapping[str, Any] | None = None, kind: str | None = None
) -> Checkpoint:
    """Read a codec's or a prior's checkpoint; tensors stay on the disk until they are used.

    Args:
        path: the `.pth.tar`.
        hps: hyper-parameters that the file lacks.
        kind: of the model, vqvae or prior; None accepts any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, asks for more than data, is not a checkpoint, holds a model of
            another kind, or contradicts `hps`.
    """
    path = Path(path)
    content = read_torch(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path} is not a checkpoint: expected a dictionary with an entry `model`")
    tensors = content["model"]
    _check_tensors(path, tensors)
    own = content.get("hps") or {}
    if not isinstance(own, dict):
        raise ValueError(f"{path} has hps of type {type(own).__name__}, expected a dictionary")
    own = _plain(own)
    for name, value in (hps or {}).items():
        if own.get(name) is not None and own[name] != _plain(value):
            raise ValueError(f"{path} has {name} {own[name]} in its hps, not {value}")
    step, tensors = content.get("step", 0), without_prefixes(tensors)
    if kind is not None and kind_of(tensors) != kind:
        raise ValueError(f"{path} holds a model of kind {kind_of(tensors)}, expected {kind}")
    native_meta, native_tensors = _native_part(path, content.get("native"))
    return Checkpoint(
        path=path,
        hps={**own, **(hps or {})},
        tensors=tensors,
        step=int(step) if isinstance(step, int | float | np.number) else 0,
        native_meta=native_meta,
        native_tensors=native_tensors,
    )


def import_codec(
    path: str | Path, output: str | Path, hps: Mapping[str, Any] | None = None
) -> VQVAEConfig:
    """Convert an upstream codec into a native run folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or contradicts its hps; nothing is written.
    """
    check_new(output)
    checkpoint = read_checkpoint(path, hps, "vqvae")
    with _named(checkpoint.path):
        config = codec_config(checkpoint.hps, checkpoint.tensors)
        native = codec_tensors(checkpoint.tensors, config, USAGE)
        for name, tensor in checkpoint.native_tensors.items():
            if name not in native or native[name].shape != tensor.shape:
                raise ValueError(f"its native part has an unfit tensor {name}")
            native[name] = tensor
        meta = _meta("vqvae", config, checkpoint)
        if checkpoint.native_meta is None:
            loss, bandwidths = loss_config(checkpoint.hps), bandwidths_of(checkpoint.hps)
            meta |= {"loss": asdict(loss)} if loss else {}
            meta |= {"bandwidths": asdict(bandwidths)} if bandwidths else {}
        codec = build_codec(native, config)
    with atomic_folder(output) as folder:
        save_model(folder, codec, meta)
    return config


def import_prior(
    path: str | Path,
    output: str | Path,
    hps: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> PriorConfig:
    """Convert an upstream prior, of either format, into a native run folder.

    Args:
        path: the `.pth.tar`.
        output: folder to write; it must not exist.
        hps: hyper-parameters that the file lacks.
        extra: for the metadata, such as source and vqvae_fingerprint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, contradicts its hps, or needs conditioning that is not
            implemented; nothing is written.
    """
    check_new(output)
    checkpoint = read_checkpoint(path, hps, "prior")
    with _named(checkpoint.path):
        config = prior_config(checkpoint.hps, checkpoint.tensors)
        meta = _meta("prior", config, checkpoint)
        if checkpoint.native_meta is not None:  # it has what hps and shapes lack
            before = from_dict(PriorConfig, meta["config"])
            table = config.embedding == "table"
            config = dataclasses.replace(
                config,
                dropout=before.dropout,
                emb_width=before.emb_width if table else config.emb_width,
            )
            meta["config"] = asdict(config)
        prior = build_prior(prior_tensors(checkpoint.tensors, config), config)
    lower = list(codebooks(checkpoint.tensors).items())[:-1]
    with atomic_folder(output) as folder:
        save_model(folder, prior, {**meta, **(extra or {})})
        if config.embedding == "codebook":
            with durable_path(folder / CODEBOOKS) as temporary:
                save_tensors(temporary, {str(level): t.float() for level, t in lower})
    return config


def export_codec(run: str | Path, path: str | Path) -> None:
    """Write a native codec as an upstream checkpoint.

    Raises:
        FileNotFoundError: the run, or a part of it, is missing.
        ValueError: it cannot be read, has only the top level, or `path` exists.
        OSError: the checkpoint cannot be written.
    """
    check_new(path)
    meta, codec = load_meta(run), load_codec(run)
    if codec.config.top_only:
        raise ValueError(f"{run} holds only the top level; the upstream format needs all levels")
    state = codec.state_dict()
    names = codec_names(codec.config)
    rest = {name: t for name, t in state.items() if name not in names}
    model = upstream_tensors(state, names, turn=False)
    _write_checkpoint(path, codec_hps(codec.config) | _loss_hps(meta), model, meta, rest)


def _loss_hps(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The loss in a codec's metadata under upstream's names; empty if there is none."""
    if "loss" not in meta:
        return {}
    loss = from_dict(LossConfig, asdict(LossConfig()) | meta["loss"])  # older runs lack fields
    bandwidths = meta.get("bandwidths")
    return loss_hps(loss, from_dict(Bandwidths, bandwidths) if bandwidths else None)


def export_prior(run: str | Path, path: str | Path, vqvae: str | Path | None = None) -> None:
    """Write a native prior as an upstream checkpoint.

    The format with codebook inputs holds the codebooks of all levels. The lower ones come from
    `vqvae`, the run of its codec, or else from the run, if it was converted.

    Raises:
        FileNotFoundError: a run, or a part of it, is missing.
        ValueError: a run cannot be read, the lower codebooks are missing, or `path` exists.
        OSError: the checkpoint cannot be written.
    """
    check_new(path)
    meta, (config, state) = load_meta(run), stored_prior(run)
    lower = _lower_codebooks_for(Path(run), state.get("embed.codebook"), vqvae)
    names = prior_names(config, top=len(lower))
    model = upstream_tensors(state, names, turn=True)
    model |= {f"bottleneck.level_blocks.{level}.k": t for level, t in enumerate(lower)}
    model = {f"prior.{name}": tensor for name, tensor in model.items()}
    hps = prior_hps(config) | {"level": len(lower) if config.embedding == "codebook" else 2}
    _write_checkpoint(path, hps, model, meta, {})


def _write_checkpoint(
    path: str | Path,
    hps: Mapping[str, Any],
    model: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    rest: Mapping[str, Tensor],
) -> None:
    upstream = meta.get("upstream") or {}
    content = {
        "hps": {**hps, **_tuples(upstream.get("hps") or {})},
        "model": dict(model),
        "opt": {},
        "step": int(meta.get("step") or 0),
        "native": {"meta": json.dumps(meta), "tensors": dict(rest)},
    }
    with durable_path(path) as temporary:
        torch.save(content, temporary)


def _lower_codebooks_for(run: Path, top: Tensor | None, vqvae: str | Path | None) -> list[Tensor]:
    """The codebooks below the top level's, finest first; empty for a table of embeddings."""
    if top is None:
        return []
    if vqvae is not None:
        codec = load_codec(vqvae)
        if not torch.equal(codec.codebook, top):
            raise ValueError(f"{vqvae} is another codec: its top codebook is not the prior's")
        return [codec.bottleneck(level).codebook for level in range(codec.top)]
    path = run / CODEBOOKS
    if not path.is_file():
        raise ValueError(
            f"{run} lacks the codebooks of the lower levels, which the upstream format needs: "
            "name the run of its codec"
        )
    try:
        with utf8_name(path) as name:
            stored = load_file(name)
    except SafetensorError as error:
        reason = one_line(error)
        raise ValueError(f"{path} is damaged ({reason}): name the run of its codec") from error
    return [stored[level] for level in sorted(stored, key=int)]


def _meta(kind: str, config: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """Metadata of a converted run; an exported run gets its own back unchanged."""
    if checkpoint.native_meta is not None:
        if checkpoint.native_meta.get("kind") != kind:
            raise ValueError(f"its native part is of kind {checkpoint.native_meta.get('kind')}")
        return {k: v for k, v in checkpoint.native_meta.items() if k != "format"}
    return {
        "kind": kind,
        "config": asdict(config),
        "step": checkpoint.step,
        "upstream": {"file": checkpoint.path.name, "hps": checkpoint.hps},
        **provenance(),
    }


def _check_tensors(path: Path, tensors: Mapping[Any, Any]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ValueError(f"{path} has {type(tensor).__name__} under {name}, expected a tensor")
        if not isinstance(name, str):
            raise ValueError(f"{path} names a tensor {name!r}, expected text")


def _native_part(path: Path, native: Any) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Meta data and tensors that an export from here added."""
    if native is None:
        return None, {}
    try:
        meta, tensors = json.loads(native["meta"]), dict(native["tensors"])
        meta.keys()  # a dictionary
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has a damaged entry `native`; remove it") from error
    _check_tensors(path, tensors)
    return meta, tensors


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before the message of a ValueError."""
    try:
        yield
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: a hyper-parameter is unusable ({error})") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {error}") from error


def _plain(value: Any) -> Any:
    """Hps in JSON types: NumPy scalars become numbers, tuples lists, the rest text."""
    if isinstance(value, np.generic | Tensor) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | torch.Size):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _tuples(value: Any) -> Any:
    """Undo `_plain` for sequences, which are tuples in upstream's hps."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
