"""Seconds from a song's upload to its first sound in the app, and to the whole song.

    python -m benchmarks.bench_app --threads 2

The models that ship for whole songs are loaded before. As in the app, only one thread computes: of
two, each with OpenMP threads of its own, both would be slower. The song is noise of `--seconds`, in
stereo at 44.1 kHz; its content does not affect the time. The time starts when the file is queued:
browser and network are not included.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from hybrid import load_song_separator
from jukebox_core.checks import require_fields
from jukebox_core.machine import set_threads
from scripts._cli import program
from scripts.app.jobs import JobQueue, Limits

RATE = 44_100


@dataclass(frozen=True)
class Args:
    """Flags."""

    seconds: float = 12.0
    """Duration of the song."""
    repeats: int = 3
    """Times that it is separated."""
    threads: int | None = None
    """CPU threads."""

    def __post_init__(self) -> None:
        require_fields(self, "seconds", at_least=6)
        require_fields(self, "repeats", whole=True, at_least=1)
        require_fields(self, "threads", optional=True, whole=True, at_least=1)


@program
def main(args: Args) -> None:
    """Measure and print."""
    set_threads(args.threads)
    noise = np.random.default_rng(0).random((int(args.seconds * RATE), 2), np.float32) - 0.5
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        soundfile.write(folder / "song.wav", noise, RATE, "FLOAT")
        queue = JobQueue(folder / "results", lambda _: load_song_separator(), Limits())
        queue.submit(folder / "song.wav", "neural").result()
        print(f"{args.seconds:g} s of music, {torch.get_num_threads()} threads")
        for _ in range(args.repeats):
            began = time.perf_counter()
            job = queue.submit(folder / "song.wav", "neural")
            while job.opening is None and not job.done:
                time.sleep(0.01)
            first = time.perf_counter() - began
            job.result()
            whole = time.perf_counter() - began
            print(
                f"first sound after {first:.1f} s, the whole song after {whole:.1f} s", flush=True
            )
        queue.close()


if __name__ == "__main__":
    sys.exit(main())
