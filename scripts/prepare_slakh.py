"""Prepare Slakh2100: aligned mono sources, exact mixtures, splits and a manifest.

    python -m scripts.prepare_slakh --slakh slakh2100_flac_redux --output prepared
    python -m scripts.prepare_slakh --slakh DIR --output DIR --sources bass drums other

Splits are the folders train, validation and test (omitted/ is ignored); a folder of TrackNNNNN
without them is split at random by song. Use the redux release: in the first release, train and test
share songs.

--limit N uses the first N usable tracks by name, in proportion to the sizes of the splits. --split
TRAIN VALIDATION TEST takes only the train folder's tracks, in name order, and cuts the list by
these shares. For example, the reference report of the hybrid has 210 of the first 300 tracks for
training and 90 for testing:

    python -m scripts.prepare_slakh --slakh DIR --output DIR --limit 300 --split 0.7 0 0.3

It skips tracks in which a source is missing, damaged or silent, and lists them with the reason in
manifest.json; with --keep-silent, only tracks in which fewer than two sources sound. A second run
reuses finished tracks.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data.slakh import prepare
from scripts._cli import program


@dataclass(frozen=True)
class Args:
    """Flags of scripts.prepare_slakh."""

    slakh: Path
    """Slakh2100: a folder with train, validation and test, or with TrackNNNNN."""
    output: Path
    """Folder to write to."""
    sources: tuple[str, ...] = ("bass", "drums")
    """drums, or Slakh's instrument classes (bass, piano, guitar, organ, synth_lead ...); other is
    the sum of all the rest."""
    sample_rate: int = 22050
    """Sample rate to write, in Hz."""
    limit: int | None = None
    """Number of tracks to use; default: all."""
    split: tuple[float, float, float] | None = None
    """Shares of train, validation and test, to split the train folder again."""
    seed: int = 0
    """Random seed of the split, for a folder without splits."""
    silence_dbfs: float = -60.0
    """RMS in dBFS below which a source counts as silent."""
    keep_silent: bool = False
    """Use tracks in which a source is missing or silent, if two others sound."""
    find_songs: bool = False
    """Find excerpts of one song by the audio that they share, if their metadata name no song."""
    workers: int | None = None
    """Threads; without it one per CPU."""


@program
def main(args: Args) -> None:
    """Prepare, then print a summary and the skipped tracks."""
    manifest, skipped = prepare(**vars(args))
    for reason, count in Counter(skipped.values()).most_common(20):
        first = next(name for name, why in skipped.items() if why == reason)
        print(f"skipped {first}{f' and {count - 1} more' if count > 1 else ''}: {reason}")
    splits = Counter(track.split for track in manifest.tracks)
    counts = ", ".join(f"{count} {name}" for name, count in splits.items())
    hours = sum(track.samples for track in manifest.tracks) / manifest.sample_rate / 3600
    print(
        f"{len(manifest.tracks)} tracks ({counts}; {hours:.2f} hours) of "
        f"{', '.join(manifest.sources)} in {args.output}, {len(skipped)} skipped"
    )


if __name__ == "__main__":
    sys.exit(main())
