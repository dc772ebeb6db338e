"""Count code triples (first source, second source, mixture) for LASS and the hybrid.

    python -m scripts.count_sums --vqvae RUN --data DIR --output FILE
    python -m scripts.count_sums --merge PART1 PART2 --output FILE
    torchrun --nproc-per-node 4 -m scripts.count_sums --vqvae RUN --data DIR --output FILE
    mpiexec -n 4 python -m scripts.count_sums --vqvae RUN --data DIR --output FILE

FILE is MODELS/reconstruction/counts.safetensors for LASS and
MODELS/linearisation/counts.safetensors for the hybrid. Only training songs are counted.

Memory is bounded whatever the number of iterations. Several processes share the iterations, each on
its own GPU or its share of the cores; the first adds up and writes the same bytes as one would.
Interrupted or killed, the same command goes on where the last flush was (a folder beside the output
holds the runs), with as many processes or with others; with more --iterations it goes on from the
finished file. Machines that cannot reach each other count parts, each with its --seed; --merge adds
them up.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from tqdm import tqdm

from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.checks import require_fields
from jukebox_core.datasets.manifest import Manifest, Track, load_manifest
from jukebox_core.separation.loading import pick_device
from jukebox_core.separation.memory import free_bytes
from jukebox_core.training.distributed import Ranks, set_threads
from jukebox_core.vqvae.model import VQVAE
from lass.counts import (
    BUFFER,
    CountsFile,
    TripleCounter,
    check_output,
    check_spool,
    merge_counts,
)
from lass.triples import KEPT, PairCounting, Triples
from scripts._cli import program

_RUNS = 16
"""Largest number of run files per iteration: a tiny buffer would make a file of each triple."""
_ROUND = 4
"""Iterations of each of several processes before they wait for each other."""


@dataclass(frozen=True)
class Args:
    """Flags of scripts.count_sums."""

    output: Path
    """File to write the counts to."""
    vqvae: Path | None = None
    """Run folder of the codec."""
    data: Path | None = None
    """Prepared data set; its training split is counted."""
    iterations: int = 1000
    """Iterations, each of `pairs` pairs of crops."""
    counting: tyro.conf.OmitArgPrefixes[PairCounting] = field(default_factory=PairCounting)
    buffer: int = BUFFER
    """Triples held in memory by the process that adds up."""
    kept: int = KEPT >> 20
    """MiB of codes that every process keeps; what is beyond is encoded as often as it is drawn."""
    flush_seconds: float = 20.0
    """From one flush to the next: what was counted since the last is lost with a process."""
    max_seconds: float | None = None
    """Write what there is after so long; the same command goes on from there."""
    merge: tuple[Path, ...] = ()
    """Add up these files instead of counting."""
    device: str = "auto"
    """auto, cpu, cuda or mps; several processes take a GPU each."""
    threads: int | None = None
    """CPU threads; default: all cores, shared by the processes of a machine."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        self.counting.check_iterations(self.iterations)
        require_fields(
            self,
            "buffer",
            whole=True,
            at_least=-(-self.counting.triples // _RUNS),
            hint=f"an iteration has {self.counting.triples:,} triples and may fill the buffer "
            f"{_RUNS} times",
        )
        free = free_bytes(torch.device("cpu")) >> 20
        hint = f"MiB; {free:,} are free"
        require_fields(
            self, "kept", whole=True, at_least=0, at_most=max(KEPT >> 20, free), hint=hint
        )
        require_fields(self, "flush_seconds", at_least=0)
        require_fields(self, "max_seconds", at_least=0, optional=True)


class Task(NamedTuple):
    """What is counted, and what is written about it."""

    codec: VQVAE
    tracks: list[Track]
    alpha: Mapping[str, float]
    metadata: dict[str, str]


@program
def main(args: Args) -> None:
    """Count, or merge."""
    ranks = Ranks()
    said = ranks.on_first(lambda: _merge(args)) if args.merge else _count(args, ranks)
    if ranks.rank == 0:
        print(said, flush=True)


def _merge(args: Args) -> str:
    triples = merge_counts(args.merge, args.output)
    return f"{args.output}: {triples} triples of {len(args.merge)} files"


def _count(args: Args, ranks: Ranks) -> str:
    """Count on all ranks, add up on the first; what was done, in one line."""
    set_threads(args.threads, ranks.local_size)
    task = ranks.together(lambda: _open(args, ranks.device(args.device)))
    with ExitStack() as stack:
        total = ranks.together(lambda: Total.open(args, task, stack) if ranks.rank == 0 else None)
        start = ranks.broadcast(total.counter.iterations if total else None)
        if start is None:
            return f"{args.output}: already counted"
        draws = args.counting.iterate(
            task.codec,
            task.tracks,
            task.alpha,
            start + ranks.rank,
            args.iterations,
            step=ranks.size,
            kept=args.kept << 20,
        )
        while _round(total, draws, ranks):
            pass
        return ranks.on_first(lambda: total.write(task.metadata) if total else "")


def _round(total: Total | None, draws: Iterator[Triples], ranks: Ranks) -> bool:
    """A few iterations of every rank, added on the first; whether there is more to do."""
    size = _ROUND if ranks.size > 1 else 1
    mine = ranks.together(lambda: list(islice(draws, size)))
    counted = ranks.gather(mine)
    return ranks.on_first(lambda: total is not None and total.add(counted))


class Total:
    """What all ranks counted, added up by the first one."""

    def __init__(self, args: Args, counter: TripleCounter, bar: tqdm):
        self.counter = counter
        self._args = args
        self._before = counter.triples
        self._left = args.iterations - counter.iterations
        self._began = self._flushed = time.monotonic()
        self._bar = bar

    @classmethod
    def open(cls, args: Args, task: Task, stack: ExitStack) -> Total | None:
        """As far as the counting got before; None: it is finished.

        `stack` gets what is to be closed in the end: the lock of the spool, the progress bar.
        """
        spool = spool_of(args.output)
        stack.enter_context(_locked(spool))
        finished = _finished(args.output, task.metadata)
        counter = TripleCounter(
            task.codec.config.l_bins, spool, buffer=args.buffer, settings=task.metadata
        )
        done = finished.iterations if finished else 0
        if done == args.iterations:
            if counter.iterations <= done:  # of a counting that was killed after it had written
                counter.close()
            return None
        if max(done, counter.iterations) > args.iterations:
            raise ValueError(
                f"{max(done, counter.iterations)} iterations are already counted for "
                f"{args.output}: ask for as many or more, or delete it and {spool}"
            )
        if finished and not counter.iterations:
            counter.adopt(finished)
        bar = tqdm(
            total=args.iterations, initial=counter.iterations, unit="iteration", disable=None
        )
        return cls(args, counter, stack.enter_context(bar))

    def add(self, counted: list[list[Triples]]) -> bool:
        """Add iterations, `counted[rank]` those of a rank; whether there is more to do.

        They are added in their order, so that what a flush makes last has no gaps.
        """
        for turn in zip_longest(*counted):
            for codes in filter(None, turn):
                self.counter.add(*codes)
                self._bar.update()
                self._left -= 1
        now = time.monotonic()
        if self._args.max_seconds is not None and now - self._began >= self._args.max_seconds:
            return False
        if now - self._flushed >= self._args.flush_seconds:
            self.counter.flush()
            self._flushed = now
        return self._left > 0

    def write(self, metadata: dict[str, str]) -> str:
        """Write the file, remove the spool, and say what was done."""
        self._bar.close()
        counter, output = self.counter, self._args.output
        counter.flush()
        distinct = counter.save(output, metadata | {"iterations": str(counter.iterations)})
        counter.close()
        seconds = time.monotonic() - self._began
        return (
            f"{output}: {counter.triples} triples, {distinct.sum()} distinct, "
            f"{(distinct > 0).sum()} of {counter.n_codes} mixture codes, {seconds:.0f} s, "
            f"{(counter.triples - self._before) / seconds:.0f} triples/s"
        )


def spool_of(output: Path) -> Path:
    """The folder of a counting under way, on the disk of its output."""
    return output.with_name(f"{output.name}.spool")


def _open(args: Args, device: str) -> Task:
    """Check the flags; load codec and data."""
    if args.vqvae is None or args.data is None:
        raise ValueError("--vqvae and --data are needed to count (or --merge FILE ...)")
    check_output(args.output)
    check_spool(spool_of(args.output))
    codec = load_codec(args.vqvae, pick_device(device))
    args.counting.check_fits(codec)
    manifest = _open_data(args.data, codec.config.sample_rate)
    metadata = {
        "codec": fingerprint(args.vqvae),
        "sources": " ".join(manifest.sources),
        "alpha": " ".join(repr(manifest.alpha[name]) for name in manifest.sources),
        "counting": f"{args.counting} of {_songs(manifest)}",
    }
    return Task(codec, manifest.split("train"), manifest.alpha, metadata)


def _open_data(folder: Path, sample_rate: int) -> Manifest:
    manifest = load_manifest(folder)
    if len(manifest.sources) != 2:
        names = ", ".join(manifest.sources)
        raise ValueError(f"{folder} has {len(manifest.sources)} sources ({names}), expected two")
    if not manifest.split("train"):
        raise ValueError(f"{folder} has no songs in its train split, which is what is counted")
    if manifest.sample_rate != sample_rate:
        raise ValueError(
            f"{folder} is at {manifest.sample_rate} Hz, the codec at {sample_rate}: prepare the "
            f"data at {sample_rate} Hz"
        )
    return manifest


def _songs(manifest: Manifest) -> str:
    """`84 songs (fingerprint)`: of the training songs' audio."""
    tracks = manifest.split("train")
    digest = hashlib.sha256()
    for track in tracks:
        digest.update(f"{track.name} {sorted(track.checksums.items())}\n".encode())
    return f"{len(tracks)} songs ({digest.hexdigest()[:16]})"


@contextmanager
def _locked(spool: Path) -> Iterator[None]:
    """Keep other processes out of a spool, such as those that outlive the torchrun they had.

    The lock ends with the process, however that ends. Some file systems have none.
    """
    spool.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    folder = os.open(spool, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise ValueError(f"another process counts in {spool}: wait for its end") from error
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(folder)
        with suppress(OSError):  # it is not empty
            spool.rmdir()


def _finished(output: Path, metadata: dict[str, str]) -> CountsFile | None:
    """The counts that are there; those of something else are an error."""
    if not output.exists() or output.stat().st_size == 0:
        return None
    stored = CountsFile(output)
    for name, value in metadata.items():
        if stored.metadata.get(name) != value:
            raise ValueError(
                f"{output} holds counts of another {name} ({stored.metadata.get(name)}, now "
                f"{value}): delete it, or choose another --output"
            )
    return stored


if __name__ == "__main__":
    sys.exit(main())
