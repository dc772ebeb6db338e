"""A page in your browser that separates the songs you drop on it.

    python -m scripts.app --models runs/demo/models

Choose a method, hear and see the stems, download them: they are those of scripts.separate. The page
is this computer's alone (--host 0.0.0.0 shows it to the network), and everything stays on it: the
songs, the stems, and who asked for them. Needs gradio: pip install -e '.[app]'
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

import tyro

from jukebox_core.checks import require_fields
from jukebox_core.prior.joint import Precision
from jukebox_core.separation.loading import pick_device
from jukebox_core.separation.method import resolve_each
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import Settings
from jukebox_core.training.distributed import set_threads
from scripts._cli import program
from scripts._inputs import find_jobs
from scripts._methods import METHODS, MethodName
from scripts._notebook import excerpt
from scripts.app.jobs import Limits, Studio, usable

_EXAMPLES = 4  # of a folder


@dataclass(frozen=True)
class Args:
    """Flags of scripts.app."""

    models: Path
    """Folder of trained models; methods whose parts are not in it are not offered."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: whoever reaches this computer can use the page."""
    port: int = 7860
    """Port to listen at."""
    open: bool = False
    """Open the page in the browser."""
    max_seconds: float = 600.0
    """Longest song."""
    max_megabytes: float = 100.0
    """Largest file."""
    examples: tuple[Path, ...] = ()
    """Songs to try: audio files, folders of them, or a prepared data set (a test song's middle)."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    candidates: int | None = None
    """Joint candidates per window; default: the models' preset."""
    precision: Precision = "auto"
    """Of the priors; auto: bfloat16 or float16 where the device gains by it."""
    seed: int = 0
    """Of the sampling."""
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
            known = named and bool(socket.getaddrinfo(self.host, self.port))
        except (OSError, UnicodeError):
            known = False
        if not known:
            raise ValueError(
                f"host is {self.host!r}, expected an address of this computer, such as 127.0.0.1 "
                "(this computer only) or 0.0.0.0 (the network)"
            )
        require_fields(self, "candidates", optional=True, whole=True, at_least=1)


@program
def main(args: Args) -> None:
    """Show the page until Ctrl-C."""
    set_threads(args.threads)
    stopped = threading.Event()
    with _noted(stopped), opened(args) as address:
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        while not stopped.wait(0.5):  # without a time, Windows would not hear of Ctrl-C
            pass


@contextmanager
def opened(args: Args) -> Iterator[str]:
    """While open, the page is there: its address. Uploads and results are removed at the end.

    Raises:
        ImportError: gradio is not installed.
        OSError: a folder is missing, the models make no method, or the port cannot be had.
        ValueError: a flag that cannot be, or examples that are no audio.
    """
    blocks = _blocks()
    pick_device(args.device)
    ready, missing = usable(args.models, args.settings)
    settings = resolve_each(
        args.settings, [METHODS[name] for name in ready], args.models, refine=True
    )

    def build(method: MethodName) -> Separator:
        return METHODS[method].load_separator(
            args.models,
            settings[method],
            args.device,
            candidates=args.candidates,
            precision=args.precision,
        )

    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="separation-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(made)).resolve()
        uploads, results = folder / "uploads", folder / "results"
        for each in (uploads, results):
            each.mkdir()
        stack.enter_context(blocks.gradio_folder(uploads))
        limits = Limits(args.max_seconds, args.max_megabytes)
        studio = Studio(results, build, limits, seed=args.seed)
        stack.callback(studio.close)
        songs = _examples(args.examples, folder / "examples")
        page = blocks.make_page(studio, ready, missing, songs)
        yield stack.enter_context(
            blocks.serving(studio, page, results, args.host, args.port, args.open)
        )


def _blocks() -> ModuleType:
    """The part that needs gradio."""
    try:
        from scripts.app import blocks
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise ModuleNotFoundError(
            "scripts.app needs gradio, which is not installed: pip install -e '.[app]'"
        ) from error
    return blocks


def _examples(given: Sequence[Path], folder: Path) -> list[Path]:
    """Copies of the songs to try: gradio shows files of its own folders alone."""
    songs: list[Path] = []
    for path in given:
        if (path / "manifest.json").is_file():
            songs.append(excerpt(path, folder / str(len(songs)) / "test song.wav"))
            continue
        jobs, _ = find_jobs([path], folder)
        for job in jobs[:_EXAMPLES]:
            copy = folder / str(len(songs)) / job.path.name
            copy.parent.mkdir(parents=True)
            songs.append(Path(shutil.copyfile(job.path, copy)))
    return songs


@contextmanager
def _noted(stopped: threading.Event) -> Iterator[None]:
    """While open, Ctrl-C and SIGTERM set the event, so that what was written is removed."""
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
