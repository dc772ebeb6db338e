"""One training run: its settings, data, devices, memory, trackers and checkpoints."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

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
from jukebox_core.config import OptimConfig, TrainConfig
from jukebox_core.datasets.batches import Batches, Items, TrainingItems
from jukebox_core.datasets.crops import split_for_validation
from jukebox_core.datasets.manifest import Manifest, Track, load_manifest
from jukebox_core.locks import sole_writer
from jukebox_core.machine import set_threads
from jukebox_core.presets import DEFAULT_PRESET, PresetName
from jukebox_core.training.audio_logging import AudioTracker, Clips
from jukebox_core.training.distributed import (
    Precision,
    launch,
    make_fabric,
    seed_everything,
)
from jukebox_core.training.memory import crops_that_fit, require_memory
from jukebox_core.training.ranks import gather
from jukebox_core.training.tracking import ConsoleTracker, CsvTracker, Tracker
from jukebox_core.training.trainer import CollapseWatch, Trainer
from jukebox_core.training.wandb import WandbConfig, WandbTracker


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of every training run."""

    data: Path
    """Prepared data set."""
    output: Path
    """Run folder; an interrupted run in it continues."""
    preset: PresetName = DEFAULT_PRESET
    """Size, which sets the defaults of the model, its loss, optimiser and training."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "32"
    """bf16-mixed suits recent GPUs and CPUs, 16-mixed older GPUs."""
    devices: int = 1
    """Processes on this machine, one per GPU; torchrun, mpiexec and SLURM override it."""
    num_nodes: int = 1
    """Machines; torchrun, mpiexec and SLURM override it."""
    batch: int | Literal["auto"] | None = None
    """Crops that each process computes at a time, to save memory; gradients accumulate. auto: as
    many as fit in memory. Default: all crops of the process."""
    shard_optimizer: bool = False
    """Each process keeps the optimiser state of only its share of the parameters (ZeRO 1)."""
    compile: bool = False
    """Compile the layers with torch.compile (needs CUDA or a C++ compiler)."""
    threads: int | None = None
    """CPU threads; without it PyTorch's choice, divided among the processes."""
    seed: int | None = None
    """Random seed; overrides `train.seed`."""
    max_seconds: float | None = None
    """Stop after this many seconds; the learning-rate decay is scheduled to finish by then."""
    validate_on: str | None = None
    """Split for validation; default: `validation`, or 5% of the training songs if empty."""
    keep: int = 0
    """Number of checkpoints whose weights stay in OUTPUT/steps."""
    keep_media: int = 3
    """Number of validations whose audio and spectrograms stay in OUTPUT/media (codecs)."""
    best: bool = True
    """Keep the weights with the lowest validation loss in OUTPUT/best."""
    skip_silent: bool = True
    """Draw another crop where a source is silent throughout."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases mode; auto: online with an API key or a login, else offline."""
    wandb_project: str = "latent-separation"
    """Weights & Biases project."""
    wandb_entity: str | None = None
    """Weights & Biases user or team; without it the one logged in."""
    wandb_name: str | None = None
    """Weights & Biases name of the run; without it the name of the run folder."""
    wandb_tags: tuple[str, ...] = ()
    """Weights & Biases tags of the run."""

    def __post_init__(self) -> None:
        require_types(self)
        require_fields(self, "devices", "num_nodes", whole=True, at_least=1)
        require_fields(self, "keep", "keep_media", whole=True, at_least=0)
        require_fields(self, "max_seconds", optional=True, above=0)
        require_fields(self, "seed", optional=True, whole=True, at_least=0)
        if isinstance(self.batch, int):
            require_fields(self, "batch", whole=True, at_least=1)


@dataclass(frozen=True)
class Data:
    """A data set, split into training and validation songs."""

    manifest: Manifest
    train: list[Track]
    validation: list[Track]

    def identity(self) -> dict[str, Any]:
        """The data's entry in meta.json: a run continues only on the same data."""
        digest = hashlib.sha256()
        for tracks in (self.train, self.validation):
            for track in sorted(tracks, key=lambda t: t.name):
                line = f"{track.name} {sorted(track.checksums.items())}\n"
                digest.update(line.encode("utf-8", "surrogatepass"))
            digest.update(b"\n")
        return {
            "train_tracks": len(self.train),
            "validation_tracks": len(self.validation),
            "sha256": digest.hexdigest(),
        }


def compile_layers(model: nn.Module) -> None:
    """Apply torch.compile to a codec's stacks or a prior's layers; weights keep their names."""
    for name in ("encoders", "decoders", "blocks"):
        for part in getattr(model, name, nn.ModuleList()).children():
            part.compile()


def parts_of_batch(items: int, rows: int, crops: int) -> int:
    """The smallest number of equal parts of a batch with at most `crops` crops per part.

    Args:
        items: items of the batch.
        rows: crops per item, which stay together.
        crops: largest number of crops per part.

    Raises:
        ValueError: an item has more crops than a part may have.
    """
    if crops < rows:
        raise ValueError(f"batch is {crops}; an item is {rows} crops, expected at least {rows}")
    return next(n for n in range(1, items + 1) if not items % n and rows * items // n <= crops)


@dataclass
class _Blank:
    """Items of zeros, of the size of the training items."""

    rows: int
    length: int
    dtype: torch.dtype

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(self.rows, self.length, dtype=self.dtype)


class Run:
    """One start of a training run, new or continued: its settings, devices and seeds.

    From `already_finished` to the end of the `with` block, no other process trains in its folder.
    """

    def __init__(self, settings: RunSettings, optim: OptimConfig, train: TrainConfig):
        """Choose the devices and seed the generators.

        Raises:
            ValueError: the device is missing, or Weights & Biases does not accept a name.
        """
        self.settings = settings
        seed = train.seed if settings.seed is None else settings.seed
        self.optim = optim
        self.train = replace(train, seed=seed)
        name = settings.wandb_name
        if name is None:
            name = "/".join(settings.output.resolve().parts[-2:])[-128:]
        self._wandb = WandbConfig(
            settings.wandb, settings.wandb_project, settings.wandb_entity, name, settings.wandb_tags
        )
        self.fabric = make_fabric(
            settings.device, settings.precision, settings.devices, settings.num_nodes
        )
        self.local_size: int = getattr(self.fabric.strategy, "num_processes", 1)
        """Number of processes on this machine."""
        set_threads(settings.threads, self.local_size)
        launch(self.fabric)
        seed_everything(seed + self.fabric.global_rank)
        self._lock = ExitStack()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def open_data(self, sample_rate: int) -> Data:
        """Read the manifest and split it; print which songs are shorter than a crop.

        Raises:
            ValueError: the model has another sample rate.
        """
        manifest = load_manifest(self.settings.data, sample_rate)
        data = Data(manifest, *split_for_validation(manifest, self.settings.validate_on))
        crop = self.train.crop
        short = [track.name for track in data.train if track.samples < crop]
        if short:
            more = f" and {len(short) - 3} more" if len(short) > 3 else ""
            print(f"left out, shorter than a crop of {crop}: {', '.join(short[:3])}{more}")
        return data

    def identity(self, data: Data) -> dict[str, Any]:
        """The part of meta.json that must be the same for a run to continue."""
        return {
            "optim": asdict(self.optim),
            "train": asdict(self.train),
            "sample_rate": data.manifest.sample_rate,
            "alpha": data.manifest.alpha,
            "skip_silent": self.settings.skip_silent,
            "data": data.identity(),
        }

    def already_finished(self, identity: Mapping[str, Any]) -> bool:
        """Lock the run's folder; return whether the run is finished, and print it if so.

        Raises:
            OSError: another process trains in it, or it cannot be written to.
        """
        output, seconds = self.settings.output, self.settings.max_seconds
        refused = None
        if self.fabric.is_global_zero:  # locked first: what a holder still writes is not judged
            try:
                self._lock.enter_context(sole_writer(output, inside=True))
            except OSError as error:
                refused = error
        if open_run(output, identity, self.train.steps, seconds) == "finished":
            print(f"{output} is already finished")
            return True
        if any(gather(refused is not None, self.fabric.world_size)):
            raise refused or SystemExit(1)  # the first process says why
        return False

    def meta(self, command: str) -> dict[str, Any]:
        """The entries of meta.json that may differ when a run continues."""
        return {
            "preset": self.settings.preset,
            "seed": self.train.seed,
            "precision": self.settings.precision,
            "command": command,
        } | provenance()

    def require(
        self,
        build: Callable[[], nn.Module],
        rows: int,
        length: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Refuse a training that the machine cannot do, before any work.

        Args:
            build: makes the objective; called with fake tensors, which take no memory.
            rows: rows of an item.
            length: samples or codes per row.
            dtype: type of an item.

        Raises:
            ValueError: the batch size does not divide among items and processes, or the workers
                or the training need more memory than there is.
        """
        blank = _Blank(rows, length, dtype)
        self._batches(blank, 1)  # raises if the batch size does not divide
        own = self.train.batch_size // self.fabric.world_size
        batch = self.settings.batch
        crops = rows if batch == "auto" else own if batch is None else batch
        parts = parts_of_batch(own // rows, rows, crops)
        self._batches(blank, parts).require_shared_memory(loaders=2)  # training and validation
        on_cpu = self.fabric.device.type == "cpu"
        require_memory(
            build,
            # Two items: an objective may need an even number of crops.
            lambda: torch.cat([blank[0], blank[1]]),
            own // parts,
            self.fabric.device,
            processes=self.local_size if on_cpu else 1,
            averaged=self.optim.ema_decay > 0,
            moments=1 / self.fabric.world_size if self.settings.shard_optimizer else 1.0,
            mixed=self.settings.precision != "32",
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
        """Train `objective` and print the final losses in one line; see `Trainer`.

        Args:
            objective: maps a batch to its loss.
            model: the part of `objective` to save.
            items: training items.
            validation: makes the validation items; a ValueError switches validation off.
            meta: content of meta.json besides the progress.
            collapse: watches the codebook's use.
            media: makes audio clips of a validation batch for the trackers.
        """
        settings = self.settings
        parts = self._parts(objective, items)
        full_meta = {**meta, "parts": parts}
        batches, held_out = self._batches(items, parts), self._validation(validation, parts)
        if self.fabric.is_global_zero:
            begin_run(settings.output, full_meta)
        tracker = self._tracker(meta)
        trainer = Trainer(
            self.fabric,
            self.optim,
            self.train,
            settings.output,
            meta=full_meta,
            tracker=tracker,
            max_seconds=settings.max_seconds,
            collapse=collapse,
            media=media,
            snapshots=Snapshots(settings.output, settings.keep, best=settings.best),
            sharded=settings.shard_optimizer,
        )
        if settings.compile:
            compile_layers(model)
        try:
            result = trainer.fit(
                objective, model, batches, held_out, samples_per_epoch=items.samples
            )
        finally:
            tracker.close()
        if self.fabric.is_global_zero:
            losses = [f"{split} loss {m['loss']:.4f}" for split, m in result.metrics.items()]
            print(f"{settings.output}: {', '.join([f'step {result.step}', *losses])}")

    def _parts(self, objective: nn.Module, items: Items) -> int:
        """Number of parts in which each process computes its share of a batch."""
        batch, own = self.settings.batch, self.train.batch_size // self.fabric.world_size
        if batch is None:
            return 1
        if batch == "auto":
            # A continued run keeps its parts: the codebook is updated after each.
            output = self.settings.output
            if (output / STATE).is_file():
                parts: Any = load_meta(output).get("parts")
                require(f"{output / META}: parts", parts, whole=True, at_least=1)
                return parts
            objective.to(self.fabric.device)
            # Processes share the host's memory; each has its own GPU.
            sharing = self.local_size if self.fabric.device.type == "cpu" else 1
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
        """Validation batches; None, with a warning, if no validation song is usable."""
        try:
            return self._batches(build(), parts)
        except ValueError as error:
            print(f"warning: nothing to validate on ({error})", file=sys.stderr)
            return None

    def _tracker(self, meta: Mapping[str, Any]) -> Tracker:
        """CSV, terminal and W&B on the first process; nothing on the others."""
        if not self.fabric.is_global_zero:
            return Tracker()
        folder = self.settings.output
        folder.mkdir(parents=True, exist_ok=True)
        return Tracker(
            [
                CsvTracker(folder),
                AudioTracker(folder, self.settings.keep_media),
                ConsoleTracker(folder.name),
                WandbTracker(folder, self._wandb, meta),
            ]
        )
