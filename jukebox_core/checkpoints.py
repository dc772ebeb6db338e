"""Run folders: weights, metadata and the resumable training state.

    weights.safetensors   for inference: the averaged weights, the codebook buffers
    meta.json             kind, configuration, step, metrics, seed, command, versions
    state.pt              everything that training continues from (`jukebox_core.training.trainer`)
    best/                 weights and metadata with the lowest validation loss (`Snapshots`)
    steps/00000500/       weights and metadata of earlier checkpoints (`Snapshots`)

Every file appears whole or not at all, and reading never runs a pickle's code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from jukebox_core.checks import one_line, plain, printable, require, require_fields
from jukebox_core.config import PriorConfig, VQVAEConfig, from_dict
from jukebox_core.files import atomic_folder, durable_path, remove_owned
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.tables import check_types, save_tensors, utf8_name
from jukebox_core.vqvae.model import VQVAE

M = TypeVar("M", bound=nn.Module)

FORMAT = 1
WEIGHTS, META, STATE = "weights.safetensors", "meta.json", "state.pt"
_WRITTEN = (WEIGHTS, STATE, "metrics.csv", "best", "steps", "media", "wandb", "wandb.json")
"""Files and folders that a run writes after meta.json."""
_SNAPSHOT: dict[str, str | None] = {WEIGHTS: None, META: None}
_VERSIONED = ("lightning-fabric", "numpy", "safetensors")


_INTERVALS = ("log_every", "validate_every", "validate_batches", "checkpoint_every")
_FREE_TO_CHANGE = {f"train.{name}" for name in ("steps", "workers", *_INTERVALS)}
"""Settings that may change when a run continues."""


def save_model(folder: str | Path, model: nn.Module, meta: Mapping[str, Any]) -> None:
    """Write weights.safetensors and meta.json; `format` is added to the metadata.

    Tied parameters are written once, under the first of their names.

    Raises:
        ValueError: a tensor has NaN or infinite values; nothing is written.
        OSError: the files cannot be written.
    """
    folder = Path(folder)
    state = model.state_dict()
    tensors = {name: state[name] for name in _first_names(model).values()}
    if (broken := first_nonfinite(tensors.items())) is not None:
        raise ValueError(f"tensor {broken} has NaN or infinite values: {folder} is not written")
    with durable_path(folder / WEIGHTS) as temporary:
        save_tensors(temporary, tensors)
    save_meta(folder, meta)


def save_meta(folder: str | Path, meta: Mapping[str, Any]) -> None:
    """Write only meta.json; `format` is added."""
    text = json.dumps({"format": FORMAT, **meta}, indent=2, allow_nan=False)
    with durable_path(Path(folder) / META) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def begin_run(folder: str | Path, meta: Mapping[str, Any]) -> None:
    """Record in meta.json that a run has begun, unless the folder holds a checkpoint.

    Raises:
        OSError: it cannot be written.
    """
    if not (Path(folder) / STATE).is_file():
        begun = {"step": 0, "epoch": 0.0, "elapsed": 0.0, "finished": False, "metrics": {}}
        save_meta(folder, {**meta, **begun})


def load_meta(folder: str | Path) -> dict[str, Any]:
    """The content of a run's meta.json.

    Raises:
        FileNotFoundError: there is no such folder, or no meta.json in it.
        ValueError: it is not JSON of a known format.
    """
    path = run_part(folder, META)
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version = meta["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not the metadata of a run") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}, this version reads format {FORMAT}")
    return meta


def load_config(folder: str | Path, kind: str, cls: type) -> tuple[Any, dict[str, Any]]:
    """The configuration of a run's model, of class `cls`, and the run's metadata.

    Raises:
        FileNotFoundError: There is no such folder, or no meta.json in it.
        ValueError: The run is of another kind, or its configuration is damaged.
    """
    meta = load_meta(folder)
    if meta.get("kind") != kind:
        raise ValueError(f"{folder} is a run of kind {meta.get('kind')!r}, expected {kind!r}")
    try:
        return from_dict(cls, meta["config"]), meta
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{Path(folder) / META} has no usable configuration ({reason})") from error


def load_model(build: Callable[[], M], folder: str | Path, device: str | torch.device) -> M:
    """Build a model and load a run's weights into it, in eval mode and without gradients.

    Raises:
        FileNotFoundError: The folder or its weights are missing.
        ValueError: The weights are damaged, not finite, or differ in names or shapes.
    """
    # First without data: damaged metadata may describe a model that exceeds the memory.
    with torch.device("meta"):
        outline = build()
    weights = _fitting_weights(outline, folder)
    model = build()
    own = model.state_dict()
    for name, tensor in weights.items():
        own[name].copy_(tensor)
    return model.to(device).eval().requires_grad_(False)


def load_codec(folder: str | Path, device: str | torch.device = "cpu") -> VQVAE:
    """Load a run's codec, in eval mode and without gradients.

    Raises:
        FileNotFoundError: the folder or a part of it is missing.
        ValueError: a part is damaged, of another kind, does not fit its configuration, or has
            values that are not finite.
    """
    config, _ = load_config(folder, "vqvae", VQVAEConfig)
    return load_model(lambda: VQVAE(config), folder, device)


def load_prior(
    folder: str | Path,
    device: str | torch.device = "cpu",
    codec_fingerprint: str | None = None,
    source: str | None = None,
) -> AutoregressivePrior:
    """Load a run's prior, in eval mode and without gradients.

    Args:
        folder: the run.
        device: where to put it.
        codec_fingerprint: of the codec to use the prior with; None accepts any.
        source: whose prior it is to be; None accepts any.

    Raises:
        FileNotFoundError: the folder or a part of it is missing.
        ValueError: a part is damaged, of another kind, does not fit its configuration, has values
            that are not finite, or the prior was trained on the codes of another codec or source.
    """
    config, meta = load_config(folder, "prior", PriorConfig)
    check_codec(folder, meta, codec_fingerprint)
    if source is not None:
        check_source(folder, meta, source)
    return load_model(lambda: AutoregressivePrior(config), folder, device)


def check_codec(folder: str | Path, meta: Mapping[str, Any], codec_fingerprint: str | None) -> None:
    """Raise ValueError unless a run was trained on the codes of this codec; None accepts any."""
    trained_on = meta.get("vqvae_fingerprint")
    if codec_fingerprint is not None and trained_on != codec_fingerprint:
        raise ValueError(
            f"{folder} was trained on the codes of another codec (fingerprint "
            f"{str(trained_on)[:12]}, this one has {codec_fingerprint[:12]}): train it on this one"
        )


def check_source(folder: str | Path, meta: Mapping[str, Any], source: str) -> None:
    """Raise ValueError if a prior's metadata name another source; converted ones name none."""
    trained_on = meta.get("source")
    if trained_on not in (None, source):
        raise ValueError(
            f"{folder} is the prior of {printable(str(trained_on))}, not of {source}: train a "
            f"prior of {source}"
        )


def alpha_of(folder: str | Path, meta: Mapping[str, Any]) -> dict[str, float]:
    """The sources' gains in the mixture that a run was trained with, {source: gain}.

    Raises:
        ValueError: the metadata name no sources, or a gain is not a positive number.
    """
    alpha = meta.get("alpha")
    if not isinstance(alpha, dict) or not alpha:
        raise ValueError(f"{Path(folder) / META} names no sources: alpha is {alpha!r}")
    for source, gain in alpha.items():
        require(f"{Path(folder) / META}: alpha of {source}", gain, above=0)
    return alpha


def stored_prior(folder: str | Path) -> tuple[PriorConfig, dict[str, Tensor]]:
    """Read a prior's configuration and weights; tensors stay on the disk until used.

    Tied weights appear under each of their names.

    Raises:
        FileNotFoundError: the folder or a part of it is missing.
        ValueError: a part is damaged, of another kind, or does not fit its configuration.
    """
    config, _ = load_config(folder, "prior", PriorConfig)
    with torch.device("meta"):
        prior = AutoregressivePrior(config)
    weights = _fitting_weights(prior, folder)
    return config, {name: weights[first] for name, first in _first_names(prior).items()}


def fingerprint(folder: str | Path) -> str:
    """SHA-256 of the names, shapes and values of a run's weights, without its metadata."""
    return digest_of(_read_weights(folder))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Write the training state: tensors, numbers, strings, and containers of these."""
    with durable_path(Path(folder) / STATE) as temporary:
        torch.save(dict(state), temporary)


def load_state(folder: str | Path) -> dict[str, Any]:
    """Read the training state onto the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds anything but plain data.
    """
    path = run_part(folder, STATE)
    damaged = f"{path} is damaged or not a training state; delete the folder to train afresh"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # many types, depending on where the damage is
        raise ValueError(damaged) from error
    if not isinstance(state, dict):
        raise ValueError(damaged)
    return state


def open_run(
    folder: str | Path, identity: Mapping[str, Any], steps: int, max_seconds: float | None = None
) -> Literal["new", "resume", "finished"]:
    """Decide how to proceed in a run folder.

    Args:
        folder: the run folder, which may be missing.
        identity: settings that a run in the folder must have.
        steps: number of steps to train.
        max_seconds: training time to stop after; None is unlimited.

    Returns:
        `new` if there is no checkpoint, `finished` if the run has reached its end, else `resume`.

    Raises:
        ValueError: The folder holds another run (the message names the differences), its weights
            are not finite, or its metadata lacks the progress.
        FileExistsError: It has a file with a name that runs write, but no meta.json.
    """
    folder = Path(folder)
    present = [name for name in _WRITTEN if os.path.lexists(folder / name)]
    if not (folder / META).is_file():
        if present:
            raise FileExistsError(
                f"{folder} holds {present[0]}, but no {META} that records a run: choose another "
                "output, or move the file"
            )
        return "new"
    meta = load_meta(folder)
    if meta.get("step") == 0 and not {WEIGHTS, STATE} & set(present):
        return "new"  # it ended before its first checkpoint
    if differences := _differences(meta, json.loads(json.dumps(identity))):
        raise ValueError(
            f"{folder} holds another run ({'; '.join(differences)}); "
            "choose another output, or the settings that it was started with"
        )
    for name in ("step", "elapsed"):
        require(f"{folder / META}: {name}", meta.get(name), at_least=0)
    if meta["step"] >= steps or (max_seconds is not None and meta["elapsed"] >= max_seconds):
        if (folder / WEIGHTS).is_file():
            _read_weights(folder)
        if not _is_behind(folder, meta["step"]):
            return "finished"
    return "resume" if (folder / STATE).is_file() else "new"


def _is_behind(folder: Path, step: int) -> bool:
    """Whether the training state is older than the metadata, as after a kill between the two."""
    with suppress(OSError, ValueError, TypeError):  # without a state, a run can only be finished
        return load_state(folder)["step"] < step
    return False


@dataclass
class Snapshots:
    """Weights of earlier steps in a run's `best/` and `steps/`, without training states.

    Raises:
        ValueError: `keep` is negative.
    """

    folder: Path
    """The run folder."""
    keep: int = 0
    """Number of latest checkpoints to keep in `steps/`."""
    best: bool = False
    """Keep the weights with the lowest validation loss in `best/`."""
    least: float = math.inf
    """Lowest validation loss so far."""

    def __post_init__(self) -> None:
        require_fields(self, "keep", whole=True, at_least=0)

    def improves(self, loss: float) -> bool:
        """Whether the loss is the lowest so far, so that `save_best` is due; record it."""
        if not self.best or not loss < self.least:
            return False
        self.least = loss
        return True

    def save_best(self, model: nn.Module, meta: Mapping[str, Any]) -> None:
        """Replace the best weights."""
        with atomic_folder(self.folder / "best", _SNAPSHOT) as temporary:
            save_model(temporary, model, meta)

    def save_step(self, step: int, save: Callable[[Path], None]) -> None:
        """Keep a checkpoint's weights, which `save` writes into a folder; delete older ones."""
        if not self.keep:
            return
        steps = self.folder / "steps"
        with atomic_folder(steps / f"{step:08}", _SNAPSHOT) as temporary:
            save(temporary)
        kept = sorted(path for path in steps.iterdir() if path.name.isdigit())
        for old in kept[: -self.keep]:
            remove_owned(old, _SNAPSHOT)


def provenance() -> dict[str, Any]:
    """The git commit (None outside a checkout) and the versions of libraries."""
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _VERSIONED}
    versions["torch"] = str(torch.__version__)  # with the build tag
    return {"git_commit": _git_commit(), "versions": versions}


def _differences(stored: Any, expected: Any, name: str = "") -> list[str]:
    """Describe where `stored` lacks or contradicts `expected`.

    A field that an older run lacks counts as off: False, or zero.
    """
    if isinstance(expected, dict) and isinstance(stored, dict):
        differences = []
        for key, value in expected.items():
            inner = f"{name}.{key}" if name else key
            younger = key not in stored and value in (False, 0)
            if inner not in _FREE_TO_CHANGE and not younger:
                differences += _differences(stored.get(key), value, inner)
        return differences
    return [] if stored == expected else [f"{name} is {stored!r} there, now {expected!r}"]


def _git_commit() -> str | None:
    """The commit of this file; None if it is in no commit, as in an installed package."""
    here = Path(__file__)

    def git(*flags: str) -> str:
        options: Any = {"cwd": here.parent, "stderr": subprocess.DEVNULL, "timeout": 10}
        command = ["git", *flags]
        return subprocess.check_output(command, text=True, **options).strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # the repository may be another project's
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def run_part(folder: str | Path, name: str) -> Path:
    """The path of a file in a run folder.

    Raises:
        FileNotFoundError: the folder or the file is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run folder {folder}; train or convert a model first")
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"{folder} has no {name}: its training has not reached a checkpoint, or the copy is "
            "incomplete"
        )
    return folder / name


def _read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Read weights.safetensors; all values are finite."""
    path = run_part(folder, WEIGHTS)
    try:
        with utf8_name(path) as name:
            weights = load_file(name)
        check_types(weights)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged or truncated ({one_line(error)}): copy it again"
        ) from error
    if (broken := first_nonfinite(weights.items())) is not None:
        raise ValueError(
            f"{path}: tensor {plain(broken)} has NaN or infinite values; the training diverged: "
            "train again with a lower learning rate"
        )
    return weights


def first_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with NaN or infinite values; None where all are finite."""
    for name, tensor in tensors:
        # Minimum and maximum need no mask of the tensor's size; if there is a NaN, both are NaN.
        if tensor.is_floating_point() and tensor.numel():
            if not torch.stack(tensor.aminmax()).isfinite().all():
                return name
    return None


def _first_names(model: nn.Module) -> dict[str, str]:
    """{name in the state dict: first name of the same tensor}; tied tensors have several names."""
    first: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True).items()
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _fitting_weights(outline: nn.Module, folder: str | Path) -> dict[str, Tensor]:
    """Read a run's weights; names and shapes must be the outline's."""
    path = Path(folder) / WEIGHTS
    weights = _read_weights(folder)
    own = outline.state_dict()
    expected = set(_first_names(outline).values())
    _refuse(path, "misses the tensor", expected - set(weights))
    _refuse(path, "has the unknown tensor", set(weights) - expected)
    for name in sorted(expected):
        found, wanted = weights[name], own[name]
        if found.shape != wanted.shape:
            raise ValueError(
                f"{path}: tensor {name} is {tuple(found.shape)}, expected "
                f"{tuple(wanted.shape)} by its configuration"
            )
        if found.is_floating_point() != wanted.is_floating_point():
            raise ValueError(
                f"{path}: tensor {name} is {found.dtype}, expected {wanted.dtype} by its "
                "configuration"
            )
    return weights


def _refuse(path: Path, what: str, names: set[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(
            f"{path} {what} {plain(min(names))}{more}; it does not fit its configuration"
        )
