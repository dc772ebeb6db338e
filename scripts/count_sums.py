"""Count code triples (first source, second source, mixture) for LASS and the hybrid.

    python -m scripts.count_sums --vqvae RUN --data DIR --output FILE
    python -m scripts.count_sums --merge PART1 PART2 --output FILE

FILE is MODELS/reconstruction/counts.safetensors for LASS and
MODELS/linearisation/counts.safetensors for the hybrid.

Memory is bounded whatever the number of iterations. Interrupted, the same command goes on where the
last flush was (a folder beside the output holds the runs).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.manifest import load_manifest
from lass.counting import PairCounting
from lass.counts import (
    BUFFER,
    TripleCounter,
    from_keys,
    load_counts,
    merge_counts,
    save_counts,
)
from scripts._cli import program
from scripts._models import pick_device


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
    flush_every: int = 100
    """Iterations after which what was counted is safe on disk."""
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
        _merge(args.output, args.merge)
        return
    if args.vqvae is None or args.data is None:
        raise ValueError("--vqvae and --data are needed to count (or --merge FILE ...)")
    if args.threads:
        torch.set_num_threads(args.threads)
    began = time.monotonic()
    manifest = load_manifest(args.data)
    if len(manifest.sources) != 2:
        raise ValueError(f"{args.data} has {len(manifest.sources)} sources; counts need two")
    codec = load_codec(args.vqvae, pick_device(args.device))
    settings = {
        "codec": fingerprint(args.vqvae),
        "songs": [track.name for track in manifest.split("train")],
        **dataclasses.asdict(args.counting),
    }
    metadata = {
        "codec": settings["codec"],
        "sources": " ".join(manifest.sources),
        "alpha": " ".join(repr(manifest.alpha[name]) for name in manifest.sources),
        "iterations": str(args.iterations),
        "counting": repr(args.counting),
    }
    if _is_done(args.output, metadata):
        print(f"{args.output}: already counted")
        return
    spool = args.output.with_name(f"{args.output.name}.spool")
    counter = TripleCounter(codec.config.l_bins, spool, buffer=args.buffer, settings=settings)
    triples = args.counting.iterate(
        codec, manifest.split("train"), manifest.alpha, counter.iterations, args.iterations
    )
    with tqdm(
        total=args.iterations, initial=counter.iterations, unit="iteration", disable=None
    ) as bar:
        for i, codes in enumerate(triples, 1):
            counter.add(*codes)
            if i % args.flush_every == 0:
                counter.flush()
            bar.update()
    counts = from_keys(counter.n_codes, *counter.result())
    save_counts(args.output, counts, metadata)
    counter.close()
    print(
        f"{args.output}: {counter.triples} triples, {len(counts.counts)} distinct, "
        f"{_seen(counts)} of {counts.n_codes} mixture codes, {time.monotonic() - began:.0f} s"
    )


def _seen(counts) -> int:
    return int((counts.offsets[1:] > counts.offsets[:-1]).sum())


def _is_done(output: Path, metadata: dict[str, str]) -> bool:
    """Whether the file holds these very counts; a file of others is an error."""
    if not output.exists():
        return False
    _, stored = load_counts(output)
    if {name: stored.get(name) for name in metadata} != metadata:
        raise ValueError(f"{output} holds other counts: delete it, or choose another --output")
    return True


def _merge(output: Path, files: tuple[Path, ...]) -> None:
    loaded = [load_counts(path) for path in files]
    for name in ("codec", "sources", "alpha"):
        values = {metadata.get(name) for _, metadata in loaded}
        if len(values) != 1:
            raise ValueError(f"the files to merge differ in {name}: {', '.join(map(str, values))}")
    counts = merge_counts([part for part, _ in loaded])
    metadata = loaded[0][1] | {
        "iterations": str(sum(int(m.get("iterations", 0)) for _, m in loaded)),
        "counting": " + ".join(m.get("counting", "") for _, m in loaded),
    }
    save_counts(output, counts, metadata)
    print(f"{output}: {int(counts.counts.sum())} triples of {len(files)} files")


if __name__ == "__main__":
    sys.exit(main())
