"""What every script shares: flags from a dataclass, errors as one line, an exit status.

A script reads:

    @dataclass(frozen=True)
    class Args:
        output: Path
        \"\"\"Folder to write to.\"\"\"

    @program
    def main(args: Args) -> None:
        ...

    if __name__ == "__main__":
        sys.exit(main())

`main` then takes `argv` (None: the process's) and returns the exit status, so that tests and
notebooks call it like any function.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, get_type_hints

import tyro

from jukebox_core.checks import one_line, require_seed
from scripts._flag_types import WRITTEN_OUT, BadFlag

__all__ = ["program"]

_RULE = set("─-╭╮╰╯")  # lines in tyro's boxes; "-" if the console is ASCII


class Main(Protocol):
    """What `program` makes of a script's body."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run with flags (None: the process's) and return the exit status."""


def program(body: Callable[[Any], int | None]) -> Main:
    """Make `body(args: Args)` a `main(argv=None) -> exit status`.

    Flags and help come from the dataclass that annotates `args`, and from the module's docstring.
    Bad input (ValueError, OSError, a missing optional package, too little memory) gives one line on
    stderr and status 1. Wrong flags give status 2, Ctrl-C 130, SIGTERM 143. Any other error is a
    bug and keeps its traceback. A field `seed` is checked here, for all programs.
    """

    @functools.wraps(body)
    def main(argv: Sequence[str] | None = None) -> int:
        args_type = get_type_hints(body)["args"]
        path = Path(body.__code__.co_filename)
        path = path.parent if path.stem == "program" else path
        prog = f"python -m {path.parent.name}.{path.stem}"
        doc = body.__globals__.get("__doc__")
        _never_fail_to_print()
        try:
            args = _parse(args_type, argv, prog, doc)
            if getattr(args, "seed", None) is not None:
                require_seed("seed", args.seed)
            with _unwinding_on_sigterm():
                return body(args) or 0
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 1
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            print(f"error: not enough memory: {one_line(error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 130

    return main


@contextlib.contextmanager
def _unwinding_on_sigterm() -> Iterator[None]:
    """Inside the block, SIGTERM raises SystemExit, so that temporary files are removed."""
    default = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not default:
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _is_out_of_memory(error: BaseException) -> bool:
    from jukebox_core.separation.memory import is_out_of_memory  # imports PyTorch, which is slow

    return is_out_of_memory(error)


def _never_fail_to_print() -> None:
    """Let a console or file of another encoding, as Windows has them, show ? for what it lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _parse(args_type: type, argv: Sequence[str] | None, prog: str, doc: str | None) -> Any:
    """Run tyro's parser; its boxed usage errors become one line.

    Raises:
        ValueError: A dataclass refuses the values of its fields.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), WRITTEN_OUT:
            return tyro.cli(args_type, args=argv, prog=prog, description=doc)
    except SystemExit as stop:
        if not stop.code:
            raise
        cause = _cause(stop)
        if cause is not None and not isinstance(cause, BadFlag):
            raise cause from None
        message = _usage_error(said.getvalue())
        if cause is not None and (flag := re.match(r"Error parsing (.+?):( |$)", message)):
            message = f"{flag[1]}: {cause}"  # tyro's box breaks long words
        print(f"error: {message} (see --help)", file=sys.stderr)
        raise


def _cause(stop: BaseException) -> ValueError | None:
    """The ValueError that made tyro stop, if any."""
    cause = stop.__context__
    while cause is not None and not isinstance(cause, ValueError):
        cause = cause.__context__
    return cause


def _usage_error(boxed: str) -> str:
    """The message inside tyro's frame, without its title, help texts and hint."""
    message: list[str] = []
    for line in boxed.splitlines()[1:]:
        content = line.strip("│").removeprefix(" ").rstrip()
        if content and set(content.strip()) <= _RULE:
            if message:
                break
        elif len(content) - len(content.lstrip()) < 8:  # deeper lines are a flag's help text
            message.append(content.strip())
    return " ".join(message) or " ".join(boxed.split())
