"""Separate any audio files into stems.

    python -m scripts.separate --method hybrid --models runs/demo/models --output out song.mp3

Writes OUTPUT/SONG/SOURCE.wav for every file: the rate, length and channel count of the input. The
stems are masks of the mixture and sum to it; --no-refine writes the raw decode of one candidate.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from jukebox_core import audio as audio_io
from jukebox_core.files import atomic_folder
from jukebox_core.separation.separator import Separator
from lass.likelihood import BACKOFF
from scripts._cli import program
from scripts._models import Method, build_separator


@dataclass(frozen=True)
class Args:
    """Flags of scripts.separate."""

    mixtures: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MIXTURE")]
    """Audio files: wav, flac, mp3, ogg, aiff (others through ffmpeg)."""
    models: Path
    """Folder of trained models."""
    output: Path
    """Folder to write OUTPUT/NAME/SOURCE.wav to."""
    method: Method = "hybrid"
    """Which of the three systems."""
    candidates: int | None = None
    """Joint candidates per window; default: the models' preset."""
    refine: bool = True
    """Mask the mixture with the candidates' mean power; otherwise the raw decode of one."""
    format: Literal["wav", "flac"] = "wav"
    """wav is 32-bit float; flac is 24-bit and clips beyond full scale."""
    temperature: float = 1.0
    """Of the priors."""
    sigma: float | None = None
    """Of the LQ-VAE's Gaussian likelihood; default 0.4."""
    weight: float | None = None
    """Lambda of the counted likelihood; default 6 (lass), 1 (hybrid)."""
    backoff: float = BACKOFF
    """Observations of a pair that the back-off to the marginals is worth; 0: as LASS published."""
    kernel: bool = True
    """Multiply the hybrid's counts by the LQ-VAE's Gaussian kernel."""
    mask_power: float = 2.0
    """Power of the ratio mask."""
    batch: int = 4
    """Windows sampled together."""
    seed: int = 0
    """Of the sampling."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads."""


@program
def main(args: Args) -> None:
    """Separate every file; the inputs are all looked at before the models are loaded."""
    if not args.mixtures:
        raise ValueError("no MIXTURE given; name at least one audio file")
    if args.threads:
        torch.set_num_threads(args.threads)
    names = [path.stem for path in args.mixtures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several mixtures are called {', '.join(twice)}; separate them apart")
    for path in args.mixtures:
        load_mixture(path)
    separator = build_separator(
        args.method,
        args.models,
        candidates=args.candidates,
        device=args.device,
        temperature=args.temperature,
        sigma=args.sigma,
        weight=args.weight,
        backoff=args.backoff,
        kernel=args.kernel,
        mask_power=args.mask_power,
    )
    for path in args.mixtures:
        written = separate_file(separator, path, args)
        print(f"{path} -> {', '.join(map(str, written))}")


def load_mixture(path: Path) -> tuple[torch.Tensor, int]:
    """A mixture [C, T] and its rate.

    Raises:
        ValueError: it is not audio, empty, not finite, or silent throughout.
    """
    mixture, rate = audio_io.load(path)
    if audio_io.is_silent(mixture, -100.0):
        raise ValueError(f"{path} is silent throughout: there is nothing to separate")
    return mixture, rate


def separate_file(separator: Separator, path: Path, args: Args) -> list[Path]:
    """Write the stems of one file, all or none of them."""
    mixture, rate = load_mixture(path)
    with tqdm(desc=path.name, unit="step", disable=None, leave=False) as bar:
        stems = separator(
            mixture,
            rate,
            seed=args.seed,
            refine=args.refine,
            batch=args.batch,
            progress=_bar(bar),
        )
    folder = args.output / path.stem
    with atomic_folder(folder) as temporary:
        for name, stem in stems.items():
            audio_io.save(temporary / f"{name}.{args.format}", stem, rate)
    return [folder / f"{name}.{args.format}" for name in stems]


def _bar(bar: tqdm) -> Callable[[int, int], None]:
    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return update


if __name__ == "__main__":
    sys.exit(main())
