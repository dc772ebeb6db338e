"""Copies of a method's models for inference, small enough to ship.

A copy is a normal models folder without training states. Weights become float16, except the
codec's: all other parts depend on its exact codes. Integers of tables take the narrowest type that
holds them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from jukebox_core.checkpoints import META, WEIGHTS, first_nonfinite
from jukebox_core.files import atomic_path
from jukebox_core.separation.loading import prior_folders
from jukebox_core.separation.method import Method
from jukebox_core.separation.settings import Settings, tuned_path
from jukebox_core.tables import save_tensors

_INTEGERS = (torch.int16, torch.int32)


def export_models(method: Method, models: str | Path, output: str | Path) -> list[Path]:
    """Copy what a method needs; return the files, relative to the output.

    Files of an earlier export are replaced, each as a whole.

    Args:
        method: whose parts to copy.
        models: folder of trained models.
        output: folder for the copy.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: a part is damaged, a weight exceeds the range of float16, or output and models
            are the same folder.
    """
    models, output = Path(models), Path(output)
    method.check(models)
    if output.resolve() == models.resolve():
        raise ValueError(f"output is {output}, the folder of the models: choose another")
    settings = method.resolve(Settings(), models)
    family = method.folder(models)
    runs = [family / "vqvae", *prior_folders(family).values()]
    runs += [family / name for name in method.runs()]
    runs += method.runs_beside(models, settings).values()
    tables = [family / name for name in method.tables(settings)]
    tables += [path for path in [family / "calibration.safetensors"] if path.is_file()]
    copied = [tuned_path(models, method.name)] if tuned_path(models, method.name).is_file() else []
    copied += [run / META for run in runs] + [family / "vqvae" / WEIGHTS]
    for path in copied:
        with atomic_path(output / path.relative_to(models)) as temporary:
            shutil.copyfile(path, temporary)
    for run in runs[1:]:
        _write(run / WEIGHTS, output / (run / WEIGHTS).relative_to(models), _halved)
    for path in tables:
        _write(path, output / path.relative_to(models), _narrowed)
    written = [*copied, *(run / WEIGHTS for run in runs[1:]), *tables]
    return sorted(path.relative_to(models) for path in written)


def _write(source: Path, target: Path, change: Callable[[Tensor], Tensor]) -> None:
    with safe_open(source, "pt") as file:
        metadata: Mapping[str, str] = file.metadata() or {}
    tensors = {name: change(tensor) for name, tensor in load_file(source).items()}
    if (broken := first_nonfinite(tensors.items())) is not None:
        raise ValueError(f"{source}: tensor {broken} has values that float16 cannot hold")
    with atomic_path(target) as temporary:
        save_tensors(temporary, tensors, metadata)


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _narrowed(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() or tensor.numel() == 0:
        return tensor
    low, high = (int(value) for value in tensor.aminmax())
    fits = (t for t in _INTEGERS if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max)
    return tensor.to(next(fits, tensor.dtype))
