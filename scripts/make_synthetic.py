"""Make a small data set in Slakh2100's layout: audio rendered from MIDI with a soundfont.

The program composes the songs, or renders your MIDI files:

    python -m scripts.make_synthetic --output slakh_synthetic --tracks 60 --seconds 30
    python -m scripts.make_synthetic --output slakh_midi --midi-dir DIR

    python -m scripts.make_synthetic --output unheard --tracks 20 --seed 1 --reprogram
    python -m scripts.make_synthetic --output varied --soundfont installed --drumkit installed

The third command plays other songs on other instruments, for an independent test; the last one
draws the instruments of every song from all soundfonts and drum kits of installed Debian packages.
The same flags give the same bytes. An interrupted run continues, and a larger --tracks adds songs.
Next: python -m scripts.prepare_slakh --slakh slakh_synthetic --output prepared
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.composer import Style
from data.synthetic import make_synthetic
from jukebox_core.audio.production import EffectName
from jukebox_core.checks import printable
from scripts._cli import program


@dataclass(frozen=True)
class Args:
    """Flags of scripts.make_synthetic."""

    output: Path
    """Folder to write the data set to."""
    tracks: int | None = None
    """Number of songs; without it 20 composed songs, or all MIDI files."""
    seconds: float | None = None
    """Length of a song; without it 30 for composed songs, or the whole MIDI file."""
    seed: int = 0
    """Random seed for songs, instruments, levels and the order of MIDI files."""
    midi_dir: Path | None = None
    """Folder of .mid files to render instead, with its subfolders."""
    midi_share: float | None = None
    """Share of the songs that are MIDI files of --midi-dir; the others are composed. Without it
    all are MIDI files, if there is such a folder."""
    sample_rate: int = 44100
    """Sample rate of the audio in Hz."""
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, validation and test songs."""
    parts: tuple[str, ...] | None = None
    """Parts to render; fewer are faster. Composed songs have bass, drums and piano, some also
    guitar and strings; MIDI files have Slakh's instrument classes. Without it: all parts."""
    reprogram: bool = False
    """Replace all instruments and drum kits with others of their kind."""
    style: Style = "plain"
    """Style of composed songs; wide has more tempos, metres, grooves, articulations, dynamics."""
    groove: Path | None = None
    """Folder of drum takes in the layout of the Groove MIDI Dataset, for drum parts played by
    people."""
    groove_share: float | None = None
    """Share of the songs with a take; without it 0.5 if there are takes."""
    production: tuple[Literal[EffectName, "all"], ...] = ()
    """Studio effects to draw from for every stem, each with its own probability; all: all six."""
    production_share: float | None = None
    """Share of the songs that may get effects; without it all, if there are effects."""
    level: Literal["rms", "loudness"] = "rms"
    """rms: a random level for every stem; loudness: the same loudness for all, as in Slakh2100."""
    soundfont: tuple[str, ...] | None = None
    """Soundfonts to draw from for every song: files (.sf2, .sf3), names of Debian packages,
    `embedded` (the small one of pretty_midi, the default), or `installed` (it and all packages)."""
    drumkit: tuple[str, ...] | None = None
    """Drum kits of samples (Hydrogen's drumkit.xml or .h2drumkit) or folders of them, for the drums
    of half of the songs; `installed` for Debian's hydrogen-drumkits."""
    programs: Literal["song", "all"] = "song"
    """song: the basses and drum kits that a song asks for; all: drawn from all of the
    soundfont's."""
    workers: int | None = None
    """Processes; without it one per CPU, and fewer for few songs."""


@program
def main(args: Args) -> None:
    """Render, then print a summary."""
    rendered, skipped = make_synthetic(**vars(args))
    for file, reason in skipped.items():
        print(f"skipped {printable(file)}: {printable(reason)}")
    splits = [track.parent.name for track in rendered]
    counts = ", ".join(f"{splits.count(name)} {name}" for name in dict.fromkeys(splits))
    print(f"{len(rendered)} tracks ({counts}) in {args.output}, {len(skipped)} songs skipped")


if __name__ == "__main__":
    sys.exit(main())
