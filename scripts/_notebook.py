"""Helpers of the notebook besides its commands: sizes, launcher, shell, players, report, upload."""

from __future__ import annotations

import html
import importlib
import itertools
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unittest import mock

import psutil
import torch

from jukebox_core import audio as audio_io
from jukebox_core.audio import pictures
from jukebox_core.audio.mp3 import mp3
from jukebox_core.checkpoints import fingerprint
from jukebox_core.files import atomic_path, data_uri
from jukebox_core.machine import available_cores
from jukebox_core.presets import PRESETS
from lqvae.sums import load_sums
from scripts import _plan

_SHOWN_SECONDS = 300  # per player, since the notebook's file stores its output


@dataclass(frozen=True)
class Size:
    """Settings for a preset, with estimated times; no time means not recommended."""

    tracks: int
    """Songs to compose."""
    seconds: float
    """Length of a composed song; the crops of training must fit."""
    count_iterations: int
    count_shifts: int
    chunks: int
    """Test chunks, one per song."""
    on_gpu: str
    on_cpu: str | None


SIZES: Mapping[str, Size] = {
    "tiny": Size(6, 6.0, 2, 1, 2, "two minutes", "two minutes"),
    "demo": Size(
        360,
        20.0,
        250,
        1,
        24,
        "a quarter of an hour on a T4",
        "15 to 70 minutes on 2 cores",
    ),
    "small": Size(1200, 30.0, 1000, 4, 30, "six hours on a T4", None),
    "t4": Size(1200, 30.0, 9000, 4, 30, "thirty hours on a T4, in several sessions", None),
}
"""{preset: settings}; `demo` equals scripts.demo, `tiny` is for tests."""


class CommandError(RuntimeError):
    """A `!` command failed; shown without a traceback, since the command printed its error."""

    def _render_traceback_(self) -> list[str]:
        return [f"CommandError: {self}"]


def use_shell(shell: Any) -> None:
    """Run `!` commands with the kernel's Python, and stop the notebook if one fails.

    `!python`, `!torchrun` and `!mpiexec -n N python` are those of the kernel.

    Args:
        shell: of IPython, from get_ipython().
    """
    plain = shell.system
    if getattr(plain, "stops", False):
        return
    expand = partial(shell.var_expand, **({} if os.name == "nt" else {"formatter": _quoting()}))

    def system(command: str, **options: Any) -> None:
        # Expanded here, where the caller's variables are in the next frame.
        command = expand(command, depth=1)
        command = _ours(command)
        with mock.patch.object(shell, "var_expand", lambda expanded, **_: expanded):
            plain(command, **options)  # would expand the values too
        status = shell.user_ns.get("_exit_code", 0)
        if status:
            raise CommandError(
                f"the command ended with status {status}, so the notebook stops here. Its error "
                "stands above; run this cell again to resume, finished work is kept"
            )

    system.stops = True  # type: ignore[attr-defined]
    shell.system = system


def _ours(command: str) -> str:
    """A command with the paths of the kernel's programs."""
    launched = re.match(r"mpiexec (-n \d+) python ", command)
    if launched is not None:
        program = _mpiexec() or "mpiexec"
        return f'"{program}" {launched[1]} "{sys.executable}" {command[launched.end() :]}'
    for name, words in {"python": "", "torchrun": "-m torch.distributed.run "}.items():
        if command.startswith(f"{name} "):
            return f'"{sys.executable}" {words}{command.removeprefix(f"{name} ")}'
    return command


class Words(str):
    """Text that is several words of a command."""


_LAUNCHED = {
    "torchrun": "torchrun --standalone --nproc-per-node {}",
    "mpiexec": "mpiexec -n {} python",
}


class Launchers(NamedTuple):
    """The words that start a program: codecs' training, and all else that several processes share.

    A codec may train in fewer processes: a pair of crops is the smallest share of its batch.
    """

    codecs: Words
    others: Words


def launchers(chosen: str, preset: str) -> Launchers:
    """Return the words that start programs in as many processes as LAUNCH says.

    Args:
        chosen: `auto`, `one process`, or a launcher, which a number of processes may follow;
            without a number, there is one process per GPU.
        preset: size of the models, whose batches must divide among the processes.

    Raises:
        ValueError: no such launcher or preset, the launcher is missing, or the number does not suit
            this machine or the preset.
    """
    match = re.fullmatch(r"(torchrun|mpiexec)(?: (\d+))?|auto|one process", chosen)
    if match is None:
        raise ValueError(
            f"LAUNCH is {chosen!r}, expected 'auto', 'one process', 'torchrun' or 'mpiexec'; a "
            "number of processes may follow the last two, as in 'torchrun 2'"
        )
    of_codecs, of_others = items_per_step(preset)
    gpus = len(_gpus())
    # Two processes on CPUs are for tests, also on machines with one core.
    here, kind = (gpus, "GPU") if gpus else (max(2, available_cores()), "CPU core")
    fitting = [n for n in range(1, here + 1) if of_others % n == 0]
    number = int(match[2] or (fitting[-1] if gpus and chosen != "one process" else 1))
    if number not in fitting:
        raise ValueError(
            f"LAUNCH is {chosen!r}, expected {', '.join(map(str, fitting))} processes: at most one "
            f"for each {kind} ({here}), and the batches of preset {preset} must divide among them"
        )
    name = match[1] or "torchrun"
    if name == "mpiexec":
        _check_mpi(number)
    both = (
        Words(_LAUNCHED[name].format(n) if n > 1 else "python")
        for n in (math.gcd(of_codecs, number), number)
    )
    return Launchers(*both)


def items_per_step(preset: str) -> tuple[int, int]:
    """Return numbers whose divisors are the processes that can train codecs, and all other models.

    Raises:
        ValueError: no such size.
    """
    _check_preset(preset)
    sizes = PRESETS[preset]
    # An item has a crop of each of two sources, the mask network's also those of 4 candidates.
    items = [train.batch_size // 2 for train in (sizes.mask_train, sizes.neural_train)]
    items += [sizes.mask_network_train.batch_size // 10, sizes.prior_train.batch_size]
    return sizes.vqvae_train.batch_size // 2, math.gcd(*items)


def _mpiexec() -> str | None:
    """The path of mpiexec, first where this Python's packages have their programs."""
    folders = (sysconfig.get_path("scripts"), Path(sys.executable).parent, os.environ.get("PATH"))
    return shutil.which("mpiexec", path=os.pathsep.join(str(folder or "") for folder in folders))


def _check_mpi(processes: int) -> None:
    """Raise ValueError unless mpiexec starts processes that find each other through mpi4py."""
    program = _mpiexec()
    advice = "install the extra mpi (pip install mpi4py mpich), or choose another LAUNCH"
    if program is None:
        raise ValueError(f"LAUNCH is 'mpiexec', but there is no mpiexec on this machine: {advice}")
    # The first process prints; if they do not find each other, each is the first.
    count = (
        "from mpi4py.MPI import COMM_WORLD as w; print(w.Get_size() if w.Get_rank() == 0 else '')"
    )
    command = [program, "-n", str(processes), sys.executable, "-c", count]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode or result.stdout.split() != [str(processes)]:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["no output"]
        raise ValueError(
            f"LAUNCH is 'mpiexec', but {program} did not start {processes} processes that find "
            f"each other through mpi4py ({lines[-1]}): {advice}"
        )


def _quoting() -> Any:
    """Return IPython's formatter of `!` commands, with values that a POSIX shell takes as text."""
    from IPython.utils.text import DollarFormatter

    class Quoting(DollarFormatter):
        def parse(self, fmt_string: str) -> Iterator[tuple[Any, Any, Any, Any]]:
            self.quotes = 0
            for part in super().parse(fmt_string):
                self.quotes += part[0].count('"')
                yield part

        def format_field(self, value: Any, format_spec: str) -> str:
            if isinstance(value, Words):
                return shlex.join(value.split())
            if self.quotes % 2:  # inside "..."
                return re.sub(r'([\\"$`])', r"\\\1", str(value))
            return shlex.quote(str(value))

    return Quoting()


def mount_drive(point: str) -> Path:
    """Mount Google Drive and return its folder for runs.

    Raises:
        ValueError: this is not Colab.
    """
    try:
        drive = importlib.import_module("google.colab.drive")
    except ImportError as error:
        raise ValueError(
            "DRIVE is set, but only Colab can mount Google Drive: untick it, and runs are kept on "
            "this machine"
        ) from error
    drive.mount(point)
    return Path(point, "MyDrive", "latent-separation")


def forecast(preset: str, launched: Sequence[str] = ("python", "python")) -> str:
    """Describe this machine, what will run where, and roughly how long it will take.

    Args:
        preset: size of the models.
        launched: from `launchers`.

    Raises:
        ValueError: no such size, or it needs a GPU and there is none.
    """
    _check_preset(preset)
    size, gpus = SIZES[preset], _gpus()
    duration = size.on_gpu if gpus else size.on_cpu
    if duration is None:
        raise ValueError(
            f"PRESET {preset!r} needs a GPU and there is none: choose one (Colab: Runtime, Change "
            "runtime type, T4 GPU; Kaggle: Settings, Accelerator), or PRESET = 'demo'"
        )
    codecs, others = (_processes(words, bool(gpus)) for words in launched)
    lines = [
        f"torch {torch.__version__} | CUDA: {torch.version.cuda or 'not in this build'} | "
        f"mpiexec: {_mpiexec() or 'not found'}",
        f"{available_cores()} CPU cores, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory",
        *(gpus or ["no GPU"]),
        f"training of codecs: {codecs}",
        f"other training, counting, separation (a process per file), evaluation: {others}",
        "all other commands: one process",
        f"preset {preset}: two codecs, four priors, counts, scores on {size.chunks} chunks; "
        f"about {duration} in one process (an estimate)",
    ]
    return "\n".join(lines)


def _processes(launched: str, on_gpus: bool) -> str:
    """The number of processes that a launcher starts, and its words."""
    number = re.search(r"\d+", launched)
    if number is None:
        return "one process"
    return f"{number[0]} processes, {'one per GPU' if on_gpus else 'on the CPU'} ({launched})"


def _gpus() -> list[str]:
    """A line for every GPU."""
    lines = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        lines.append(f"GPU {i}: {torch.cuda.get_device_name(i)}, {memory:.0f} GiB")
    return lines


def _check_preset(preset: str) -> None:
    if preset not in SIZES:
        raise ValueError(f"PRESET is {preset!r}, expected one of {', '.join(SIZES)}")


def prior_flags(preset: str) -> Words:
    """Return flags that save time and memory when this GPU trains large priors."""
    return Words(" ".join(_plan.prior_flags(preset)))


class Sources(NamedTuple):
    """The names of the chosen sources, a suffix of folders, and `_plan.SourceFlags`."""

    names: tuple[str, ...]
    suffix: str
    parts: Words  # of make_synthetic
    prepare: Words  # of prepare_slakh
    gains: Words  # of precompute_sums


def sources_of(text: str) -> Sources:
    """Return the sources that a text names.

    Raises:
        ValueError: they are fewer than two, or one is named twice.
    """
    names = tuple(text.split())
    if len(names) < 2 or len({*names}) < len(names):
        raise ValueError(f"SOURCES is {text!r}, expected two names or more, each once")
    flags = (Words(" ".join(map(str, words))) for words in _plan.source_flags(names))
    return Sources(names, "" if names == _plan.SOURCES else "_" + "_".join(names), *flags)


def has_sums(family: Path) -> bool:
    """Return whether the folder holds the table of code sums of its codec.

    A new table would have other bytes, and its scores would be computed again.
    """
    try:
        load_sums(family / "sums.safetensors", fingerprint(family / "vqvae"), place=None)
    except (OSError, ValueError):
        return False
    return True


def players(files: Mapping[str, str | Path]) -> str:
    """Return HTML with a spectrogram and a player per {title: audio file}, at most five minutes."""
    return "".join(_player(html.escape(title), Path(path)) for title, path in files.items())


def _player(title: str, path: Path) -> str:
    sound, rate = audio_io.load(path)
    shown = sound[:, : _SHOWN_SECONDS * rate]
    note = " (its first five minutes)" if shown.shape[-1] < sound.shape[-1] else ""
    level = pictures.levels([shown], shown.shape[-1], rate, min(rate, 22_050) / 2)
    picture = data_uri(pictures.spectrogram(level), "image/png")
    return (
        f'<div style="max-width:44rem;margin:.5rem 0"><b>{title}</b>{note}'
        f'<img alt="spectrogram of {title}" style="width:100%;height:96px" src="{picture}">'
        '<audio controls preload="none" style="width:100%" '
        f'src="{data_uri(mp3(shown, rate), "audio/mpeg")}"></audio></div>'
    )


def sections(report: Path, *names: str) -> str:
    """Return HTML that shows sections of a report in a frame.

    Args:
        report: the page that scripts.report wrote.
        names: ids of the sections, such as `scores`.

    Raises:
        ValueError: the report lacks a section.
    """
    page = report.read_text(encoding="utf-8")
    parts = dict(re.findall(r'(?s)(?=<section id="(\w+)")(.*?</section>)', page))
    if absent := [name for name in names if name not in parts]:
        raise ValueError(f"{report} has no section {absent[0]!r}")
    head, tail = page[: page.index("<body>")], page[page.index("</main>") :]
    inside = f"{head}<body><main>{''.join(parts[name] for name in names)}{tail}"
    fit = "this.style.height=this.contentDocument.documentElement.scrollHeight+'px'"
    return (
        f'<div><iframe style="width:100%;height:640px;border:0" title="{", ".join(names)}" '
        f'onload="{fit}" srcdoc="{html.escape(inside)}"></iframe></div>'
    )


class Upload:
    """The user's file: named, or uploaded by Colab's dialog or by a widget."""

    def __init__(self, folder: Path, named: str = ""):
        """Keep uploaded files in `folder`; a file `named` needs no upload."""
        self._folder = folder
        self._widget: Any = None
        self._file = Path(named).expanduser() if named else None

    def ask(self) -> Any:
        """Open Colab's dialog, or return a widget to show; None if neither is needed or exists."""
        if self._file is not None:
            return None
        try:
            files = importlib.import_module("google.colab.files")
        except ImportError:
            return self._button()
        before = set(os.listdir())
        contents = files.upload()
        for name, content in contents.items():
            self._keep(name, content)
        # Colab leaves copies in the working folder, renamed if the name was taken.
        for copy in map(Path, set(os.listdir()) - before):
            if copy.is_file() and copy.read_bytes() in contents.values():
                copy.unlink()
        return None

    def file(self) -> Path | None:
        """Return the file named or uploaded last, if any."""
        value = self._widget.value if self._widget is not None else ()
        if isinstance(value, Mapping):  # ipywidgets 7
            value = [{"name": name, **entry} for name, entry in value.items()]
        for entry in value:
            self._keep(entry["name"], bytes(entry["content"]))
        return self._file

    def _button(self) -> Any:
        try:
            widgets = importlib.import_module("ipywidgets")
        except ImportError:
            print("no upload here (ipywidgets is not installed): name a file in MY_FILE instead")
        else:
            self._widget = widgets.FileUpload(accept="audio/*", multiple=False)
        return self._widget

    def _keep(self, name: str, content: bytes) -> None:
        """Write a file under an unused name that needs no quoting in a shell."""
        plain = Path(re.sub(r"[^\w.-]+", "_", PurePosixPath(name.replace("\\", "/")).name))
        numbered = (f"{plain.stem}-{number}{plain.suffix}" for number in itertools.count(2))
        for name in itertools.chain([plain.name], numbered):
            path = self._folder / name
            if not path.exists():
                with atomic_path(path) as temporary:
                    temporary.write_bytes(content)
            if path.is_file() and path.read_bytes() == content:
                self._file = path
                return
