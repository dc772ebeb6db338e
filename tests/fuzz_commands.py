"""Command lines for the fuzzer: nonsense in every program's flags, parsed and not run."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import types
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fuzz_cases import LONGEST, Case, Random, check, pick
from sweep_programs import BASES
from sweep_rules import VALUES, flag_of

WORDS = (
    *(value for value in VALUES.values() if value is not None),
    "--", "-", "=", "--help=1", "-h", "None", "True", "auto", "\n", "a\nb", "\x1b[31mred", "\0",
    "\udcff", "{", "}", "%s", "%(prog)s", "[red]", "٣", "0x10", "1_000", "1e5", "1e-400", "+1",
    " 1", "1 ", "1,2", "x" * 10_000, "9" * 5000, "--nonsense", "--train.nonsense", "..", "/",
    "~", "*", "--output", "--models=", "@file", "'", '"',
)  # fmt: skip


class Commands:
    """Flags of all programs, in the parser that `scripts._cli.Program` makes of them."""

    def prepare(self, seeds: Path) -> None:
        seeds.mkdir()

    def make(self, rng: Random, seeds: Path, home: Path) -> Case:
        name = pick(rng, sorted(BASES))
        module = importlib.import_module(f"scripts.{name}")
        base = BASES[name]
        words = _words(base.command(pick(rng, ("", *base.instead))))
        flags = [f.name for f in map(flag_of, _flags(module)) if f and f.name]
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(words) + 1))
            match int(rng.integers(6)):
                case 0 | 1:
                    words[at : at + 1] = [pick(rng, WORDS)]
                case 2:
                    words[at:at] = [pick(rng, WORDS)]
                case 3:
                    del words[at : at + int(rng.integers(1, 4))]
                case 4:
                    words += [pick(rng, flags), pick(rng, WORDS)]
                case 5:
                    words += [f"{pick(rng, flags)}={pick(rng, WORDS)}"]
        shown = " ".join(map(ascii, words))[:300]
        return Case(f"{name} {shown}", partial(read, name, module.main, words), (name,))


PARSER = Commands()
_known: dict[str, list[Any]] = {}


def _flags(module: types.ModuleType) -> list[Any]:
    import flags as site_flags

    if module.__name__ not in _known:
        _known[module.__name__] = list(site_flags.flags_of(module.main.parser()))
    return _known[module.__name__]


def _words(command: dict[str, list[str]]) -> list[str]:
    words = list(command.pop(""))
    return words + [word for flag, values in command.items() for word in (flag, *values)]


def read(name: str, main: Any, words: Sequence[str]) -> None:
    """Parse a command; it is accepted, or refused in one line with status 1 or 2."""
    parsed, said, shown = [], _Console(), _Console()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        status = without_body(main, parsed)(list(words))
    text = said.text()
    if status == 0:
        check(not text, f"accepted, and said {text[:200]!r}")
        check(parsed or "usage:" in shown.text(), "accepted, and nothing was parsed")
        return
    check(status in (1, 2), f"its status is {status}")
    check(not parsed, f"refused with parsed flags: {text[:200]!r}")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    check(len(errors) == 1 and text.count("\n") == 1, f"it said {text[:300]!r}")
    check(len(text) < LONGEST + 40, f"it said {len(text)} characters: {text[:200]!r}")
    check("\x1b" not in text and "\0" not in text, f"it said {text[:200]!r}")
    raise ValueError(f"{name}: {text.strip()}")


def without_body(main: Any, parsed: list[Any]) -> Any:
    """A program that keeps its flags instead of running."""
    other = copy.copy(main)

    def body(args: Any, command: str = "") -> None:
        parsed.append(args)

    other._body = types.FunctionType(
        body.__code__, main._body.__globals__, closure=body.__closure__, argdefs=("",)
    )
    return other


class _Console(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline=os.linesep)

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]
