"""Batches of a run: training step s reads the same items with any number of processes.

A resumed run starts at its step.
"""

from __future__ import annotations

import multiprocessing.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jukebox_core.checks import require
from jukebox_core.datasets.bad_files import warn_on_stderr
from jukebox_core.machine import available_cores

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only its free space is read
"""Linux keeps the memory that processes share here."""
PREFETCHED = 2
"""Batches that each worker prepares ahead (PyTorch's default)."""


class Items(Protocol):
    """A map-style data set of endless items [R, length]."""

    rows: int

    def __getitem__(self, index: int) -> Tensor:
        """Item `index`, the same on every call."""
        ...


class TrainingItems(Items, Protocol):
    """Items of which `samples` samples are an epoch."""

    @property
    def samples(self) -> int:
        """Samples of all songs."""
        ...


def collate(items: Sequence[Tensor]) -> Tensor:
    """Join items [R, ...] to a batch [R * B, ...]: all first rows, then all second, and so on."""
    return torch.stack(list(items), dim=1).flatten(0, 1)


@dataclass(frozen=True)
class Batches:
    """The batches of a run, in an order that depends only on the step.

    One optimiser step is `accumulate` batches on each of `processes` processes; together they hold
    `batch_size` rows and read the items `step * n` to `(step + 1) * n - 1`, n = batch_size / R.

    Raises:
        ValueError: `batch_size` does not divide in this way, or the machine has too few cores for
            the workers.
    """

    items: Items
    batch_size: int
    processes: int = 1
    rank: int = 0
    accumulate: int = 1
    workers: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        cores = available_cores()
        hint = f"this machine has {cores} cores"
        most = max(16, 4 * cores)
        require("workers", self.workers, whole=True, at_least=0, at_most=most, hint=hint)
        unit = self.items.rows * self.processes * self.accumulate
        if self.batch_size < 1 or self.batch_size % unit:
            raise ValueError(
                f"batch size {self.batch_size} does not divide into {self.items.rows} rows per "
                f"item x {self.processes} processes x {self.accumulate} accumulated batches; "
                f"expected a multiple of {unit}"
            )

    @property
    def items_per_step(self) -> int:
        """Items of one optimiser step, over all processes."""
        return self.batch_size // self.items.rows

    def indices(self, start: int, stop: int) -> Iterator[list[int]]:
        """The items of every batch of this process from step `start` to step `stop - 1`."""
        count = self.items_per_step
        parts = self.processes * self.accumulate
        for step in range(start, stop):
            whole = range(step * count, (step + 1) * count)
            for part in range(self.rank, parts, self.processes):
                yield list(whole[part::parts])

    def steps(
        self, start: int, stop: int, warn: Callable[[str], None] = warn_on_stderr
    ) -> Iterator[Tensor]:
        """The batches [R * B, ...] of this process, `accumulate` of them per step.

        Args:
            start: first step.
            stop: the step after the last.
            warn: called in this process, once for every unreadable file.

        Raises:
            ValueError: the shared memory is too small for the workers' batches. While reading: an
                item is unreadable, or more than a tenth of the songs.
        """
        self.require_shared_memory()
        loader: DataLoader[_Loaded] = DataLoader(
            _Batch(self.items),
            sampler=self.indices(start, stop),  # lazy: all indices may not fit in memory
            batch_size=None,  # the sampler's elements are batches
            collate_fn=_as_it_is,
            num_workers=self.workers,
            prefetch_factor=PREFETCHED if self.workers else None,
            pin_memory=self.pin_memory,
            # Without its own generator, the loader would draw from the global one: a resumed run
            # would then differ from an uninterrupted one.
            generator=torch.Generator(),
        )
        if self.workers:
            # The workers put their sockets into this process's folder. One that ends too late is
            # killed, and would leave a folder of its own.
            multiprocessing.util.get_temp_dir()
        # Start the workers here and not with the first batch: they must not inherit what the
        # caller changes in between, such as signal handlers.
        return self._unpacked(iter(loader), warn)

    def require_shared_memory(self, loaders: int = 1) -> None:
        """Refuse workers whose batches do not fit in shared memory; a bus error would kill them.

        Args:
            loaders: number of data loaders of this size that run at the same time.

        Raises:
            ValueError: the memory is too small; the message has both sizes.
        """
        if not self.workers or not SHARED_MEMORY.is_dir():
            return
        rows = self.batch_size // (self.processes * self.accumulate)
        batch = rows * self.items[0][0].nbytes
        # One batch is in use; the others wait.
        needed = loaders * self.processes * (self.workers * PREFETCHED + 1) * batch
        free = shutil.disk_usage(SHARED_MEMORY).free
        if needed > free:
            raise ValueError(
                f"workers is {self.workers}: the batches that they prepare take "
                f"{needed / 1e6:,.1f} MB of {SHARED_MEMORY}, which has {free / 1e6:,.1f} MB free; "
                "use fewer workers or smaller batches, or enlarge it (docker run --shm-size)"
            )

    def _unpacked(self, loaded: Iterator[_Loaded], warn: Callable[[str], None]) -> Iterator[Tensor]:
        bad_files = getattr(self.items, "bad_files", None)
        try:
            for batch, files in loaded:
                if bad_files is not None:
                    bad_files.learn(files)
                    for message in bad_files.news():
                        warn(message)
                    bad_files.check()
                if isinstance(batch, ValueError):
                    raise batch
                yield batch
        finally:
            del loaded  # end the workers now; a traceback would keep them alive


class _Loaded(NamedTuple):
    """A batch, or the error that prevents it, and the bad files of the process that made it."""

    batch: Tensor | ValueError
    files: dict[str, tuple[str, str]]


class _Batch(Dataset[_Loaded]):
    """Maps the indices of items to their batch.

    It returns errors: raised in a worker, they would arrive as the text of a traceback.
    """

    def __init__(self, items: Items):
        self._items = items

    def __getitem__(self, indices: list[int]) -> _Loaded:
        batch: Tensor | ValueError
        try:
            batch = collate([self._items[index] for index in indices])
        except ValueError as error:
            batch = error
        bad_files = getattr(self._items, "bad_files", None)
        # Copy: a queue serialises it later, in another thread.
        return _Loaded(batch, dict(bad_files.files) if bad_files else {})


def _as_it_is(loaded: Any) -> Any:
    return loaded
