"""The training loop for all models, on Lightning Fabric, in one or many processes.

An objective is an `nn.Module` whose `forward(batch, generator)` returns an `ObjectiveOutput`. A run
that is interrupted and continued ends, on the CPU, with the same bits as an uninterrupted one.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from jukebox_core.checkpoints import (
    STATE,
    WEIGHTS,
    Snapshots,
    first_nonfinite,
    load_state,
    save_model,
    save_state,
)
from jukebox_core.checks import one_line, require
from jukebox_core.config import OptimConfig, TrainConfig
from jukebox_core.datasets.bad_files import warn_on_stderr
from jukebox_core.datasets.batches import Batches
from jukebox_core.training.audio_logging import Clips
from jukebox_core.training.distributed import (
    Signals,
    generator_states,
    seed_everything,
    set_generator_states,
)
from jukebox_core.training.optim import (
    WeightAverage,
    build_optimizer,
    learning_rate,
    load_optimizer,
)
from jukebox_core.training.ranks import gather
from jukebox_core.training.tracking import Tracker

NONFINITE_LIMIT = 10
"""Training ends after this many consecutive steps without a finite gradient."""
TIMINGS = ("steps_per_second", "crops_per_second", "gpu_memory_gb")
"""Metrics of the machine, which differ between identical trainings."""


_PROGRESS = ("step", "elapsed", "nonfinite", "count", "metrics")


class Result(NamedTuple):
    """The last step of a run, and the last metrics {split: {metric: value}}."""

    step: int
    metrics: dict[str, dict[str, float]]


@dataclass
class CollapseWatch:
    """Warns once when a codec uses less than `share` of its codes for `patience` logs in a row."""

    n_codes: int
    share: float = 0.05
    patience: int = 10
    low: int = 0
    """Number of such logs so far."""

    def __call__(self, metrics: Mapping[str, float]) -> str | None:
        """The warning, at the log that exhausts the patience; else None."""
        least = self.share * self.n_codes
        self.low = self.low + 1 if metrics.get("usage", math.inf) < least else 0
        if self.low != self.patience:
            return None
        return (
            f"the codebook has collapsed: {metrics['usage']:.0f} of {self.n_codes} codes are in "
            "use; lower the learning rate or the commitment weight, or use fewer codes"
        )


@dataclass
class Trainer:
    """Trains one objective in one run folder."""

    fabric: Fabric
    """Devices, precision, processes; launched."""
    optim: OptimConfig
    train: TrainConfig
    folder: Path
    """The run folder."""
    meta: Mapping[str, Any]
    """Entries of meta.json besides step, metrics, elapsed and finished."""
    tracker: Tracker | None = None
    """Receives the metrics; used only on the first process."""
    max_seconds: float | None = None
    """Stop after this training time, summed over all starts of the run."""
    collapse: CollapseWatch | None = None
    """Watches the training metrics of every log."""
    media: Callable[[Tensor], Iterable[Clips]] | None = None
    """Makes audio clips of the first validation batch."""
    snapshots: Snapshots | None = None
    """Keeps weights of earlier steps."""
    sharded: bool = False
    """Each process keeps the optimiser state of only its share of the parameters."""

    def __post_init__(self) -> None:
        first = self.fabric.is_global_zero
        self._tracker = (self.tracker if first else None) or Tracker()
        # Every process reads other songs, so each reports its own bad files.
        self._warn = self._tracker.warn if first else warn_on_stderr
        self._media = self.media if first else None
        self._snapshots = self.snapshots or Snapshots(self.folder)
        self._sharded = self.sharded and self.fabric.world_size > 1
        self._step = self._saved = 0
        self._validated = -1
        self._due = False
        self._elapsed = 0.0
        self._nonfinite = 0
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._metrics: dict[str, dict[str, float]] = {}
        self._busy = 0.0
        self._timed_steps = 0

    def fit(
        self,
        objective: nn.Module,
        model: nn.Module,
        batches: Batches,
        validation: Batches | None = None,
        *,
        samples_per_epoch: int,
    ) -> Result:
        """Train to the last step, from the state in the run folder if there is one.

        Args:
            objective: maps batches to losses; all its parameters are trained.
            model: the part of the objective to write to weights.safetensors.
            batches: training batches.
            validation: validation batches, of which the first `validate_batches` steps count.
            samples_per_epoch: samples of the training songs, to log epochs.

        Raises:
            ValueError: the weights or the loss are not finite (the last checkpoint stays), or the
                stored state is damaged.
            SystemExit: SIGTERM (143) or Ctrl-C (130), after a checkpoint.
        """
        self._setup(objective, model)
        self._batches, self._validation = batches, validation
        self._items_per_step = batches.items_per_step
        self._epochs_per_step = batches.items_per_step * self.train.crop / samples_per_epoch
        if (self.folder / STATE).is_file():
            self._resume()
        self._tracker.start(self._step, self.train.steps)
        data = batches.steps(self._step, self.train.steps, self._warn)
        before, began = self._elapsed, time.monotonic()
        with Signals() as signals:
            while self._step < self.train.steps and not self._out_of_time():
                started = time.monotonic()
                self._one_step(data)
                self._busy += time.monotonic() - started
                self._timed_steps += 1
                received, self._elapsed = self._agree(
                    signals.received, before + time.monotonic() - began
                )
                self._after_step(stopping=received is not None)
                if received is not None:
                    raise self._interrupted(received)
        return Result(self._step, self._metrics)

    def _setup(self, objective: nn.Module, model: nn.Module) -> None:
        fabric, optim = self.fabric, self.optim
        self._model = model
        self._scaler = getattr(fabric.strategy.precision, "scaler", None)
        objective.to(fabric.device)
        # The fused kernel unscales by itself, which rules out clipping under a loss scale.
        fused = self._scaler is None and fabric.device.type != "mps"
        self._state_of = build_optimizer(objective, optim, fused=fused, sharded=self._sharded)
        self._objective, self._optimizer = fabric.setup(objective, self._state_of)
        self._bare = objective
        self._average = WeightAverage(objective, optim.ema_decay)
        self._generator = torch.Generator().manual_seed(self.train.seed)
        self._objective.train()

    def _one_step(self, data: Iterator[Tensor]) -> None:
        """Forward, backward, update; the step counts even if its gradient is not finite."""
        fabric, train, accumulate = self.fabric, self.train, self._batches.accumulate
        position = train.steps * self._elapsed / self.max_seconds if self.max_seconds else 0.0
        rate = learning_rate(self.optim, self._step, train.steps, position)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        buffers = [buffer.clone() for buffer in self._bare.buffers()]
        metrics: dict[str, Tensor] = {}
        for part in range(accumulate):
            batch = self._last_batch = fabric.to_device(next(data))
            with fabric.no_backward_sync(self._objective, enabled=part < accumulate - 1):
                output = self._objective(batch, self._generator)
                fabric.backward(output.loss / accumulate)
            for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
                metrics[name] = metrics.get(name, 0.0) + value.float() / accumulate
        norm = fabric.clip_gradients(
            self._objective,
            self._optimizer,
            max_norm=self.optim.grad_clip or math.inf,
            error_if_nonfinite=False,
        )
        metrics["grad_norm"] = cast(Tensor, norm)
        if self._finite(metrics["loss"] + metrics["grad_norm"]):
            self._optimizer.step()
            self._average.update(self._step)
            self._nonfinite = 0
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._count += 1
        else:
            self._skip(buffers)
        self._last_loss = metrics["loss"].detach()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1

    def _finite(self, value: Tensor) -> bool:
        """Whether a number is finite on all processes."""
        return not self._over_processes((~torch.isfinite(value)).float()).item()

    @torch.no_grad()
    def _skip(self, buffers: list[Tensor]) -> None:
        """Undo the forward pass's update of the codebooks; give up at `NONFINITE_LIMIT`."""
        for buffer, before in zip(self._bare.buffers(), buffers, strict=True):
            buffer.copy_(before)
        if self._scaler is not None:
            self._optimizer.step()  # the scaler skips the step and lowers the loss scale
        self._nonfinite += 1
        if self._nonfinite >= NONFINITE_LIMIT:
            raise self._diverged(
                f"the loss or its gradient was not finite for {self._nonfinite} steps in a row, up "
                f"to step {self._step + 1}"
            )
        self._tracker.warn(f"step {self._step + 1} skipped: its loss or gradient is not finite")

    def _diverged(self, reason: str) -> ValueError:
        exists = (self.folder / WEIGHTS).is_file()
        last = f"{self.folder} keeps the last checkpoint" if exists else "there is no checkpoint"
        return ValueError(f"{reason}: lower the learning rate, or train in float32 ({last})")

    def _nonfinite_tensor(self) -> str | None:
        """Name of the first parameter, average or buffer that is not finite."""
        names = [name for name, p in self._bare.named_parameters() if p.requires_grad]
        averages = zip(names, self._average.values, strict=False)  # there may be none
        return first_nonfinite([*self._bare.state_dict().items(), *averages])

    @torch.no_grad()
    def _require_finite(self, finished: bool) -> None:
        """Refuse to write weights that are not finite or have a loss that is not.

        Raises:
            ValueError: on all processes, if any of them has such a value.
        """
        broken = self._nonfinite_tensor()
        if not self._finite(torch.tensor(math.nan if broken else 0.0, device=self.fabric.device)):
            raise self._diverged(
                f"the tensor {broken or 'of another process'} is not finite at step {self._step}"
            )
        if self._validated != self._step:
            self._objective.eval()
            with self._average.applied():
                loss = self._objective(self._last_batch, self._generator).loss
            self._objective.train()
            if not self._finite(loss):
                raise self._diverged(f"the loss of the weights of step {self._step} is not finite")
        if finished and self._nonfinite == self._step:
            raise self._diverged(f"none of the {self._step} steps had a finite loss and gradient")
        if finished and not self._finite(self._last_loss):
            raise self._diverged(f"the loss of the last step, {self._step}, is not finite")

    def _out_of_time(self) -> bool:
        return self.max_seconds is not None and self._elapsed >= self.max_seconds

    def _after_step(self, stopping: bool) -> None:
        """Log, validate and write a checkpoint if they are due."""
        train = self.train
        done = self._step >= train.steps or self._out_of_time()
        if self._step % train.log_every == 0 or done:
            self._log_training()
        if self._validation is not None and (self._step % train.validate_every == 0 or done):
            self._validate(self._validation)
        self._due = self._due or self._step % train.checkpoint_every == 0 or stopping
        # Weights without a finite loss must not replace a good checkpoint.
        if done or (self._due and self._finite(self._last_loss)):
            self._checkpoint(finished=done, last=done or stopping)
            self._due = False

    def _log_training(self) -> None:
        if not self._count:
            return
        metrics = self._mean(self._sums, self._count)
        metrics["lr"] = self._optimizer.param_groups[0]["lr"]
        if self._busy:
            rate = self._timed_steps / self._busy
            metrics |= {"steps_per_second": rate, "crops_per_second": rate * self._items_per_step}
        if self.fabric.device.type == "cuda":
            metrics["gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.fabric.device) / 1e9
        warning = self.collapse(metrics) if self.collapse else None
        self._log("train", metrics)
        if warning:
            self._tracker.warn(warning)
        self._sums, self._count = {}, 0
        self._busy, self._timed_steps = 0.0, 0

    @torch.no_grad()
    def _validate(self, validation: Batches) -> None:
        """Log metrics of the averaged weights on the fixed validation batches."""
        sums: dict[str, Tensor] = {}
        count = 0
        self._objective.eval()
        with self._average.applied():
            for batch in validation.steps(0, self.train.validate_batches, self._warn):
                batch = self.fabric.to_device(batch)
                output = self._objective(batch, self._generator)
                for name, value in {"loss": output.loss, **output.metrics}.items():
                    sums[name] = sums.get(name, 0.0) + value.float()
                for clips in self._media(batch) if self._media and not count else ():
                    self._tracker.log_audio(self._step, *clips)
                count += 1
            if count:
                self._log("validation", self._mean(sums, count))
                loss = self._metrics["validation"]["loss"]
                if not math.isfinite(loss):
                    raise self._diverged(f"the validation loss of step {self._step} is {loss}")
                self._validated = self._step
                if self._snapshots.improves(loss) and self.fabric.is_global_zero:
                    meta = self._full_meta(finished=False)
                    error = _failure(lambda: self._snapshots.save_best(self._model, meta))
                    if error:
                        text = f"step {self._step}: the best weights were not written: {error}"
                        self._tracker.warn(text)
        self._objective.train()

    def _mean(self, sums: dict[str, Tensor], count: int) -> dict[str, float]:
        """Means over steps and processes, in one transfer from the device."""
        values = self._over_processes(torch.stack(list(sums.values())) / count)
        return dict(zip(sums, values.tolist(), strict=True))

    def _over_processes(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.fabric.world_size > 1:
            value = cast(Tensor, self.fabric.all_reduce(value))
        return value

    def _log(self, split: str, metrics: dict[str, float]) -> None:
        self._metrics[split] = metrics
        self._tracker.log(self._step, self._step * self._epochs_per_step, split, metrics)

    def _agree(self, received: int | None, elapsed: float) -> tuple[int | None, float]:
        """The signal and the elapsed time, equal on all processes."""
        if self.fabric.world_size == 1:
            return received, elapsed
        own = torch.tensor([float(received is not None), elapsed], device=self.fabric.device)
        anyone, mean = self._over_processes(own).tolist()
        return (received or signal.SIGTERM) if anyone else None, mean

    def _interrupted(self, received: int) -> SystemExit:
        name = signal.Signals(received).name
        there = "there" if self._saved == self._step else f"step {self._saved}"
        if self.fabric.is_global_zero:
            print(
                f"stopped by {name} at step {self._step}; the same command continues from {there}",
                file=sys.stderr,
                flush=True,
            )
        return SystemExit(128 + received)

    def _checkpoint(self, finished: bool, last: bool) -> None:
        """Write a checkpoint; if that fails, training continues, unless it is the last one.

        Raises:
            OSError: the last checkpoint cannot be written.
            ValueError: the weights or their loss are not finite.
        """
        self._require_finite(finished)
        own = {"own": self._generator.get_state()}
        generators = gather(generator_states(self.fabric.device) | own, self.fabric.world_size)
        if self._sharded:
            cast(ZeroRedundancyOptimizer, self._state_of).consolidate_state_dict(0)
        error = None
        if self.fabric.is_global_zero:
            error = _failure(lambda: self._write(self._full_meta(finished), generators))
        self.fabric.barrier()
        if error is None:
            self._saved = self._step
        elif last:
            raise error
        else:
            self._tracker.warn(
                f"no checkpoint at step {self._step}, the last is from step {self._saved}: {error}"
            )

    def _write(self, meta: dict[str, Any], generators: list[dict[str, Any]]) -> None:
        """Write weights and metadata, then the state: a resumed run trusts only the state."""
        with self._average.applied():
            save_model(self.folder, self._model, meta)
            self._snapshots.save_step(
                self._step, lambda folder: save_model(folder, self._model, meta)
            )
        save_state(self.folder, self._state() | {"generators": generators})

    def _full_meta(self, finished: bool) -> dict[str, Any]:
        """meta.json."""
        return dict(self.meta) | {
            "step": self._step,
            "epoch": self._step * self._epochs_per_step,
            "elapsed": self._elapsed,
            "finished": finished,
            "metrics": {
                split: {n: v if math.isfinite(v) else None for n, v in values.items()}
                for split, values in self._metrics.items()
            },
        }

    def _state(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in _PROGRESS} | {
            "sums": self._sums,
            "collapse": self.collapse.low if self.collapse else 0,
            "objective": self._bare.state_dict(),
            "optimizer": self._state_of.state_dict(),
            "least": self._snapshots.least,
            "average": self._average.values,
            "scaler": self._scaler.state_dict() if self._scaler else {},
        }

    def _resume(self) -> None:
        state = load_state(self.folder)
        try:
            _check_progress(state)
            self._bare.load_state_dict(state["objective"])
            load_optimizer(self._state_of, state["optimizer"])
            self._snapshots.least = state["least"]
            self._average.load(state["average"])
            if self._scaler:
                self._scaler.load_state_dict(state["scaler"])
            self._set_generators(state["generators"], state["step"])
            device = self.fabric.device
            self._sums = {name: value.to(device) for name, value in state["sums"].items()}
            for name in _PROGRESS:
                setattr(self, f"_{name}", state[name])
            self._saved = self._step
            if self.collapse:
                self.collapse.low = state["collapse"]
        except (MemoryError, OSError):
            raise
        except Exception as error:  # many types, depending on what is wrong
            reason = one_line(error)[:200]
            raise ValueError(
                f"{self.folder / STATE} does not fit this run ({reason}); delete the folder to "
                "train from scratch"
            ) from error
        if (broken := self._nonfinite_tensor()) is not None:
            raise ValueError(
                f"{self.folder / STATE}: tensor {broken} has NaN or infinite values; delete the "
                "folder to start the training again"
            )

    def _set_generators(self, stored: list[dict[str, Any]], step: int) -> None:
        """Restore the generators; additional processes start new ones."""
        rank = self.fabric.global_rank
        if rank < len(stored):
            set_generator_states(stored[rank], self.fabric.device)
        else:
            seed_everything(hash((self.train.seed, rank, step)) % 2**32)
        self._generator.set_state(stored[min(rank, len(stored) - 1)]["own"])


def _check_progress(state: Mapping[str, Any]) -> None:
    """Raise ValueError unless a state's numbers are such as a run has."""
    for name in ("step", "nonfinite", "count"):
        require(name, state[name], whole=True, at_least=0)
    require("elapsed", state["elapsed"], at_least=0)
    metrics = [value for split in state["metrics"].values() for value in split.values()]
    for value in (state["least"], state["collapse"], *metrics):
        if not isinstance(value, Real):
            raise ValueError(f"a metric is {value!r}, expected a number")
    for name, value in state["sums"].items():
        if value.ndim:
            raise ValueError(f"the sum of {name} is {tuple(value.shape)}, expected a number")


def _failure(write: Callable[[], None]) -> OSError | None:
    """Call `write`; return its error, such as a full disk."""
    try:
        write()
    except OSError as error:
        return error
    return None
