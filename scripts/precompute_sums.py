"""Compute the table of code sums for the LQ-VAE's likelihood (LQ-VAE, section 3.3).

    python -m scripts.precompute_sums --vqvae RUN --output MODELS/linearisation/sums.safetensors

For more than two sources, give all their gains with --alpha. The sources are added up one by one,
in the order of their names, and every sum has a table: sums_2.safetensors of the first two, and so
on; the output is that of the mixture.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.checks import require_fields
from jukebox_core.files import check_replaceable
from jukebox_core.machine import set_threads
from jukebox_core.separation.partial_sums import steps_of, table_of_step
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
    alpha: tuple[float, ...] = ALPHA
    """Weights of the sources in the mixture, in the order of their names."""
    threads: int | None = None
    """CPU threads; without it PyTorch's default."""

    def __post_init__(self) -> None:
        """Refuse weights that make no mixture of two or more sources."""
        if len(self.alpha) < 2:
            raise ValueError(f"alpha has {len(self.alpha)} weights, expected two or more")
        require_fields(self, "alpha", at_least=0)
        if not any(self.alpha[:2]):
            raise ValueError(
                f"alpha is {self.alpha}, expected a weight above 0 among the first two"
            )


@program
def main(args: Args) -> None:
    """Compute and write the table."""
    set_threads(args.threads)
    steps = steps_of({f"{number:09}": gain for number, gain in enumerate(args.alpha)})
    files = [args.output.with_name(table_of_step(args.output.name, s.size, s.of)) for s in steps]
    for file in files:
        check_replaceable(file, table_of("code_sums"), "a table of code sums")
    codec = load_codec(args.vqvae)
    for file, step in zip(files, steps, strict=True):
        began = time.monotonic()
        table = code_sums(codec.codebook, step.weights)
        save_sums(file, table, fingerprint(args.vqvae), step.weights, step.place)
        print(
            f"{file}: {len(table)} x {len(table)} sums, {len(table.unique())} distinct codes, "
            f"{time.monotonic() - began:.1f} s"
        )


if __name__ == "__main__":
    sys.exit(main())
