"""The commands that documents show: taken out of their fenced blocks, held against the scripts."""

import contextlib
import io
import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"-m (scripts\.\w+|benchmarks\.\w+)(.*)")


def blocks(document: Path, language: str = "") -> list[str]:
    """The fenced blocks of a language, in order."""
    text = document.read_text(encoding="utf-8")
    return [body for name, body in FENCED.findall(text) if name == language]


def calls(block: str) -> list[tuple[str, list[str]]]:
    """[(module, arguments)] of the lines that call one of the project's modules."""
    lines = block.replace("\\\n", " ").splitlines()
    found = [match for line in lines if (match := CALL.search(line.partition("#")[0]))]
    return [
        (match[1], [word for word in shlex.split(match[2]) if word != "..."]) for match in found
    ]


@cache
def known_flags(module: str) -> frozenset[str]:
    """The flags that a module's --help names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        import_module(module).main(["--help"])
    return frozenset(re.findall(r"--[\w.-]+", said.getvalue()))


def flags(words: list[str]) -> set[str]:
    """The flags among the arguments."""
    return {word.partition("=")[0] for word in words if word.startswith("--")}
