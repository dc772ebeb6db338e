"""Run a program by name: `python -m scripts NAME FLAGS`, or `latent-separation NAME FLAGS`."""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import scripts


def programs() -> dict[str, Path]:
    """{name: file with the flags} of all programs."""
    here = Path(__file__).parent
    files = [*here.glob("[!_]*.py"), *here.glob("*/program.py")]
    return {p.parent.name if p.stem == "program" else p.stem: p for p in sorted(files)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the first argument names; return its exit status."""
    name, *flags = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: {scripts.COMMAND.strip(' .')} NAME FLAGS\n\nNAME --help shows the flags.\n")
        for program, path in programs().items():
            about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            print(f"{program:18} {' '.join(about.partition(chr(10) * 2)[0].split())}")
        return 0
    if name not in programs():
        print(f"error: there is no program {name!r}; --help lists them", file=sys.stderr)
        return 2
    return importlib.import_module(f"scripts.{name}").main(flags)


if __name__ == "__main__":
    sys.exit(main())
