"""The section of every command on the page of commands: what it says of itself, and its flags."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parent.parent.parent


def names() -> list[str]:
    """The project's commands: scripts.NAME."""
    folders = (path.parent for path in (ROOT / "scripts").glob("*/__main__.py"))
    return sorted(path.stem for path in (*folders, *(ROOT / "scripts").glob("[!_]*.py")))


def commands() -> str:
    """Markdown of all sections."""
    with _importable():
        return "\n".join(section(name) for name in names())


def section(name: str) -> str:
    """Title, docstring and flags of one command."""
    module = importlib.import_module(f"scripts.{name}")
    about = inspect.cleandoc(inspect.getmodule(inspect.unwrap(module.main)).__doc__ or "")
    parser = parser_of(module)
    rows = ["| flag | default | |", "|---|---|---|", *map(_row, flags_of(parser))]
    return "\n".join([f"## {name} {{ #{name} }}", "", about, "", *rows, ""])


def parser_of(module: Any) -> argparse.ArgumentParser:
    """The parser that a script's main would use without a flag given."""
    from scripts import _cli

    asked: list[type] = []

    def instead(args_type: type, argv: Any, prog: str, doc: str | None) -> Any:
        asked.append(args_type)
        raise SystemExit(0)

    original, _cli._parse = _cli._parse, instead
    try:
        module.main([])
    finally:
        _cli._parse = original
    return tyro.extras.get_parser(asked[0])


def flags_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The parser's flags, without --help."""
    return (action for action in parser._actions if "--help" not in action.option_strings)


def _row(action: argparse.Action) -> str:
    """Flag with its kind of value, default, meaning."""
    meaning, _, default = str(action.help or "").rpartition("(")
    default = default.rstrip(")").removeprefix("default:").strip()
    value = "" if action.nargs == 0 else _plain(str(action.metavar or ""))
    flag = ", ".join(f"`{f'{name} {value}'.strip()}`" for name in action.option_strings or [""])
    shown = f"`{default}`" if default not in ("", "None", "required") else default
    return f"| {flag} | {'' if shown == 'None' else shown} | {' '.join(meaning.split())} |"


def _plain(value: str) -> str:
    """The kind of value without what typing adds: a flag that is left out is None."""
    value = value.replace("{None}|", "").replace("{None,", "{")
    return value.replace("|", " or ").replace(",", ", ")


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """The project's modules can be imported, wherever the site is built from."""
    sys.path.insert(0, str(ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT))
