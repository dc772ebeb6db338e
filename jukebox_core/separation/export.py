"""Copies of a method's models for inference, small enough to ship.

A copy is a normal models folder without training states. Weights become float16, except the
codec's: all other parts depend on its exact codes. Integers of tables take the narrowest type that
holds them. export.json records the method and the SHA-256 of every file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from jukebox_core.checkpoints import META, WEIGHTS, first_nonfinite, load_codec
from jukebox_core.files import atomic_folder, check_owned, sha256, write_json
from jukebox_core.separation.method import Method
from jukebox_core.separation.settings import Settings, tuned_path
from jukebox_core.tables import check_types, readable, save_tensors, utf8_name

RECORD = "export.json"
CARD, CONFIG = "README.md", "config.json"
_KEPT = (CARD, CONFIG)
"""Files of the output that an export leaves as they are."""
_INTEGERS = (torch.int16, torch.uint16, torch.int32)


def export_models(method: Method, models: str | Path, output: str | Path) -> list[Path]:
    """Copy what a method needs; return the files, relative to the output.

    An earlier export is replaced as a whole; README.md and config.json in it stay.

    Args:
        method: whose parts to copy.
        models: folder of trained models.
        output: folder for the copy.

    Raises:
        FileNotFoundError: a part is missing.
        FileExistsError: the output is no folder, or holds anything else than an earlier export.
        ValueError: a part is damaged, a weight exceeds the range of float16, or the output lies in
            the folder of the models. Nothing is written then.
    """
    models, output = Path(models), Path(output)
    check_export(models, output)
    method.check(models)
    settings = method.resolve(Settings(), models)
    family = method.folder(models)
    priors = method.priors(family, settings).values()
    runs = [family / "vqvae", *filter(None, priors)]
    runs += [family / name for name in method.runs()]
    runs += method.runs_beside(models, settings).values()
    tables = [family / name for name in method.tables(settings, len(priors))]
    optional = (family / "calibration.safetensors", tuned_path(models, method.name))
    calibration, tuned = ([path] if path.is_file() else [] for path in optional)
    load_codec(runs[0])  # its weights are copied without reading them
    changes: dict[Path, Callable[[Path, Path], object]] = {
        **dict.fromkeys(
            [runs[0] / WEIGHTS, *(run / META for run in runs), *tuned], shutil.copyfile
        ),
        **dict.fromkeys([run / WEIGHTS for run in runs[1:]], _halve),
        **dict.fromkeys([*tables, *calibration], _narrow),
    }
    with atomic_folder(output, _owned(output)) as folder:
        for path, change in changes.items():
            target = folder / path.relative_to(models)
            target.parent.mkdir(parents=True, exist_ok=True)
            change(path, target)
        files = sorted(path.relative_to(models) for path in changes)
        digests = {file.as_posix(): sha256(folder / file) for file in files}
        write_json(folder / RECORD, {"method": method.name, "files": digests})
        for name in _KEPT:
            if (output / name).is_file():
                shutil.copyfile(output / name, folder / name)
    return [*files, Path(RECORD)]


def check_export(models: str | Path, output: str | Path) -> None:
    """Refuse an output that `export_models` would refuse, whatever the models are.

    Raises:
        FileExistsError: it is no folder, or holds anything else than an earlier export.
        ValueError: it lies in the folder of the models.
    """
    if Path(output).resolve().is_relative_to(Path(models).resolve()):
        raise ValueError(f"output is {output}, in the folder of the models: choose another")
    check_owned(output, _owned(Path(output)))


def _owned(output: Path) -> dict[str, str | None]:
    """The files of an earlier export, for `check_owned`."""
    owned: dict[str, str | None] = dict.fromkeys((RECORD, *_KEPT))
    try:
        owned |= json.loads((output / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return owned  # then the other files are nobody's
    return owned


def _halve(source: Path, target: Path) -> None:
    def halved(tensor: Tensor) -> Tensor:
        return tensor.half() if tensor.is_floating_point() else tensor

    _write(source, target, "weights", halved)


def _narrow(source: Path, target: Path) -> None:
    def narrowed(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or tensor.numel() == 0:
            return tensor
        low, high = (int(value) for value in tensor.long().aminmax())
        fits = (t for t in _INTEGERS if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max)
        return tensor.to(next(fits, tensor.dtype))

    _write(source, target, "numbers", narrowed)


def _write(source: Path, target: Path, kind: str, change: Callable[[Tensor], Tensor]) -> None:
    with readable(source, kind), utf8_name(source) as name, safe_open(name, "pt") as file:
        metadata: Mapping[str, str] = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_types(tensors)
    if (broken := first_nonfinite(tensors.items())) is not None:
        raise ValueError(f"{source}: tensor {broken} has NaN or infinite values")
    changed = {name: change(tensor) for name, tensor in tensors.items()}
    if (broken := first_nonfinite(changed.items())) is not None:
        raise ValueError(f"{source}: tensor {broken} has values that float16 cannot hold")
    save_tensors(target, changed, metadata)
