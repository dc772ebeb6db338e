"""Run folders and upstream checkpoints for the fuzzer."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_cases import VALUES, Case, Evil, Random, check, edited, json_text, mutated, pick
from safetensors.torch import load_file, save_file
from test_checkpoints import TINY, codec_run, prior_run
from test_trainer import TRAIN, toy_run
from torch import Tensor
from upstream_files import CODEC_HPS, PRIOR_HPS, codec_tensors, prior_tensors, save_checkpoint

from jukebox_core.checkpoints import (
    fingerprint,
    load_codec,
    load_meta,
    load_prior,
    load_state,
    open_run,
    save_model,
    save_state,
    stored_prior,
)
from jukebox_core.evaluation.mask_estimator import MaskEstimator, load_mask_estimator
from jukebox_core.neural.mask import MaskNetwork, load_mask_network
from jukebox_core.neural.model import NeuralLikelihood, load_neural_likelihood
from jukebox_core.upstream.checkpoints import import_codec, import_prior

ALPHA = {"bass": 0.5, "drums": 0.5}
LOADERS: dict[str, Callable[[Path], Any]] = {
    "vqvae": load_codec,
    "prior": load_prior,
    "neural_likelihood": load_neural_likelihood,
    "mask_estimator": load_mask_estimator,
    "mask_network": load_mask_network,
}
TYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
         torch.complex64, torch.float8_e4m3fn)  # fmt: skip
HEADER_VALUES = (2**62, 2**64, [2**40, 2**40], [2**32, 2**32, 0], [0], [-1], [0, 2**63], "F8_E8M0",
                 "I4", "C64")  # fmt: skip


class Checkpoints:
    """Runs in the functions that load them, and upstream's files in those that import them."""

    def prepare(self, seeds: Path) -> None:
        torch.manual_seed(0)
        codec_run(seeds / "vqvae")
        prior_run(seeds / "prior")
        estimator = MaskEstimator(TINY.mask, ALPHA)
        models: dict[str, tuple[torch.nn.Module, Any]] = {
            "neural_likelihood": (NeuralLikelihood(TINY.neural, ALPHA), TINY.neural),
            "mask_estimator": (estimator, TINY.mask),
            "mask_network": (MaskNetwork(TINY.mask_network, estimator), TINY.mask_network),
        }
        for kind, (model, config) in models.items():
            meta = {"kind": kind, "config": asdict(config), "alpha": ALPHA}
            meta |= {"estimator": {"config": asdict(TINY.mask)}, "step": 3, "elapsed": 1.0}
            save_model(seeds / kind, model, meta)
        state = {"step": 4, "tensors": {"a": torch.arange(30)}, "rng": [(3, (1, 2), None), "x"]}
        save_state(seeds / "state", state)
        toy_run(seeds / "toy", dataclasses.replace(TRAIN, steps=5))
        for legacy in (False, True):
            name = "legacy" if legacy else "zipped"
            save_checkpoint(seeds / f"vqvae.{name}", codec_tensors(), CODEC_HPS, legacy=legacy)
            tensors = prior_tensors(table=legacy)
            save_checkpoint(seeds / f"prior.{name}", tensors, PRIOR_HPS, legacy=legacy)

    def make(self, rng: Random, seeds: Path, home: Path) -> Case:
        part = pick(rng, ("meta", "meta", "weights", "weights", "state", "resumed", "upstream"))
        return getattr(self, f"_{part}")(rng, seeds, home)

    def _meta(self, rng: Random, seeds: Path, home: Path) -> Case:
        kind, run = self._run(rng, seeds, home)
        path = run / "meta.json"
        meta = json.loads(path.read_text(encoding="utf-8"))
        if rng.random() < 0.7:
            meta["config"], what = edited(rng, meta["config"])
            data = json.dumps(meta).encode()
        else:
            data, what = json_text(rng, meta)
        if rng.random() < 0.02:
            data, what = pickle.dumps(Evil()), "a pickle"
        path.write_bytes(data)
        return Case(f"{kind} meta.json: {what}", partial(read_run, kind, run), (str(run),))

    def _weights(self, rng: Random, seeds: Path, home: Path) -> Case:
        kind, run = self._run(rng, seeds, home)
        what, data = safetensors_mutation(rng, run / "weights.safetensors")
        (run / "weights.safetensors").write_bytes(data)
        return Case(f"{kind} weights: {what}", partial(read_run, kind, run), (str(run),))

    def _run(self, rng: Random, seeds: Path, home: Path) -> tuple[str, Path]:
        kind = pick(rng, list(LOADERS))
        return kind, shutil.copytree(seeds / kind, home / "run")

    def _state(self, rng: Random, seeds: Path, home: Path) -> Case:
        (home / "run").mkdir()
        what, data = torch_mutation(rng, (seeds / "state/state.pt").read_bytes())
        (home / "run/state.pt").write_bytes(data)
        return Case(f"state.pt: {what}", partial(read_state, home / "run"), ("run/state.pt",))

    def _resumed(self, rng: Random, seeds: Path, home: Path) -> Case:
        run = shutil.copytree(seeds / "toy", home / "run")
        state = torch.load(run / "state.pt", weights_only=True)
        if rng.random() < 0.25:
            group = pick(rng, state["optimizer"]["param_groups"])
            what, group = edited_state(rng, group)
            what = f"a group of the optimiser's parameters, {what}"
        else:
            what, state = edited_state(rng, state)
        torch.save(state, run / "state.pt")
        read = partial(read_resumed, run, home.parent / "out/run")
        return Case(f"state.pt of a training: {what}", read, ("out/run",))

    def _upstream(self, rng: Random, seeds: Path, home: Path) -> Case:
        kind, form = pick(rng, ("vqvae", "prior")), pick(rng, ("zipped", "legacy"))
        content, path = (seeds / f"{kind}.{form}").read_bytes(), home / "model.pth.tar"
        if rng.random() < 0.5:
            saved = torch.load(io.BytesIO(content), weights_only=False)
            what, saved = upstream_edit(rng, saved)
            buffer = io.BytesIO()
            torch.save(saved, buffer, _use_new_zipfile_serialization=form == "zipped")
            data = buffer.getvalue()
        else:
            what, data = torch_mutation(rng, content)
        path.write_bytes(data)
        read = partial(read_upstream, kind, path, home.parent / "out/run")
        return Case(f"{kind}.pth.tar, {form}: {what}", read, (str(path),))


PARSER = Checkpoints()


def read_run(kind: str, run: Path) -> None:
    """Load a run in every way."""
    load_weights(kind, run)
    check(open_run(run, {}, steps=9) in ("new", "resume", "finished"), "unknown state")


def load_weights(kind: str, run: Path) -> None:
    """Load a run's model and metadata."""
    model = LOADERS[kind](run)
    for name, tensor in model.state_dict().items():
        finite = not tensor.is_floating_point() or tensor.isfinite().all()
        check(finite, f"{name} is not finite")
    check(len(fingerprint(run)) == 64, "the fingerprint is no SHA-256")
    check(isinstance(load_meta(run), dict), "the metadata are no dictionary")
    if kind == "prior":
        config, weights = stored_prior(run)
        check(config == model.config and weights.keys() == model.state_dict().keys(), "differs")


def read_state(run: Path) -> None:
    """Load a training state."""
    state = load_state(run)
    check(isinstance(state, dict), f"the state is {type(state).__name__}")


def read_resumed(run: Path, copied: Path) -> None:
    """Go on with a training to its end."""
    shutil.copytree(run, copied)
    toy, result = toy_run(copied)
    check(result.step >= TRAIN.steps, f"it ended at step {result.step}")
    check(all(p.isfinite().all() for p in toy.parameters()), "its weights are not finite")


def read_upstream(kind: str, path: Path, output: Path) -> None:
    """Import a checkpoint; a run that is written can be loaded."""
    (import_codec if kind == "vqvae" else import_prior)(path, output)
    try:
        load_weights(kind, output)
    except (ValueError, OSError) as error:
        check(False, f"what was imported cannot be loaded: {error}")


def safetensors_mutation(rng: Random, path: Path) -> tuple[str, bytes]:
    """The bytes of a safetensors file, damaged, and words for how."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    match pick(rng, ("bytes", "bytes", "header", "header", "tensors", "tensors", "pickle")):
        case "bytes":
            return "bytes", mutated(rng, content)
        case "header":
            header = json.loads(content[8 : 8 + length])
            if rng.random() < 0.5:
                name = pick(rng, [n for n in header if n != "__metadata__"])
                field = pick(rng, ("dtype", "shape", "data_offsets"))
                header[name][field], what = pick(rng, HEADER_VALUES), f"{field} of {name}"
            else:
                header, what = edited(rng, header)
            text = json.dumps(header).encode()
            size = len(text) if rng.random() < 0.9 else int(rng.integers(1 << 40))
            return f"header, {what}", size.to_bytes(8, "little") + text + content[8 + length :]
        case "tensors":
            tensors = load_file(path)
            name = pick(rng, sorted(tensors))
            what, tensors[name] = tensor_edit(rng, tensors[name])
            if rng.random() < 0.2:
                tensors[pick(rng, ("more", "a\nb\x1b[31m", "x" * 3000, ""))] = tensors.pop(name)
            metadata = json.loads(content[8 : 8 + length]).get("__metadata__")
            target = path.with_suffix(".new")
            save_file({n: t.contiguous() for n, t in tensors.items()}, target, metadata)
            data = target.read_bytes()
            target.unlink()
            return f"{name} {what}", data
    return "a pickle", pickle.dumps(Evil(), protocol=int(rng.integers(6)))


def tensor_edit(rng: Random, tensor: Tensor) -> tuple[str, Tensor]:
    """A tensor of another type or shape, or with values that it must not have."""
    match int(rng.integers(5)):
        case 0:
            kind = pick(rng, TYPES)
            return f"as {kind}", tensor.to(kind)
        case 1:
            return "transposed", tensor.mT.clone() if tensor.ndim > 1 else tensor[None].clone()
        case 2:
            return "empty", tensor[:0].clone() if tensor.ndim else torch.empty(0)
        case 3:
            value = pick(rng, (float("nan"), float("inf"), -1e38, 1e38))
            values = (tensor if tensor.is_floating_point() else tensor.float()).clone()
            values.reshape(-1)[:1] = value
            return f"with {value}", values
    value = pick(rng, (-1, 2**31 - 1, -(2**31), 2**62))
    other = tensor.clone().reshape(-1)
    if not tensor.is_floating_point() and tensor.dtype != torch.bool and other.numel():
        info = torch.iinfo(tensor.dtype)
        other[int(rng.integers(other.numel()))] = min(max(value, info.min), info.max)
    return f"with {value}", other.reshape(tensor.shape)


def torch_mutation(rng: Random, content: bytes) -> tuple[str, bytes]:
    """The bytes of a `torch.save` file, damaged, or with a pickle that runs code."""
    buffer = io.BytesIO()
    match pick(rng, ("bytes", "bytes", "bytes", "pickle", "zipped code", "legacy code", "other")):
        case "pickle":
            return "a pickle", pickle.dumps(Evil(), protocol=int(rng.integers(6)))
        case "zipped code":
            torch.save({"step": Evil(), "model": {}}, buffer)
            return "code", buffer.getvalue()
        case "legacy code":
            torch.save({"step": Evil()}, buffer, _use_new_zipfile_serialization=False)
            return "legacy code", buffer.getvalue()
        case "other":
            value = pick(rng, (1, [], "x", None, torch.zeros(3), {"step": np.float64(1)}, (1,)))
            torch.save(value, buffer)
            return f"only {value!r}", buffer.getvalue()
    return "bytes", mutated(rng, content)


def edited_state(rng: Random, state: Any) -> tuple[str, Any]:
    """A training state with a value changed, or a tensor."""
    paths = list(leaves(state))
    path = pick(rng, [p for p in paths if rng.random() < 0.5] or paths)
    path = path[: int(rng.integers(1, len(path) + 1))]
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    name = ".".join(map(str, path))
    inner = holder[path[-1]]
    if isinstance(holder, tuple) or rng.random() < 0.1:
        state.pop(path[0])
        return f"without {path[0]}", state
    if isinstance(inner, Tensor):
        what, holder[path[-1]] = tensor_edit(rng, inner)
        return f"{name} {what}", state
    new = holder[path[-1]] = pick(rng, VALUES)
    return f"{name} is {str(new)[:40]!r}", state


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in nested containers; of long lists, of the first few."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3])
    for key, content in inner:
        yield (*path, key)
        if isinstance(content, dict | list | tuple):
            yield from leaves(content, (*path, key))


def upstream_edit(rng: Random, saved: Any) -> tuple[str, Any]:
    """A checkpoint's hyper-parameters or tensors, changed."""
    if rng.random() < 0.6:
        plain = {k: v.item() if hasattr(v, "item") else v for k, v in saved["hps"].items()}
        saved["hps"], what = edited(rng, plain)
        return f"hps, {what}", saved
    name = pick(rng, sorted(saved["model"]))
    what, tensor = tensor_edit(rng, saved["model"][name])
    others = (None, [1], torch.ones(2).to_sparse())
    saved["model"][name] = pick(rng, (tensor, tensor, tensor, *others))
    if rng.random() < 0.3:
        saved["native"] = pick(rng, ({}, {"meta": "{", "tensors": {}}, {"meta": "[]", "tensors": 1},
                                     {"meta": "{}", "tensors": {"a": tensor}}, 3))  # fmt: skip
    return f"{name} {what}", saved
