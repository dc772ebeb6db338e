"""Separate songs on a page in your browser.

    python -m scripts.app
    python -m scripts.app --models runs/demo/models

Choose a method, hear and see the stems, and download them; scripts.separate writes the same stems.
Only this computer can open the page (--host 0.0.0.0 opens it to the network). Songs and stems stay
on this computer. The page needs gradio: pip install gradio
"""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import tyro

from hybrid import SHIPPED
from jukebox_core.checks import require_fields
from jukebox_core.datasets.excerpts import write_excerpt
from jukebox_core.machine import pick_device, set_threads
from jukebox_core.prior.joint import Precision
from jukebox_core.separation.jobs import find_jobs
from jukebox_core.separation.method import resolve_each
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import QualityName, Settings
from scripts._cli import program
from scripts._methods import METHODS, MethodName, complete_methods, method_of
from scripts.app.jobs import JobQueue, Limits
from scripts.app.uploads import Uploads

_EXAMPLES = 4  # of a folder
_UPLOADS = 40  # songs to keep
_PATIENCE = 30.0  # s that an upload may stand still


@dataclass(frozen=True)
class Args:
    """Flags of scripts.app."""

    models: Path | None = None
    """Folder of trained models, by default those that ship with the package; methods with missing
    parts are not offered."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all who can reach this computer can use the page."""
    names: tuple[str, ...] = ()
    """Further names by which visitors reach the page, such as a proxy's; addresses, localhost and
    this computer's name are known."""
    port: int = 7860
    """Port to listen at."""
    open: bool = False
    """Open the page in the browser."""
    max_seconds: float = 600.0
    """Longest song, in seconds."""
    max_megabytes: float = 100.0
    """Largest file, in megabytes."""
    examples: tuple[Path, ...] = ()
    """Songs to try: audio files, folders, or a prepared data set (part of a test song)."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    quality: QualityName = "default"
    """Effort: candidates, and shifts of the windows, where neither are given."""
    candidates: int | None = None
    """Joint candidates per window; default: the models' preset."""
    precision: Precision = "auto"
    """Precision of the priors; auto: bfloat16 or float16 where it is faster; int8, on a CPU
    with AVX2: faster than float32, less precise."""
    seed: int = 0
    """Random seed for sampling."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: int | None = None
    """CPU threads; default: all cores."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_fields(self, "port", whole=True, at_least=1, at_most=65_535)
        require_fields(self, "max_seconds", above=0)
        require_fields(self, "max_megabytes", above=0, at_most=1_000_000)
        try:
            named = bool(self.host.strip()) and not self.host.isdecimal()  # 0 would be all networks
            valid = named and bool(socket.getaddrinfo(self.host, self.port))
        except (OSError, UnicodeError):
            valid = False
        if not valid:
            raise ValueError(
                f"host is {self.host!r}, expected an address of this computer, such as 127.0.0.1 "
                "(this computer only) or 0.0.0.0 (the network)"
            )
        require_fields(self, "candidates", optional=True, whole=True, at_least=1)


@program
def main(args: Args) -> None:
    """Serve the page until Ctrl-C."""
    set_threads(args.threads)
    stopped = threading.Event()
    with _stops(stopped), opened(args) as address:
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        while not stopped.wait(0.5):  # without a timeout, Windows ignores Ctrl-C
            pass


class Offers(NamedTuple):
    """The methods of the page.

    ready: {method: sources}, the best first. missing: {method: why it is not offered}. homes:
    {method: folder of its models}.
    """

    ready: dict[MethodName, tuple[str, ...]]
    missing: dict[MethodName, str]
    homes: dict[MethodName, Path]


def offers(folders: Sequence[Path], settings: Settings) -> Offers:
    """The methods that folders of models have; the first folder that has a method serves it.

    Raises:
        FileNotFoundError: no folder has a complete method.
    """
    found, failure = Offers({}, {}, {}), None
    for models in folders:
        try:
            complete, lacking = complete_methods(models, settings)
        except FileNotFoundError as error:
            failure = failure or error
            continue
        for name in dict.fromkeys((method_of("auto", models), "hybrid", *complete)):
            if name in complete and name not in found.ready:
                found.ready[name], found.homes[name] = complete[name], models
        found.missing.update(lacking)
    if failure is not None and not found.ready:
        raise failure
    for name in found.ready:
        found.missing.pop(name, None)
    return found


@contextmanager
def opened(args: Args) -> Iterator[str]:
    """Serve the page and yield its address; uploads and results are removed at the end.

    Raises:
        ImportError: gradio is not installed.
        OSError: a folder is missing, no method is complete, or the port cannot be used.
        ValueError: a flag is out of range, or an example is not audio.
    """
    blocks = _blocks()
    pick_device(args.device)
    folders = [args.models] if args.models else [*SHIPPED.values()]
    ready, missing, homes = offers(folders, args.settings)
    settings = resolve_each(
        args.settings, {METHODS[name]: homes[name] for name in ready}, refine=True
    )

    def build(method: MethodName) -> Separator:
        return METHODS[method].load_separator(
            homes[method],
            settings[method],
            args.device,
            candidates=args.candidates,
            quality=args.quality,
            precision=args.precision,
        )

    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="separation-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(temporary)).resolve()
        results = folder / "results"
        results.mkdir()
        stack.enter_context(blocks.gradio_folder(folder / "uploads"))
        limits = Limits(args.max_seconds, args.max_megabytes)
        queue = JobQueue(results, build, limits, seed=args.seed)
        stack.callback(queue.close)
        songs = _examples(args.examples, folder / "examples")
        page = blocks.make_page(queue, ready, missing, songs)
        uploads = Uploads(
            folder / "uploads",
            queue.songs,
            songs=_UPLOADS,
            bytes_=_UPLOADS * args.max_megabytes * 1e6,
            stale=2 * _PATIENCE,
        )
        serving = blocks.serving(
            queue,
            page,
            results,
            args.host,
            args.port,
            args.open,
            others=args.names,
            make_room=uploads.make_room,
            patience=_PATIENCE,
        )
        address = stack.enter_context(serving)
        queue.prepare(next(iter(ready)))
        yield address


def _blocks() -> ModuleType:
    """Import the module that needs gradio."""
    try:
        from scripts.app import blocks
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise ModuleNotFoundError(
            "scripts.app needs gradio, which is not installed: pip install gradio"
        ) from error
    return blocks


def _examples(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Copy the songs to try: gradio serves only files in its own folders."""
    songs: list[Path] = []
    for path in paths:
        if (path / "manifest.json").is_file():
            songs.append(write_excerpt(path, folder / str(len(songs)) / "test song.wav"))
        else:
            for job in find_jobs([path], folder)[0][:_EXAMPLES]:
                copy = folder / str(len(songs)) / job.path.name
                copy.parent.mkdir(parents=True)
                songs.append(Path(shutil.copyfile(job.path, copy)))
    return songs


@contextmanager
def _stops(stopped: threading.Event) -> Iterator[None]:
    """Make Ctrl-C and SIGTERM set the event, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stopped.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
