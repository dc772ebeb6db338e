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
from typing import Annotated, Any

import tyro

from jukebox_core.files import check_writable, write_json
from scripts._cli import program
from scripts.ablate import compare, is_ablation, markdown


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
    answered = [(path, *answer(path)) for path in args.files]
    for path, content, tables in answered:
        write_json(path, content)
        print(f"{path}\n\n{tables}")


def answer(path: Path) -> tuple[dict[str, Any], str]:
    """The new content of an ablation.json, and its tables.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: it is a folder, device, pipe or socket.
        ValueError: it is not an ablation.json.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    check_writable(path)
    try:
        if is_ablation(path):
            stored = json.loads(path.read_text(encoding="utf-8"))
            comparisons = list(compare(stored["rows"]))
            content = stored | {"comparisons": comparisons}
            json.dumps(content, allow_nan=False)  # as it will be written
            return content, markdown(stored["rows"], comparisons)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no ablation: {error!r}") from error
    raise ValueError(f"{path} is no ablation: it lacks rows or comparisons")


if __name__ == "__main__":
    sys.exit(main())
