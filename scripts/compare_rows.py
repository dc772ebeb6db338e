"""Answer the questions of an ablation anew from its stored rows; nothing is sampled.

    python -m scripts.compare_rows runs/ablation/ablation.json

Replaces the comparisons in every file by those that `scripts.ablate` would make of its rows, and
prints the tables. The rows stay as they are.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jukebox_core.files import write_json
from scripts._cli import program
from scripts._results import describing
from scripts.ablate import compare, markdown


@dataclass(frozen=True)
class Args:
    """Flags of scripts.compare_rows."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """ablation.json of one or more ablations."""


@program
def main(args: Args) -> None:
    """Rewrite every file, print its tables."""
    if not args.files:
        raise ValueError("no file is given")
    for path in args.files:
        with describing(path, "is no ablation"):
            stored = json.loads(path.read_text(encoding="utf-8"))
            comparisons = list(compare(stored["rows"]))
            tables = markdown(stored["rows"], comparisons)
            write_json(path, stored | {"comparisons": comparisons})
        print(f"{path}\n\n{tables}")


if __name__ == "__main__":
    sys.exit(main())
