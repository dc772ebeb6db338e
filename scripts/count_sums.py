"""Count code triples (first source, second source, mixture) for LASS and the hybrid.

    python -m scripts.count_sums --vqvae RUN --data DIR --output FILE
    python -m scripts.count_sums --merge PART1 PART2 --output FILE
    torchrun --nproc-per-node 4 -m scripts.count_sums --vqvae RUN --data DIR --output FILE
    mpiexec -n 4 python -m scripts.count_sums --vqvae RUN --data DIR --output FILE

FILE is MODELS/reconstruction/counts.safetensors for LASS and
MODELS/linearisation/counts.safetensors for the hybrid. Only training songs are counted.

More than two sources are added up one by one, in the order of their names, and every sum has a
table: counts_2.safetensors of the first two, and so on; FILE is that of the mixture.

Memory use does not depend on --iterations. Several processes share the iterations, each on
its own GPU or its share of the cores; the result is the same as with one process, byte for byte.
After an interruption the same command continues from the last flush (a folder beside the output
holds the partial counts), with any number of processes; with more --iterations it continues a
finished file. Unconnected machines count parts, each with another --seed; --merge adds them up.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from tqdm import tqdm

from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.checks import require_fields
from jukebox_core.datasets.manifest import Manifest, Track, load_manifest
from jukebox_core.locks import sole_writer
from jukebox_core.machine import free_bytes, pick_device, set_threads
from jukebox_core.separation.partial_sums import Step, steps_of, table_of_step, tables_of
from jukebox_core.training.ranks import Ranks
from jukebox_core.vqvae.model import VQVAE
from lass.counter import BUFFER, TripleCounter, check_spool
from lass.counts import CountsFile, check_output, merge_counts, mergeable, sources_of
from lass.triples import KEPT, PairCounting, Triples
from scripts._cli import program

_RUNS = 16
"""Largest number of run files per iteration; a tiny buffer would write a file per triple."""
_ROUND = 4
"""Iterations of each of several processes between two exchanges."""


@dataclass(frozen=True)
class Args:
    """Flags of scripts.count_sums."""

    output: Path
    """File to write the counts to."""
    vqvae: Path | None = None
    """Run folder of the codec; needed to count."""
    data: Path | None = None
    """Prepared data set, whose training split is counted; needed to count."""
    iterations: int = 1000
    """Number of iterations, each over `pairs` pairs of crops."""
    counting: tyro.conf.OmitArgPrefixes[PairCounting] = field(default_factory=PairCounting)
    buffer: int = BUFFER
    """Triples that the first process holds in memory."""
    kept: int = KEPT >> 20
    """Code cache per process, in MiB; crops that do not fit are encoded again each time."""
    flush_seconds: float = 20.0
    """Seconds between two flushes to disk; a crash loses the counts since the last one."""
    max_seconds: float | None = None
    """Stop after this many seconds and write the counts so far; the same command continues."""
    merge: tuple[Path, ...] = ()
    """Count files to add up, instead of counting."""
    device: str = "auto"
    """auto, cpu, cuda or mps; each of several processes uses its own GPU."""
    threads: int | None = None
    """CPU threads; without it all cores, divided among the processes of the machine."""

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
    """Codec, songs, sum, metadata and file of a count."""

    codec: VQVAE
    tracks: list[Track]
    step: Step
    metadata: dict[str, str]
    output: Path


@program
def main(args: Args) -> None:
    """Count, or merge."""
    ranks = Ranks()
    if args.merge:
        reports = ranks.on_first(lambda: _merge(args.merge, args.output))
        if ranks.rank == 0:
            print(*reports, sep="\n", flush=True)
        return
    set_threads(args.threads, ranks.local_size)
    tasks = ranks.together(lambda: _open(args, ranks.device(args.device)))
    began = time.monotonic()
    for task in tasks:
        report = _count(args, task, ranks, began)
        if ranks.rank == 0:
            print(report, flush=True)


def _merge(files: Sequence[Path], output: Path) -> list[str]:
    """Add up the files of every sum; return a report in one line for each."""
    plan = {}
    for name in tables_of(output.name, len(sources_of(files[0]))):
        target = output.with_name(name)
        suffix = target.stem.removeprefix(output.stem)
        plan[target] = [file.with_stem(file.stem + suffix) for file in files]
    for target, parts in plan.items():
        mergeable(parts, target)  # nothing is written unless all can be
    return [
        f"{target}: {merge_counts(parts, target)} triples of {len(files)} files"
        for target, parts in plan.items()
    ]


def _count(args: Args, task: Task, ranks: Ranks, began: float) -> str:
    """Count on all ranks, add up on the first; return a report in one line."""
    with ExitStack() as stack:
        total = ranks.together(
            lambda: Total.open(args, task, stack, began) if ranks.rank == 0 else None
        )
        start = ranks.broadcast(total.counter.iterations if total else None)
        if start is None:
            return f"{task.output}: already counted"
        draws = args.counting.iterate(
            task.codec,
            task.tracks,
            dict(zip(task.step.names, task.step.weights, strict=True)),
            start + ranks.rank,
            args.iterations,
            step=ranks.size,
            kept=args.kept << 20,
            parts={task.step.names[0]: task.step.first},
        )
        while _round(total, draws, ranks):
            pass
        return ranks.on_first(lambda: total.write(task.metadata) if total else "")


def _round(total: Total | None, draws: Iterator[Triples], ranks: Ranks) -> bool:
    """Add a few iterations of every rank on the first; return whether more remain."""
    size = _ROUND if ranks.size > 1 else 1
    counted = ranks.gather(ranks.together(lambda: list(islice(draws, size))))
    return ranks.on_first(lambda: total is not None and total.add(counted))


class Total:
    """The counts of all ranks, added up by the first one."""

    def __init__(
        self,
        args: Args,
        counter: TripleCounter,
        bar: tqdm[Any],
        output: Path | None = None,
        began: float | None = None,
    ):
        """Write to `output`, by default the one of the flags; `began`: when the program did."""
        self.counter = counter
        self._args = args
        self._output = output or args.output
        self._program_began = time.monotonic() if began is None else began
        self._before = counter.triples
        self._left = args.iterations - counter.iterations
        self._began = self._flushed = time.monotonic()
        self._bar = bar

    @classmethod
    def open(cls, args: Args, task: Task, stack: ExitStack, began: float) -> Total | None:
        """Continue an earlier count or start; None: it is finished.

        `stack` closes the lock of the output and the progress bar. `began`: when the program did.
        """
        spool = spool_of(task.output)
        stack.enter_context(sole_writer(task.output))
        finished = _finished(task.output, task.metadata)
        counter = TripleCounter(
            task.codec.config.l_bins, spool, buffer=args.buffer, settings=task.metadata
        )
        done = finished.iterations if finished else 0
        if done == args.iterations:
            if counter.iterations <= done:  # killed after it wrote the file
                counter.close()
            return None
        if max(done, counter.iterations) > args.iterations:
            raise ValueError(
                f"{max(done, counter.iterations)} iterations are already counted for "
                f"{task.output}: ask for as many or more, or delete it and {spool}"
            )
        if finished and not counter.iterations:
            counter.adopt(finished)
        bar = tqdm(
            total=args.iterations, initial=counter.iterations, unit="iteration", disable=None
        )
        return cls(args, counter, stack.enter_context(bar), task.output, began)

    def add(self, counted: list[list[Triples]]) -> bool:
        """Add the iterations `counted[rank]` of every rank; return whether more remain.

        They are added in order, so that a flush leaves no gaps.
        """
        for turn in zip_longest(*counted):
            for codes in filter(None, turn):
                self.counter.add(*codes)
                self._bar.update()
                self._left -= 1
        now = time.monotonic()
        most = self._args.max_seconds
        if most is not None and now - self._program_began >= most:
            return False
        if now - self._flushed >= self._args.flush_seconds:
            self.counter.flush()
            self._flushed = now
        return self._left > 0

    def write(self, metadata: dict[str, str]) -> str:
        """Write the file, remove the spool and return a report."""
        self._bar.close()
        counter, output = self.counter, self._output
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
    """The folder of an unfinished count, on the disk of its output."""
    return output.with_name(f"{output.name}.spool")


def _open(args: Args, device: str) -> list[Task]:
    """Check the flags; load codec and data; return a task for every sum."""
    if args.vqvae is None or args.data is None:
        raise ValueError("--vqvae and --data are needed to count (or --merge FILE ...)")
    codec = load_codec(args.vqvae, pick_device(device))
    args.counting.check_fits(codec)
    manifest = _open_data(args.data, codec.config.sample_rate)
    tracks, digest = manifest.split("train"), hashlib.sha256()
    for track in tracks:
        line = f"{track.name} {sorted(track.checksums.items())}\n"
        digest.update(line.encode("utf-8", "surrogatepass"))
    tasks = []
    for step in steps_of(manifest.alpha):
        output = args.output.with_name(table_of_step(args.output.name, step.size, step.of))
        check_output(output)
        check_spool(spool_of(output))
        metadata = {
            "codec": fingerprint(args.vqvae),
            "sources": " ".join(step.names),
            "alpha": " ".join(map(repr, step.weights)),
            "counting": f"{args.counting} of {len(tracks)} songs ({digest.hexdigest()[:16]})",
        }
        tasks.append(Task(codec, tracks, step, metadata, output))
    return tasks


def _open_data(folder: Path, sample_rate: int) -> Manifest:
    manifest = load_manifest(folder)
    if len(manifest.sources) < 2:
        names = ", ".join(manifest.sources)
        raise ValueError(f"{folder} has only the source {names}: there are no pairs to count")
    if not manifest.split("train"):
        raise ValueError(f"{folder} has no songs in its train split, nothing to count")
    if manifest.sample_rate != sample_rate:
        raise ValueError(
            f"{folder} is at {manifest.sample_rate} Hz, the codec at {sample_rate}: prepare the "
            f"data at {sample_rate} Hz"
        )
    return manifest


def _finished(output: Path, metadata: dict[str, str]) -> CountsFile | None:
    """The finished counts, if any; counts of anything else are an error."""
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
