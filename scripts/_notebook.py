"""What the notebook needs besides its commands: sizes, shell, players, table, upload.

Nothing here trains, separates or scores: that is what the commands in the notebook's cells do.
"""

from __future__ import annotations

import base64
import html
import importlib
import io
import itertools
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile
import torch

from jukebox_core import audio as audio_io
from jukebox_core.checkpoints import fingerprint
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.files import atomic_path, check_replaceable
from lqvae.sums import load_sums
from scripts import demo
from scripts._results import (
    NAMES,
    SEED_TABLE,
    SYSTEMS,
    cell,
    difference,
    find_row,
    line_name,
    sources_of,
)
from scripts.report.page import document
from scripts.report.players import PLAYERS, examples
from scripts.report.plots import scatter, spectrogram

__all__ = [
    "SIZES",
    "CommandError",
    "Size",
    "Upload",
    "excerpt",
    "forecast",
    "has_sums",
    "listen",
    "mount_drive",
    "players",
    "prior_flags",
    "scatters",
    "scores",
    "use_shell",
]

REFERENCE = "Reference notebook's scores: Slakh2100, oracle pick of 64 candidates, Colab T4"
_BASELINES = ("mixture", "supervised")
_SHOWN_SECONDS = 300  # of a player: the notebook keeps what it shows
_MP3_RATES = (22_050, 44_100, 48_000, 24_000, 16_000, 32_000)


@dataclass(frozen=True)
class Size:
    """What goes with a preset. The hours are estimates, `None` where it is not meant to run."""

    tracks: int
    """Songs to compose."""
    seconds: float
    """Length of a composed song; a crop of the prior's training has to fit in."""
    count_iterations: int
    count_shifts: int
    chunks: int
    """Test chunks, one per song."""
    on_gpu: str
    on_cpu: str | None


_DEMO = demo.Args()
SIZES: Mapping[str, Size] = {
    "tiny": Size(6, 6.0, 2, 1, 2, "two minutes", "two minutes"),
    "demo": Size(
        _DEMO.tracks,
        _DEMO.seconds,
        _DEMO.count_iterations,
        1,
        _DEMO.chunks,
        "a quarter of an hour on a T4",
        "three quarters of an hour on 2 cores",
    ),
    "small": Size(1200, 30.0, 1000, 4, 30, "six hours on a T4", None),
    "t4": Size(1200, 30.0, 9000, 4, 30, "thirty hours on a T4, in several sessions", None),
}
"""By preset. `demo` is what scripts.demo does; `tiny` is for tests."""


class CommandError(RuntimeError):
    """A `!` line that failed; shown without a traceback, its own words stand above."""

    def _render_traceback_(self) -> list[str]:
        return [f"CommandError: {self}"]


def use_shell(shell: Any) -> None:
    """Make `!python` this kernel's Python, and a `!` line that fails stop the notebook.

    Args:
        shell: IPython's, from get_ipython().
    """
    plain = shell.system
    if getattr(plain, "stops", False):
        return

    def system(command: str, **options: Any) -> None:
        # Expanded here, where the caller's variables are the next frame's.
        command = shell.var_expand(command, depth=1)
        if command.startswith("python "):
            command = f'"{sys.executable}" {command.removeprefix("python ")}'
        plain(command, **options)
        status = shell.user_ns.get("_exit_code", 0)
        if status:
            raise CommandError(
                f"the command ended with status {status}, and the notebook stops here. What went "
                "wrong is said above; run this cell again to go on, finished work is kept"
            )

    system.stops = True  # type: ignore[attr-defined]
    shell.system = system


def mount_drive(point: str) -> Path:
    """Mount Google Drive and give the folder in it where runs are kept.

    Raises:
        ValueError: this is not Colab.
    """
    try:
        drive = importlib.import_module("google.colab.drive")
    except ImportError as error:
        raise ValueError(
            "DRIVE is set, but Google Drive can be mounted on Colab alone: untick it, runs are "
            "kept on this machine"
        ) from error
    drive.mount(point)
    return Path(point, "MyDrive", "latent-separation")


def forecast(preset: str) -> str:
    """What will run on this machine, and about how long.

    Raises:
        ValueError: no such size, or it needs a GPU and there is none.
    """
    if preset not in SIZES:
        raise ValueError(f"PRESET is {preset!r}, expected one of {', '.join(SIZES)}")
    size = SIZES[preset]
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        machine, lasts = f"{torch.cuda.get_device_name()}, {memory:.0f} GiB", size.on_gpu
    elif size.on_cpu is None:
        raise ValueError(
            f"PRESET {preset!r} needs a GPU and there is none: choose one (Colab: Runtime, Change "
            "runtime type, T4 GPU; Kaggle: Settings, Accelerator), or PRESET = 'demo'"
        )
    else:
        machine, lasts = f"no GPU, {torch.get_num_threads()} CPU threads", size.on_cpu
    return (
        f"torch {torch.__version__} | {machine}\n"
        f"preset {preset}: two codecs, four priors, counts, scores on {size.chunks} chunks; "
        f"about {lasts} (an estimate)"
    )


def prior_flags(preset: str) -> str:
    """Flags that train large priors on this GPU in less time and memory; none for small ones."""
    if preset not in ("small", "t4") or not torch.cuda.is_available():
        return ""
    # Older GPUs, a T4 among them, have float16 alone; that PyTorch emulates bfloat16 is no help.
    recent = torch.cuda.get_device_capability() >= (8, 0)
    return f"--batch auto --precision {'bf16-mixed' if recent else '16-mixed'}"


def excerpt(data: Path, output: Path, seconds: float = 9.0) -> Path:
    """Write the middle of the first test song's mixture, to separate and to listen to.

    Raises:
        ValueError: the data set has no test songs.
        FileExistsError: `output` holds other audio.
    """
    manifest = load_manifest(data)
    tracks = sorted(manifest.split("test"), key=lambda track: track.name)
    if not tracks:
        raise ValueError(f"{data} has no test songs to separate")
    length = min(tracks[0].samples, round(seconds * manifest.sample_rate))
    start = (tracks[0].samples - length) // 2
    middle = audio_io.load_segment(tracks[0].mixture, start, length)
    check_replaceable(output, partial(_holds, middle, manifest.sample_rate), "this excerpt")
    audio_io.save(output, middle, manifest.sample_rate)
    return output


def _holds(samples: torch.Tensor, rate: int, path: Path) -> bool:
    found, at = audio_io.load(path)
    return at == rate and torch.equal(found, torch.atleast_2d(samples))


def has_sums(family: Path) -> bool:
    """Whether the table of code sums is there and this codec's.

    Made anew it would have other bytes, and what was scored with it would be scored again.
    """
    try:
        load_sums(family / "sums.safetensors", fingerprint(family / "vqvae"))
    except (OSError, ValueError):
        return False
    return True


def players(files: Mapping[str, str | Path]) -> str:
    """HTML: a spectrogram and a player for each of {title: audio file}, five minutes at most."""
    return "".join(_player(title, Path(path)) for title, path in files.items())


def _player(title: str, path: Path) -> str:
    sound, rate = audio_io.load(path)
    longer = sound.shape[-1] > _SHOWN_SECONDS * rate
    sound = sound[:, : _SHOWN_SECONDS * rate]
    if len(sound) > 2:
        sound = audio_io.to_mono(sound)[None]
    picture = audio_io.resample(audio_io.to_mono(sound), rate, _MP3_RATES[0])
    if rate not in _MP3_RATES:
        sound, rate = audio_io.resample(sound, rate, 44_100), 44_100
    buffer = io.BytesIO()
    samples = sound.T.numpy().clip(-1, 1).astype(np.float32)
    soundfile.write(buffer, samples, rate, format="MP3", subtype="MPEG_LAYER_III")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    note = " (its first five minutes)" if longer else ""
    return (
        f'<div style="max-width:44rem;margin:.5rem 0"><b>{html.escape(title)}</b>{note}'
        f'<img alt="spectrogram of {html.escape(title)}" style="width:100%;height:96px" '
        f'src="{spectrogram(picture, _MP3_RATES[0])}">'
        f'<audio controls preload="none" style="width:100%" src="data:audio/mpeg;base64,{encoded}">'
        "</audio></div>"
    )


def listen(results: Mapping[str, Any], folder: Path) -> str:
    """HTML: the examples of the evaluation as the report shows them, in a frame of their own."""
    page = document("Listen", f"<main><p>{PLAYERS}</p>{examples(results, folder)}</main>")
    return (
        '<div><iframe style="width:100%;height:640px;border:0" title="examples" '
        f'srcdoc="{html.escape(page, quote=True)}"></iframe></div>'
    )


def scatters(results: Mapping[str, Any]) -> str:
    """HTML: SDR of one source over the other's, a point per chunk."""
    pictures = (
        scatter(results, "selected", True, "What you get"),
        scatter(results, "oracle", False, "Oracle pick, raw"),
    )
    return f'<div style="display:flex;flex-wrap:wrap">{"".join(pictures)}</div>'


def scores(results: Mapping[str, Any], songs: str) -> str:
    """HTML: the answer in two lines, this run's table, and the reference's beside it.

    Args:
        results: what scripts.evaluate wrote.
        songs: folder of the data set, where the songs were not composed here.
    """
    return (
        f"{_answer(results)}"
        '<div style="display:flex;flex-wrap:wrap;gap:2rem;align-items:flex-start">'
        f"{_own_table(results, songs)}{_reference_table()}</div>"
        "<p>Songs, models and machine are not the same in the two tables: compare lines of one of "
        "them with each other, not one table with the other.</p>"
    )


def _answer(results: Mapping[str, Any]) -> str:
    """The hybrid beside each of the others: paired difference in dB."""
    lines = []
    for other in ("lqvae", "lass"):
        found = difference(results, "hybrid", other)
        if found.n == 0:
            continue
        line = (
            f"Hybrid &minus; {NAMES[other]}: <b>{found.mean:+.2f} dB</b> "
            f"[{found.low:+.2f}, {found.high:+.2f}]"
        )
        lines.append(f"{line}<br>")
    return f"<p>What you get; paired over the chunks:<br>{''.join(lines)}</p>"


def _own_table(results: Mapping[str, Any], songs: str) -> str:
    sources = (*sources_of(results), "mean")
    data = results["meta"].get("data", {})
    origin = (
        "songs composed and rendered here, which are not Slakh"
        if data.get("generated")
        else f"the songs of {html.escape(songs)}"
    )
    lines = [
        (name, estimate, refined)
        for estimate, refined in (("selected", True), ("oracle", False))
        for name in SYSTEMS
    ] + [(name, "selected", False) for name in _BASELINES]
    body = []
    for name, estimate, refined in lines:
        rows = [find_row(results, name, estimate, refined, s, "sdr") for s in sources]
        if any(rows):
            seconds = results.get("seconds_per_chunk", {}).get(name)
            took = "-" if seconds is None or estimate == "oracle" else f"{seconds:.2f}"
            body.append([*line_name(name, estimate, refined), *map(cell, rows), took])
    candidates = sorted(set(results["meta"].get("candidates", {}).values()))
    caption = (
        f"This run: SDR in dB, mean [95% interval] of {data.get('chunks', '?')} chunks of "
        f"{origin}; {', '.join(map(str, candidates))} candidates"
    )
    return _table(caption, ["method", "estimate", *sources, "s / chunk"], body)


def _reference_table() -> str:
    body = [
        [NAMES[name], f"{row['bass']:.2f}", f"{row['drums']:.2f}", f"{row['seconds']:.1f}"]
        for name, row in SEED_TABLE.items()
    ]
    return _table(REFERENCE, ["method", "bass", "drums", "s / chunk"], body)


def _table(caption: str, head: list[str], body: list[list[str]]) -> str:
    def line(kind: str, texts: list[str]) -> str:
        around = f'<{kind} style="padding:.1rem .6rem .1rem 0;text-align:left">'
        return f"<tr>{''.join(f'{around}{html.escape(text)}</{kind}>' for text in texts)}</tr>"

    return (
        f'<table><caption style="text-align:left">{caption}</caption>'
        f"<thead>{line('th', head)}</thead>"
        f"<tbody>{''.join(line('td', row) for row in body)}</tbody></table>"
    )


class Upload:
    """A file of the user's: named, or by Colab's dialog, or by a widget elsewhere."""

    def __init__(self, folder: Path, named: str = ""):
        """Uploaded files are kept in `folder`; with a file `named`, nothing is asked."""
        self._folder = folder
        self._widget: Any = None
        self._file = Path(named).expanduser() if named else None

    def ask(self) -> Any:
        """Open Colab's dialog, or give the widget to show; None where neither is needed or here."""
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
        """The file named or uploaded last, if any."""
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
            return None
        self._widget = widgets.FileUpload(accept="audio/*", multiple=False)
        return self._widget

    def _keep(self, name: str, content: bytes) -> None:
        """Write a file under an unused name that needs no quoting in a shell."""
        plain = Path(re.sub(r"[^\w.-]+", "_", PurePosixPath(name.replace("\\", "/")).name))
        path = self._folder / plain
        for number in itertools.count(2):
            if not path.exists() or (path.is_file() and path.read_bytes() == content):
                break
            path = self._folder / f"{plain.stem}-{number}{plain.suffix}"
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        self._file = path
