"""Make MIDI songs with MMA (Musical MIDI Accompaniment): random chord charts in its styles.

    apt-get install --no-install-recommends mma
    python -m scripts.make_arrangements --output arrangements --songs 100

Each song has bass, drums and the other instruments of its style. The same flags give the same
files; files that are there are kept, and a larger --songs adds songs.
Next: python -m scripts.make_synthetic --midi-dir arrangements --output slakh --parts bass drums
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from data.mma import make_arrangements
from scripts._cli import program


@dataclass(frozen=True)
class Args:
    """Flags of scripts.make_arrangements."""

    output: Path
    """Folder to write to."""
    songs: int = 20
    """Number of songs."""
    seed: int = 0
    """Random seed for styles, keys, chords and tempos."""
    mma: Path = Path("mma")
    """The program MMA: a name on the PATH, or a file."""


@program
def main(args: Args) -> None:
    """Arrange, then print a summary."""
    files, skipped = make_arrangements(
        args.output, songs=args.songs, seed=args.seed, program=args.mma
    )
    for song, reason in skipped.items():
        print(f"skipped {song}: {reason}")
    print(f"{len(files)} MIDI files in {args.output}, {len(skipped)} songs skipped")


if __name__ == "__main__":
    sys.exit(main())
