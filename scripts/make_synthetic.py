"""Make a small data set in Slakh2100's layout: audio rendered from MIDI with a soundfont.

The songs are composed by the program, or are your own MIDI files:

    python -m scripts.make_synthetic --output slakh_synthetic --tracks 60 --seconds 30
    python -m scripts.make_synthetic --output slakh_midi --midi-dir DIR

    python -m scripts.make_synthetic --output unheard --tracks 20 --seed 1 --reprogram

The last one plays other songs on other instruments, for an independent test. The same flags give
the same bytes. A run that was interrupted goes on where it stopped, and a larger --tracks adds to
what is there. Next: python -m scripts.prepare_slakh --slakh slakh_synthetic --output prepared
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from data.synthetic import make_synthetic
from scripts._cli import program


@dataclass(frozen=True)
class Args:
    """Flags."""

    output: Path
    """Folder to write the data set to."""
    tracks: int | None = None
    """Number of songs. Default: 20 composed ones, or all MIDI files."""
    seconds: float | None = None
    """Length of a song. Default: 30 for composed songs, the whole MIDI file."""
    seed: int = 0
    """Chooses songs, instruments, levels and, of MIDI files, their order."""
    midi_dir: Path | None = None
    """Folder of .mid files to render instead of composing; searched with its subfolders."""
    sample_rate: int = 44100
    """Sample rate of the audio in Hz."""
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of the songs for train, validation and test."""
    parts: tuple[str, ...] | None = None
    """What plays; the fewer, the faster. Of composed songs: bass drums piano guitar strings (the
    last two in some songs only); of MIDI files: instrument classes. Default: everything."""
    reprogram: bool = False
    """Render with other basses, drum kits and instruments than the notes ask for."""
    soundfont: Path | None = None
    """An .sf2 file to render with. Default: the small one that comes with pretty_midi."""
    workers: int | None = None
    """Processes. Default: one per CPU, fewer for few songs."""


@program
def main(args: Args) -> None:
    """Render, then say what was made."""
    made, skipped = make_synthetic(
        args.output,
        tracks=args.tracks,
        seconds=args.seconds,
        seed=args.seed,
        midi_dir=args.midi_dir,
        sample_rate=args.sample_rate,
        split=args.split,
        parts=args.parts,
        reprogram=args.reprogram,
        soundfont=args.soundfont,
        workers=args.workers,
    )
    for file, reason in skipped.items():
        print(f"skipped {file}: {reason}")
    splits = [track.parent.name for track in made]
    counts = ", ".join(f"{splits.count(name)} {name}" for name in dict.fromkeys(splits))
    print(f"{len(made)} tracks ({counts}) in {args.output}, {len(skipped)} songs skipped")


if __name__ == "__main__":
    sys.exit(main())
