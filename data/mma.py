"""Arrangements by MMA (Musical MIDI Accompaniment, GPL), which is installed separately.

MMA turns a chord chart into bass, drums and chords in the style of one of its grooves. The charts
here are random: key, tempo, groove, and a chord progression for each kind of section.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.composer import PROGRESSIONS, SCALES
from data.layout import inst_class
from data.midi import read_midi
from jukebox_core.checks import one_line, require, require_seed
from jukebox_core.files import atomic_path, write_text

_TIMEOUT = 60.0  # seconds of a call; one takes a quarter of a second
_ATTEMPTS = 5  # charts of a song, until one has bass and drums
_NOTES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
_TRIADS = {(4, 7): "", (3, 7): "m", (3, 6): "dim"}
_SEVENTHS = {(4, 7, 11): "M7", (4, 7, 10): "7", (3, 7, 10): "m7", (3, 6, 10): "m7b5"}
_TEMPOS = (60, 190)


class MMA:
    """The program and its library of styles.

    Args:
        program: Name or path of the executable.

    Raises:
        FileNotFoundError: There is no such program.
        ValueError: It has no library of styles.
    """

    def __init__(self, program: str | Path = "mma"):
        path = shutil.which(str(program))
        if path is None:
            raise FileNotFoundError(
                f"mma: there is no program {program}; install it with: apt-get install "
                "--no-install-recommends mma (or from https://www.mellowood.ca/mma)"
            )
        self._program = str(Path(path).absolute())
        with tempfile.TemporaryDirectory() as folder:
            chart = Path(folder) / "chart.mma"
            chart.write_text("Print LIBRARY $_LIBPATH\n", encoding="utf-8")
            lines = self._run("-n", str(chart)).splitlines()
        places = [line.removeprefix("LIBRARY ") for line in lines if line.startswith("LIBRARY ")]
        self.styles = [
            style for place in places for style in sorted(Path(place).glob("stdlib/*.mma"))
        ]
        if not self.styles:
            raise ValueError(f"mma: {program} has no library of styles (stdlib): install it again")
        self._grooves: dict[Path, list[str]] = {}

    def grooves(self, style: Path) -> list[str]:
        """Return the grooves of a library file that have bass and drums."""
        if style not in self._grooves:
            tracks: dict[str, set[str]] = {}
            groove = ""
            for line in self._run("-Ds", str(style)).splitlines():
                kind, _, name = line.partition(" ")
                if kind == "GROOVE":
                    groove = name
                elif kind == "TRACK":
                    tracks.setdefault(groove, set()).add(name.partition("-")[0])
            self._grooves[style] = [
                groove
                for groove, names in tracks.items()
                if "DRUM" in names and names & {"BASS", "WALK"}
            ]
        return self._grooves[style]

    def arrange(self, chart: str) -> bytes:
        """Return the MIDI file of a chart.

        Raises:
            ValueError: MMA refuses the chart, or the file lacks bass or drums.
        """
        with tempfile.TemporaryDirectory() as folder:
            source, written = Path(folder) / "chart.mma", Path(folder) / "chart.mid"
            source.write_text(chart, encoding="utf-8")
            said = self._run("-xNOCREDIT", "-f", str(written), str(source))
            if not written.is_file():
                raise ValueError(f"mma wrote no MIDI file ({one_line(ValueError(said))})")
            instruments = read_midi(written).instruments
            classes = {inst_class(each.program, each.is_drum) for each in instruments}
            if not {"Bass", "Drums"} <= classes:
                raise ValueError("the arrangement lacks bass or drums")
            return written.read_bytes()

    def _run(self, *words: str) -> str:
        """Run the program without the user's settings; return what it prints."""
        with tempfile.NamedTemporaryFile(suffix=".rc") as settings:
            command = [self._program, "-w", "-i", settings.name, *words]
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=_TIMEOUT,
                    encoding="utf-8",
                    errors="replace",
                )
            except subprocess.TimeoutExpired as error:
                raise ValueError(f"mma took more than {_TIMEOUT:g} s") from error
            except OSError as error:
                raise ValueError(f"mma cannot be run ({one_line(error)})") from error
        if done.returncode:
            raise ValueError(f"mma failed: {one_line(ValueError(done.stdout))[-200:]}")
        return done.stdout


def write_chart(rng: np.random.Generator, grooves: Sequence[str]) -> str:
    """Write a chord chart of eight sections with random harmony and tempo.

    Args:
        rng: Draws everything, and the random seed of MMA.
        grooves: Of one style. One that is no intro, ending or fill has about half of the sections.
    """
    scale = SCALES[str(rng.choice(list(SCALES)))]
    tonic = int(rng.integers(12))
    sevenths = rng.random() < 0.4
    harmony = [PROGRESSIONS[int(rng.integers(len(PROGRESSIONS)))] for _ in range(3)]
    whole = [groove for groove in grooves if not re.search("Intro|End|Fill", groove)]
    main = str(rng.choice(whole or grooves))
    lines = [f"RndSeed {int(rng.integers(2**31))}", f"Tempo {int(rng.integers(*_TEMPOS))}"]
    bar = 0
    for _ in range(8):
        lines.append(f"Groove {main if rng.random() < 0.5 else rng.choice(grooves)}")
        progression = harmony[int(rng.integers(3))]
        for degree in progression * int(rng.choice([1, 2])):
            bar += 1
            lines.append(f"{bar} {_chord(scale, tonic, degree, sevenths)}")
    return "\n".join(lines) + "\n"


def _chord(scale: Sequence[int], tonic: int, degree: int, sevenths: bool) -> str:
    """Return the name of a chord of the scale."""
    root = scale[degree % 7]
    third, fifth, seventh = ((scale[(degree + step) % 7] - root) % 12 for step in (2, 4, 6))
    if sevenths:
        kind = _SEVENTHS[third, fifth, seventh]
    else:
        kind = _TRIADS[third, fifth]
    return _NOTES[(tonic + root) % 12] + kind


def make_arrangements(
    output: str | Path, *, songs: int = 20, seed: int = 0, program: str | Path = "mma"
) -> tuple[list[Path], dict[str, str]]:
    """Write MIDI files with bass, drums and whatever else their style has, and their charts.

        OUTPUT/mma-SEED-NNNNN.mid, .mma

    Args:
        output: Folder. Files that it has are kept.
        songs: Number of songs; more songs change none of the others.
        seed: Draws the charts.
        program: The executable of MMA.

    Returns:
        The MIDI files, and {name of a song that could not be arranged: reason}.

    Raises:
        FileNotFoundError: MMA is not installed.
        ValueError: A value is out of range, or no song could be arranged.
        OSError: A file cannot be written.
    """
    require("songs", songs, whole=True, at_least=1, at_most=99_999)
    require_seed("seed", seed)
    output, mma = Path(output), MMA(program)
    written, skipped = [], {}
    for number in tqdm(range(1, songs + 1), desc="arranging", unit="song", disable=None):
        path = output / f"mma-{seed}-{number:05d}.mid"
        reason = None if path.is_file() else _write_song(path, mma, seed, number)
        if reason is None:
            written.append(path)
        else:
            skipped[path.stem] = reason
    if not written:
        reason = next(iter(skipped.values()))
        raise ValueError(f"none of the {songs} songs could be arranged, the first: {reason}")
    return written, skipped


def _write_song(path: Path, mma: MMA, seed: int, number: int) -> str | None:
    """Write a song; return the reason if several charts failed."""
    reason = ""
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, number, attempt])
        style = mma.styles[int(rng.integers(len(mma.styles)))]
        try:
            grooves = mma.grooves(style)
            if not grooves:
                raise ValueError(f"{style.stem} has no groove with bass and drums")
            chart = write_chart(rng, grooves)
            content = mma.arrange(chart)
        except ValueError as error:
            reason = one_line(error)
            continue
        write_text(path.with_suffix(".mma"), chart)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        return None
    return reason
