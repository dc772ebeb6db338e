"""The section of every command on the page of commands: its docstring and its flags."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def names() -> list[str]:
    """The project's commands: scripts.NAME."""
    folders = (path.parent for path in (ROOT / "scripts").glob("*/__main__.py"))
    return sorted(path.stem for path in (*folders, *(ROOT / "scripts").glob("[!_]*.py")))


def commands() -> str:
    """Markdown of all sections."""
    sys.path.insert(0, str(ROOT))  # the site may be built from anywhere
    try:
        return "\n".join(section(name) for name in names())
    finally:
        sys.path.remove(str(ROOT))


def section(name: str) -> str:
    """Title, docstring and flags of one command."""
    module = importlib.import_module(f"scripts.{name}")
    text = inspect.cleandoc(inspect.getmodule(inspect.unwrap(module.main)).__doc__ or "")
    rows = ["| flag | default | |", "|---|---|---|", *map(_row, flags_of(module.main.parser()))]
    return "\n".join([f"## {name} {{ #{name} }}", "", text, "", *rows, ""])


def flags_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The flags of a parser, without --help."""
    return (action for action in parser._actions if "--help" not in action.option_strings)


def _row(action: argparse.Action) -> str:
    """A table row: flag and metavar, default, meaning."""
    text = " ".join(str(action.help or "").split())
    hint = re.search(r" ?\((?:default: (.*)|required)\)$", text)
    meaning = text[: hint.start()] if hint else text
    default = "" if not hint else "required" if hint[1] is None else f"`{hint[1]}`"
    value = "" if action.nargs == 0 else str(action.metavar or "")
    value = value.replace("|", " or ").replace(",", ", ")
    flag = ", ".join(f"`{f'{name} {value}'.strip()}`" for name in action.option_strings or [""])
    return f"| {flag} | {default} | {meaning.replace('|', '&#124;')} |"
