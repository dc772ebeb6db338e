"""Compute the table of code sums for the LQ-VAE's likelihood (LQ-VAE, section 3.3).

python -m scripts.precompute_sums --vqvae RUN --output MODELS/linearisation/sums.safetensors
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.files import check_replaceable
from jukebox_core.machine import set_threads
from jukebox_core.tables import table_of
from lqvae.sums import ALPHA, code_sums, save_sums
from scripts._cli import program


@dataclass(frozen=True)
class Args:
    """Flags of scripts.precompute_sums."""

    vqvae: Path
    """Run folder of the codec."""
    output: Path
    """File to write the table to."""
    alpha: tuple[float, float] = ALPHA
    """Weights of the first and the second source in the mixture."""
    threads: int | None = None
    """CPU threads; without it PyTorch's default."""


@program
def main(args: Args) -> None:
    """Compute and write the table."""
    set_threads(args.threads)
    check_replaceable(args.output, table_of("code_sums"), "a table of code sums")
    codec = load_codec(args.vqvae)
    began = time.monotonic()
    table = code_sums(codec.codebook, args.alpha)
    save_sums(args.output, table, fingerprint(args.vqvae), args.alpha)
    distinct = len(table.unique())
    print(
        f"{args.output}: {len(table)} x {len(table)} sums, {distinct} distinct codes, "
        f"{time.monotonic() - began:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
