"""Prepare Slakh2100: aligned mono sources, exact mixtures, splits and a manifest.

    python -m scripts.prepare_slakh --slakh slakh2100_flac_redux --output prepared
    python -m scripts.prepare_slakh --slakh DIR --output DIR --sources bass drums piano

The split folders train, validation and test are honoured, and omitted is ignored; a folder of
TrackNNNNN without them is split at random by song. Use the redux release: the original's split
repeats songs across train and test.

--limit N uses N tracks, the first usable ones by name, shared out over the splits in proportion to
their sizes. --split TRAIN VALIDATION TEST instead takes the tracks of the train folder alone, in
the order of their names, and cuts that list by these shares. So the choice of the hybrid's report,
the first 300 tracks as 210 for training and 90 for testing, is:

    python -m scripts.prepare_slakh --slakh DIR --output DIR --limit 300 --split 0.7 0 0.3

Tracks without one of the sources, or with a missing, damaged or silent one, are skipped and listed
in manifest.json with the reason. A second run reuses the tracks that are finished.
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
    """Flags."""

    slakh: Path
    """The data set: a folder with train, validation and test, or with TrackNNNNN."""
    output: Path
    """Folder to write to."""
    sources: tuple[str, ...] = ("bass", "drums")
    """drums, or instrument classes of Slakh (bass, piano, guitar, organ, synth_lead ...)."""
    sample_rate: int = 22050
    """Sample rate to write, in Hz."""
    limit: int | None = None
    """Number of tracks to use; see above. Default: all."""
    split: tuple[float, float, float] | None = None
    """Shares of train, validation and test to cut the train folder by; see above."""
    seed: int = 0
    """Of the random split of a folder without splits."""
    silence_dbfs: float = -60.0
    """A source with a lower RMS counts as silent."""
    workers: int | None = None
    """Threads. Default: one per CPU."""


@program
def main(args: Args) -> None:
    """Prepare, then say what there is and what was skipped."""
    manifest, skipped = prepare(
        args.slakh,
        args.output,
        sources=args.sources,
        sample_rate=args.sample_rate,
        limit=args.limit,
        split=args.split,
        seed=args.seed,
        silence_dbfs=args.silence_dbfs,
        workers=args.workers,
    )
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
