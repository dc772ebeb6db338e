"""Separate any audio files into stems.

    python -m scripts.separate song.mp3
    python -m scripts.separate --method hybrid --models runs/demo/models --output out song.mp3
    torchrun --nproc-per-node 4 -m scripts.separate --models ... --output out album/
    mpiexec -n 4 python -m scripts.separate --models ... --output out album/

Writes OUTPUT/SONG/SOURCE.wav for every file, of any length, with the rate, length and channel count
of the input. Each stem is the masked mixture, and the stems sum to the mixture; --no-refine writes
the decode of one candidate instead. A folder stands for all audio files in it. Several processes
share the files. Files that fail are reported at the end; a second run skips finished files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from tqdm import tqdm

from jukebox_core.audio.stream import open_audio
from jukebox_core.checkpoints import fingerprint, provenance
from jukebox_core.checks import printable, require_fields
from jukebox_core.files import atomic_folder, check_owned
from jukebox_core.locks import sole_writer
from jukebox_core.machine import set_threads
from jukebox_core.neural.method import RUN
from jukebox_core.prior.joint import Precision
from jukebox_core.separation.files import check_input, write_stems
from jukebox_core.separation.jobs import (
    Failure,
    Job,
    assign,
    check_same_song,
    failure_of,
    find_jobs,
    identify_input,
    identify_models,
    is_finished,
    owned_files,
    write_record,
)
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import QualityName, Settings
from jukebox_core.training.ranks import Ranks
from scripts._cli import program
from scripts._methods import METHODS, MethodFlag, method_of, shipped_models


@dataclass(frozen=True)
class Args:
    """Flags of scripts.separate."""

    mixtures: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MIXTURE")]
    """Audio files: wav, flac, mp3, ogg, aiff (others through ffmpeg); or folders of them."""
    models: Path | None = None
    """Folder of trained models; default: those that ship with the package."""
    sources: tuple[str, ...] | None = None
    """Which of the models that ship: bass drums other, for whole songs, or bass drums, for songs
    of these only; default: the first that have the method."""
    output: Path = Path("stems")
    """Folder to write OUTPUT/NAME/SOURCE.wav to."""
    method: MethodFlag = "auto"
    """Separation method; auto: the best one that the models have the parts of."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    quality: QualityName = "default"
    """Effort: candidates, and shifts of the windows, where neither are given."""
    candidates: int | None = None
    """Joint candidates per window; default: the number of the models' preset."""
    refine: bool = True
    """Mask the mixture with the candidates; otherwise write the raw decode of one candidate."""
    format: Literal["wav", "flac"] = "wav"
    """Format of the stems: wav is 32-bit float; flac is 24-bit and clips beyond full scale."""
    precision: Precision = "auto"
    """Precision of the priors; auto: bfloat16 or float16 where it is faster; int8, on a CPU
    with AVX2: faster than float32, less precise."""
    window: int | None = None
    """Codes per window; default: the number of the models' preset."""
    batch: int | Literal["auto"] = "auto"
    """Windows sampled together; auto: as many as fit in memory."""
    overwrite: bool = False
    """Separate finished files again, and replace the stems of another song of the same name."""
    seed: int = 0
    """Random seed for sampling."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps; with several processes, each takes its own GPU."""
    threads: int | None = None
    """CPU threads; default: all cores, divided among the processes of a machine."""

    def __post_init__(self) -> None:
        """Refuse values out of range for any models."""
        require_fields(self, "candidates", "window", optional=True, whole=True, at_least=1)
        if self.batch != "auto":
            require_fields(self, "batch", whole=True, at_least=1, hint="or auto")


_NOT_SETTINGS = {
    *("mixtures", "models", "sources", "output", "batch", "overwrite", "device", "threads")
}
"""Flags that the stems do not depend on."""


class Plan(NamedTuple):
    """The work of each process.

    models: their folder. identity: settings and models of the results. done: finished files, which
    are skipped. refused: files that cannot be separated. shares: the files of every rank.
    """

    models: Path
    identity: dict[str, Any]
    done: list[Job]
    refused: list[Failure]
    shares: list[list[Job]]


@program
def main(args: Args) -> int:
    """Separate every file; missing ones are refused before any work, others reported at the end."""
    ranks = Ranks()
    plan = ranks.on_first(lambda: make_plan(args, ranks.size))
    set_threads(args.threads, ranks.local_size)
    if ranks.rank == 0:
        for job in plan.done:
            done = f"{job.path}: finished in {job.folder} (--overwrite to separate it again)"
            print(printable(done))
    failures: list[Failure | None] = []
    if any(plan.shares):
        separator = ranks.together(
            lambda: METHODS[method_of(args.method, plan.models)].load_separator(
                plan.models,
                args.settings,
                ranks.device(args.device),
                candidates=args.candidates,
                quality=args.quality,
                window=args.window,
                precision=args.precision,
            )
        )
        batch = separator.fitting_batch(ranks.local_size) if args.batch == "auto" else args.batch
        worker = Worker(separator, plan.identity, args, batch, ranks.local_rank)
        failures = [worker.attempt(job) for job in plan.shares[ranks.rank]]
    failed = [failure for each in ranks.gather(failures) for failure in each if failure]
    failed += plan.refused
    if ranks.rank == 0:
        for failure in sorted(failed):
            print(f"error: {printable(failure.message)}", file=sys.stderr, flush=True)
    ranks.gather(None)  # a rank that ends with an error ends the others: wait for the messages
    return 1 if failed else 0


def make_plan(args: Args, ranks: int) -> Plan:
    """Who separates what.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a setting without effect, or sources that no models that ship have.
    """
    if args.models is not None and args.sources is not None:
        raise ValueError("sources choose among the models that ship: leave out models or sources")
    folder = args.models or shipped_models(args.method, args.sources, args.settings)
    jobs, refused = find_jobs(args.mixtures, args.output)
    settings = {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}
    settings["method"] = method_of(args.method, folder)
    method = METHODS[settings["method"]]
    full = method.resolve(args.settings, folder, refine=args.refine)
    settings["settings"] = vars(full)
    unused = {RUN} - set(method.runs())
    models = identify_models(folder / method.family, unused)
    beside = method.runs_beside(folder, full) if args.refine else {}
    models |= {name: fingerprint(run) for name, run in beside.items()}
    identity = {"settings": settings, "models": models}
    done = [] if args.overwrite else [job for job in jobs if is_finished(job, identity)]
    left = [job for job in jobs if job not in set(done)]
    return Plan(folder, identity, done, refused, assign(left, ranks))


@dataclass(frozen=True)
class Worker:
    """Separates files, one after the other.

    batch: windows sampled together. line: of the terminal, for the progress.
    """

    separator: Separator
    identity: dict[str, Any]
    args: Args
    batch: int
    line: int

    def attempt(self, job: Job) -> Failure | None:
        """Separate one file; what went wrong, if anything, for the end."""
        try:
            with sole_writer(job.folder):
                print(printable(self.separate(job)), flush=True)
        except Exception as error:  # of a bug too: the other files go on
            return failure_of(job.path, error)
        return None

    def separate(self, job: Job) -> str:
        """Write the stems of one file, all or none of them, and say what was done.

        Nothing is left to do if another process did it since this one began.

        Raises:
            ValueError: it is not audio, damaged, empty, not finite, or silent throughout.
            FileExistsError: its folder holds files that no former run wrote, or, without
                `overwrite`, the stems of another song.
        """
        if not self.args.overwrite:
            if is_finished(job, self.identity):
                return f"{job.path}: finished in {job.folder}"
            check_same_song(job)
        owned = owned_files(job.folder)
        check_owned(job.folder, owned)
        with open_audio(job.path) as reader:
            summary = check_input(reader)
            if reader.warning:
                print(f"warning: {printable(reader.warning)}", file=sys.stderr, flush=True)
            start = time.perf_counter()
            names = {name: f"{name}.{self.args.format}" for name in self.separator.sources}
            with atomic_folder(job.folder, owned) as temporary:
                paths = {source: temporary / name for source, name in names.items()}
                lasts = summary.frames / reader.rate
                if not sys.stderr.isatty():  # where there is no progress bar either
                    print(f"{printable(job.path)}: separating {lasts:.1f} s of audio", flush=True)
                with progress_bar(printable(job.path.name), lasts, self.line) as bar:
                    write_stems(
                        self.separator,
                        reader,
                        summary.frames,
                        paths,
                        seed=self.args.seed,
                        refine=self.args.refine,
                        batch=self.batch,
                        progress=_advance(bar),
                    )
                took = time.perf_counter() - start
                write_record(
                    temporary,
                    self.identity,
                    input=identify_input(job.path),
                    stems=list(names.values()),
                    audio=summary._asdict() | {"rate": reader.rate, "channels": reader.channels},
                    separator=self.separator.settings | {"device": str(self.separator.device)},
                    run={"batch": self.batch, "seconds": took, "real_time": lasts / took},
                    **provenance(),
                )
        written = ", ".join(str(job.folder / name) for name in names.values())
        return f"{job.path} -> {written} ({lasts:.1f} s of audio in {took:.1f} s)"


def progress_bar(name: str, seconds: float, line: int = 0) -> tqdm[Any]:
    """Seconds of audio done, and the time left; nothing where there is no terminal."""
    layout = "{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    return tqdm(
        desc=name, total=seconds, bar_format=layout, disable=None, leave=False, position=line
    )


def _advance(bar: tqdm[Any]) -> Callable[[int, int], None]:
    def advance(done: int, total: int) -> None:
        bar.update((bar.total or 0) * done / total - bar.n)

    return advance


if __name__ == "__main__":
    sys.exit(main())
