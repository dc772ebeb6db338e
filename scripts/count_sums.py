"""Count code triples (first source, second source, mixture) for LASS and the hybrid.

    python -m scripts.count_sums --vqvae RUN --data DIR --output FILE
    python -m scripts.count_sums --merge PART1 PART2 --output FILE

FILE is MODELS/reconstruction/counts.safetensors for LASS and
MODELS/linearisation/counts.safetensors for the hybrid. Only training songs are counted.

Memory is bounded whatever the number of iterations. Interrupted, the same command goes on where the
last flush was (a folder beside the output holds the runs); with more --iterations it goes on from
the finished file. Several processes or machines count parts, each with its --seed; --merge adds
them up.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.manifest import Manifest, load_manifest
from lass.counting import PairCounting, Triples
from lass.counts import BUFFER, CountsFile, TripleCounter, merge_counts, save_keys
from scripts._cli import program
from scripts._models import pick_device

_FLUSH_SECONDS = 20.0


@dataclass(frozen=True)
class Args:
    """Flags of scripts.count_sums."""

    output: Path
    """File to write the counts to."""
    vqvae: Path | None = None
    """Run folder of the codec."""
    data: Path | None = None
    """Prepared data set; its training split is counted."""
    iterations: int = 1000
    """Iterations, each of `pairs` pairs of crops."""
    counting: tyro.conf.OmitArgPrefixes[PairCounting] = field(default_factory=PairCounting)
    buffer: int = BUFFER
    """Triples held in memory."""
    max_seconds: float | None = None
    """Write what there is after so long; the same command goes on from there."""
    merge: tuple[Path, ...] = ()
    """Add up these files instead of counting."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads."""


@program
def main(args: Args) -> None:
    """Count, or merge."""
    if args.merge:
        triples = merge_counts(args.merge, args.output)
        print(f"{args.output}: {triples} triples of {len(args.merge)} files")
        return
    if args.vqvae is None or args.data is None:
        raise ValueError("--vqvae and --data are needed to count (or --merge FILE ...)")
    if args.iterations < 1:
        raise ValueError(f"--iterations is {args.iterations}, expected 1 or more")
    if args.threads:
        torch.set_num_threads(args.threads)
    codec = load_codec(args.vqvae, pick_device(args.device))
    manifest = _open_data(args.data, codec.config.sample_rate)
    metadata = {
        "codec": fingerprint(args.vqvae),
        "sources": " ".join(manifest.sources),
        "alpha": " ".join(repr(manifest.alpha[name]) for name in manifest.sources),
        "counting": f"{args.counting} of {_songs(manifest)}",
    }
    finished = _finished(args.output, metadata)
    if finished and finished.iterations == args.iterations:
        print(f"{args.output}: already counted")
        return
    began = time.monotonic()
    spool = args.output.with_name(f"{args.output.name}.spool")
    counter = TripleCounter(codec.config.l_bins, spool, buffer=args.buffer, settings=metadata)
    if finished and not counter.iterations:
        counter.adopt(finished)
    if counter.iterations > args.iterations:
        raise ValueError(
            f"{counter.iterations} iterations are already counted for {args.output}: ask for as "
            f"many or more, or delete it and {spool}"
        )
    before = counter.triples
    draws = args.counting.iterate(
        codec, manifest.split("train"), manifest.alpha, counter.iterations, args.iterations
    )
    _count(counter, draws, args.iterations, args.max_seconds)
    keys, counts = counter.result()
    metadata["iterations"] = str(counter.iterations)
    save_keys(args.output, counter.n_codes, keys, counts, metadata)
    seen = len(np.unique(keys // counter.n_codes**2))
    counter.close()
    seconds = time.monotonic() - began
    print(
        f"{args.output}: {counter.triples} triples, {len(keys)} distinct, {seen} of "
        f"{counter.n_codes} mixture codes, {seconds:.0f} s, "
        f"{(counter.triples - before) / seconds:.0f} triples/s"
    )


def _open_data(folder: Path, sample_rate: int) -> Manifest:
    manifest = load_manifest(folder)
    if len(manifest.sources) != 2:
        names = ", ".join(manifest.sources)
        raise ValueError(f"{folder} has {len(manifest.sources)} sources ({names}), expected two")
    if not manifest.split("train"):
        raise ValueError(f"{folder} has no songs in its train split, which is what is counted")
    if manifest.sample_rate != sample_rate:
        raise ValueError(
            f"{folder} is at {manifest.sample_rate} Hz, the codec at {sample_rate}: prepare the "
            f"data at {sample_rate} Hz"
        )
    return manifest


def _songs(manifest: Manifest) -> str:
    """`84 songs (fingerprint)`: of the training songs' audio."""
    tracks = manifest.split("train")
    digest = hashlib.sha256()
    for track in tracks:
        digest.update(f"{track.name} {sorted(track.checksums.items())}\n".encode())
    return f"{len(tracks)} songs ({digest.hexdigest()[:16]})"


def _count(
    counter: TripleCounter, triples: Iterable[Triples], iterations: int, max_seconds: float | None
) -> None:
    """Add iterations until all are there or the time is up; flush now and then."""
    began = flushed = time.monotonic()
    bar = tqdm(total=iterations, initial=counter.iterations, unit="iteration", disable=None)
    with bar:
        for codes in triples:
            counter.add(*codes)
            bar.update()
            now = time.monotonic()
            if max_seconds is not None and now - began >= max_seconds:
                break
            if now - flushed >= _FLUSH_SECONDS:
                counter.flush()
                flushed = now


def _finished(output: Path, metadata: dict[str, str]) -> CountsFile | None:
    """The counts that are there; those of something else are an error."""
    if not output.exists():
        return None
    stored = CountsFile(output)
    for name, value in metadata.items():
        if stored.metadata.get(name) != value:
            raise ValueError(
                f"{output} holds counts of another {name} ({stored.metadata.get(name)}, now "
                f"{value}): delete it, or choose another --output"
            )
    return stored


if __name__ == "__main__":
    sys.exit(main())
