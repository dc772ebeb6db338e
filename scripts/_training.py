"""What the two training scripts share: flags with preset defaults, data, trackers, the run."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from jukebox_core.checkpoints import (
    META,
    STATE,
    Snapshots,
    begin_run,
    load_meta,
    open_run,
    provenance,
)
from jukebox_core.checks import require, require_fields, require_types
from jukebox_core.config import PRESETS, OptimConfig, Preset, TrainConfig, to_dict
from jukebox_core.datasets.crops import Batches, Items, split_for_validation
from jukebox_core.datasets.manifest import Manifest, Track, load_manifest
from jukebox_core.training.audio_logging import Clips, MediaTracker
from jukebox_core.training.distributed import (
    Precision,
    launch,
    make_fabric,
    seed_everything,
    set_threads,
)
from jukebox_core.training.memory import crops_that_fit, require_memory
from jukebox_core.training.tracking import (
    ConsoleTracker,
    CsvTracker,
    Tracker,
    Trackers,
    WandbConfig,
    WandbTracker,
)
from jukebox_core.training.trainer import CollapseWatch, Trainer
from scripts._cli import program

PresetName = Literal["tiny", "demo", "small", "t4", "paper", "jukebox_5b"]
DEFAULT_PRESET: PresetName = "demo"


@dataclass(frozen=True, kw_only=True)
class TrainingArgs:
    """Flags of every training script."""

    data: Path
    """Prepared data set (scripts.prepare_slakh)."""
    output: Path
    """Run folder; a run that is there is continued."""
    preset: PresetName = DEFAULT_PRESET
    """Size; every other flag overrides it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "32"
    """bf16-mixed is for recent GPUs and CPUs, 16-mixed for older GPUs."""
    devices: int = 1
    """Processes on this machine, one per GPU (under torchrun, mpiexec, SLURM: what they say)."""
    num_nodes: int = 1
    """Machines (under torchrun, mpiexec, SLURM: what they say)."""
    batch: int | Literal["auto"] | None = None
    """Crops of the batch computed at a time on each process, to save memory; gradients add up.
    auto: as many as the memory holds; default: all."""
    shard_optimizer: bool = False
    """Every process keeps the optimiser's state of its share of the parameters alone."""
    compile: bool = False
    """torch.compile the layers (CUDA, or a C++ compiler)."""
    threads: int | None = None
    """CPU threads; default: PyTorch's choice, and of several processes each its share."""
    seed: int | None = None
    """Of everything random; sets --train.seed."""
    max_seconds: float | None = None
    """Stop after so much training time; the learning rate decays in time for it."""
    validate_on: str | None = None
    """Split that validates; default: validation, or 5% of the training songs where it is empty."""
    keep: int = 0
    """Checkpoints whose weights stay in OUTPUT/steps."""
    keep_media: int = 3
    """Validations whose audio and spectrograms stay in OUTPUT/media (codecs)."""
    best: bool = True
    """Keep the weights of the least validation loss in OUTPUT/best."""
    skip_silent: bool = True
    """Draw again where a source is silent throughout the crop."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases; auto is online where there is a key, else offline."""
    wandb_project: str = "latent-separation"
    """Its project."""
    wandb_entity: str | None = None
    """User or team; default: that of the log-in."""
    wandb_name: str | None = None
    """Name of the run; default: that of the run folder."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the run."""
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        """Refuse values out of range that no other class checks."""
        require_types(self)
        require_fields(self, "devices", "num_nodes", whole=True, at_least=1)
        require_fields(self, "keep", "keep_media", whole=True, at_least=0)
        require_fields(self, "max_seconds", optional=True, above=0)
        require_fields(self, "seed", optional=True, whole=True, at_least=0, at_most=2**63 - 1)
        if isinstance(self.batch, int):
            require_fields(self, "batch", whole=True, at_least=1)


def run_with_presets(
    body: Callable[[Any], None], argv: Sequence[str], defaults: Mapping[str, Any]
) -> int:
    """Run a script's body with flags whose defaults are `defaults`: preset < explicit flag.

    Args:
        body: takes the arguments, annotated with their dataclass.
        argv: the flags.
        defaults: replaces the dataclass's defaults of the same names.
    """
    base = body.__annotations__["args"]
    fields = [(name, type(value), value) for name, value in defaults.items()]
    body.__annotations__["args"] = dataclasses.make_dataclass(
        base.__name__, fields, bases=(base,), frozen=True, kw_only=True
    )
    return program(body)(argv)


def peek(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag before the parser runs: the other flags' defaults hang on it."""
    value = None
    for index, word in enumerate(argv):
        if word == flag:
            value = argv[index + 1] if index + 1 < len(argv) else ""
        elif word.startswith(f"{flag}="):
            value = word.split("=", 1)[1]
    return value


def peek_preset(argv: Sequence[str]) -> Preset:
    """The preset that the flags name; where there is no such one the parser will say so."""
    return PRESETS.get(peek(argv, "--preset") or "", PRESETS[DEFAULT_PRESET])


def command_line(script: str, argv: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(["python", "-m", f"scripts.{script}", *argv])


def given_argv(argv: Sequence[str] | None) -> list[str]:
    """The process's flags where none are given."""
    return list(sys.argv[1:] if argv is None else argv)


@dataclass(frozen=True)
class Data:
    """A data set ready for training."""

    manifest: Manifest
    train: list[Track]
    validation: list[Track]

    def identity(self) -> dict[str, Any]:
        """What meta.json says about it: a run continues on the same data alone."""
        digest = hashlib.sha256()
        for tracks in (self.train, self.validation):
            for track in sorted(tracks, key=lambda t: t.name):
                digest.update(f"{track.name} {sorted(track.checksums.items())}\n".encode())
            digest.update(b"\n")
        return {
            "train_tracks": len(self.train),
            "validation_tracks": len(self.validation),
            "sha256": digest.hexdigest(),
        }


def compile_layers(model: nn.Module) -> None:
    """torch.compile the stacks of a codec or the layers of a prior; weights keep their names."""
    for name in ("encoders", "decoders", "blocks"):
        for part in getattr(model, name, nn.ModuleList()).children():
            part.compile()


def parts_of_batch(items: int, rows: int, crops: int) -> int:
    """The least number of equal parts of `items` items with at most `crops` crops in each.

    Raises:
        ValueError: one item has more.
    """
    if crops < rows:
        raise ValueError(f"batch is {crops}; an item is {rows} crops, expected at least {rows}")
    return next(n for n in range(1, items + 1) if not items % n and rows * items // n <= crops)


class _Blank:
    """Items of zeros, with the size of the training's items."""

    def __init__(self, rows: int, length: int, dtype: torch.dtype):
        self.rows = rows
        self._length = length
        self._dtype = dtype

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(self.rows, self._length, dtype=self._dtype)


class TrainingItems(Items, Protocol):
    """Items that know how long their songs are."""

    samples: int


class Run:
    """One start of a training script: its flags, devices and seeds."""

    def __init__(self, args: TrainingArgs):
        """Choose the devices and seed the generators.

        Raises:
            ValueError: a device that is not there, names that Weights & Biases does not take.
        """
        self.args = args
        seed = args.train.seed if args.seed is None else args.seed
        self.train: TrainConfig = replace(args.train, seed=seed)
        name = args.wandb_name
        if name is None:
            name = "/".join(args.output.resolve().parts[-2:])[-128:]
        self._wandb = WandbConfig(
            args.wandb, args.wandb_project, args.wandb_entity, name, args.wandb_tags
        )
        self.fabric = make_fabric(args.device, args.precision, args.devices, args.num_nodes)
        self._local = getattr(self.fabric.strategy, "num_processes", 1)
        set_threads(args.threads, self._local)
        launch(self.fabric)
        seed_everything(seed + self.fabric.global_rank)

    def open_data(self, sample_rate: int) -> Data:
        """Read the manifest, split it, and say which songs are too short to train on.

        Raises:
            ValueError: the model is for another sample rate.
        """
        manifest = load_manifest(self.args.data)
        if manifest.sample_rate != sample_rate:
            raise ValueError(
                f"{self.args.data} is at {manifest.sample_rate} Hz, the model at {sample_rate}: "
                f"prepare the data at {sample_rate} Hz, or train a model for "
                f"{manifest.sample_rate} Hz (its --*.sample-rate)"
            )
        data = Data(manifest, *split_for_validation(manifest, self.args.validate_on))
        crop = self.train.crop
        short = [track.name for track in data.train if track.samples < crop]
        if short:
            more = f" and {len(short) - 3} more" if len(short) > 3 else ""
            print(f"left out, shorter than a crop of {crop}: {', '.join(short[:3])}{more}")
        return data

    def identity(self, data: Data) -> dict[str, Any]:
        """What must be the same where a run goes on, of all kinds of runs."""
        return {
            "optim": to_dict(self.args.optim),
            "train": to_dict(self.train),
            "sample_rate": data.manifest.sample_rate,
            "alpha": data.manifest.alpha,
            "skip_silent": self.args.skip_silent,
            "data": data.identity(),
        }

    def already_finished(self, identity: Mapping[str, Any]) -> bool:
        """Whether there is nothing to do, which is then said."""
        args = self.args
        if open_run(args.output, identity, self.train.steps, args.max_seconds) != "finished":
            return False
        print(f"{args.output} is already finished")
        return True

    def meta(self, command: str) -> dict[str, Any]:
        """What meta.json says about a run besides its identity."""
        about = {"preset": self.args.preset, "seed": self.train.seed}
        return about | {"precision": self.args.precision, "command": command} | provenance()

    def require(
        self,
        build: Callable[[], nn.Module],
        rows: int,
        length: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Refuse what the machine cannot train, before any work.

        Args:
            build: makes the objective; it is called with fake tensors, which take no memory.
            rows: rows of an item.
            length: samples or codes of a row.
            dtype: type of an item.

        Raises:
            ValueError: the batch size does not divide, or there are too many workers, or too little
                memory.
        """
        args, blank = self.args, _Blank(rows, length, dtype)
        self._batches(blank, 1)  # raises if the batch size does not divide
        own = self.train.batch_size // self.fabric.world_size
        crops = rows if args.batch == "auto" else own if args.batch is None else args.batch
        parts = parts_of_batch(own // rows, rows, crops)
        self._batches(blank, parts).require_shared_memory(loaders=2)  # training and validation
        on_cpu = self.fabric.device.type == "cpu"
        require_memory(
            build,
            # Two items: an objective may need an even number of crops.
            lambda: torch.cat([blank[0], blank[1]]),
            own // parts,
            self.fabric.device,
            processes=self._local if on_cpu else 1,
            averaged=args.optim.ema_decay > 0,
            moments=1 / self.fabric.world_size if args.shard_optimizer else 1.0,
            mixed=args.precision != "32",
        )

    def fit(
        self,
        objective: nn.Module,
        model: nn.Module,
        items: TrainingItems,
        validation: Callable[[], Items],
        meta: Mapping[str, Any],
        collapse: CollapseWatch | None = None,
        media: Callable[[Tensor], Iterable[Clips]] | None = None,
    ) -> None:
        """Train `objective`, and say in one line what came out; see `Trainer`."""
        args = self.args
        parts = self._parts(objective, items)
        batches, held_out = self._batches(items, parts), self._validation(validation, parts)
        if self.fabric.is_global_zero:
            begin_run(args.output, {**meta, "parts": parts})
        tracker = self._tracker(meta)
        trainer = Trainer(
            self.fabric,
            args.optim,
            self.train,
            args.output,
            meta={**meta, "parts": parts},
            tracker=tracker,
            max_seconds=args.max_seconds,
            collapse=collapse,
            media=media,
            snapshots=Snapshots(args.output, args.keep, best=args.best),
            sharded=args.shard_optimizer,
        )
        if args.compile:
            compile_layers(model)
        try:
            samples = items.samples
            result = trainer.fit(objective, model, batches, held_out, samples_per_epoch=samples)
        finally:
            tracker.close()
        if self.fabric.is_global_zero:
            losses = [f"{split} loss {m['loss']:.4f}" for split, m in result.metrics.items()]
            print(f"{args.output}: {', '.join([f'step {result.step}', *losses])}")

    def _parts(self, objective: nn.Module, items: Items) -> int:
        """How many parts each process computes its share of a batch in."""
        batch, own = self.args.batch, self.train.batch_size // self.fabric.world_size
        if batch is None:
            return 1
        if batch == "auto":
            # A run that goes on keeps its parts: the codebook is updated after each.
            if (self.args.output / STATE).is_file():
                parts: Any = load_meta(self.args.output).get("parts")
                require(f"{self.args.output / META}: parts", parts, whole=True, at_least=1)
                return parts
            objective.to(self.fabric.device)
            # On a GPU of one's own, or in the host's memory that all share.
            sharing = self._local if self.fabric.device.type == "cpu" else 1
            with self.fabric.autocast():
                batch = crops_that_fit(objective, items[0], self.fabric.device, sharing)
        return parts_of_batch(max(1, own // items.rows), items.rows, batch)

    def _batches(self, items: Items, parts: int) -> Batches:
        return Batches(
            items,
            self.train.batch_size,
            processes=self.fabric.world_size,
            rank=self.fabric.global_rank,
            accumulate=parts,
            workers=self.train.workers,
            pin_memory=self.fabric.device.type == "cuda",
        )

    def _validation(self, build: Callable[[], Items], parts: int) -> Batches | None:
        """None, with a word on stderr, where no validation song is usable."""
        try:
            return self._batches(build(), parts)
        except ValueError as error:
            print(f"warning: nothing to validate on ({error})", file=sys.stderr)
            return None

    def _tracker(self, meta: Mapping[str, Any]) -> Tracker:
        """CSV, terminal and W&B, on the first process alone."""
        if not self.fabric.is_global_zero:
            return Trackers()
        args = self.args
        args.output.mkdir(parents=True, exist_ok=True)
        folder = args.output
        return Trackers(
            [
                CsvTracker(folder),
                MediaTracker(folder, args.keep_media),
                ConsoleTracker(folder.name),
                WandbTracker(folder, self._wandb, meta),
            ]
        )
