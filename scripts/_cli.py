"""Shared by all programs: flags from a dataclass, one-line errors, an exit status.

    @dataclass(frozen=True)
    class Args:
        output: Path
        \"\"\"Folder to write to.\"\"\"

    @program
    def main(args: Args) -> None:
        ...

    if __name__ == "__main__":
        sys.exit(main())

`main(argv=None)` then returns the exit status, so that tests and notebooks call it like any
function.
"""

from __future__ import annotations

import contextlib
import functools
import io
import operator
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

import scripts
from jukebox_core.caches import cache_folder
from jukebox_core.checks import one_line, plain, require_seed

_RULE = set("─-╭╮╰╯")  # lines in tyro's boxes; "-" if the console is ASCII
_NARROWEST = 60  # columns of the help
_LONGEST = 100  # characters of the user's words that an error repeats
_FLAGS = ConstructorRegistry()  # how all programs parse flags and show them in --help
_delegated: list[Any] = []  # types for which a rule below is looking up tyro's own rule


class Program:
    """A callable `main(argv=None) -> exit status`, made of `body(args: Args)`; used as `program`.

    Flags and help come from the dataclass that annotates `args`, and from the module's docstring.
    If `body` takes `command` too, it gets the command line as one would type it.

    Bad input (ValueError, OSError, a missing optional package, too little memory) and the loss of
    another process of the run give one line on stderr and status 1. Wrong flags give status 2,
    Ctrl-C 130, SIGTERM 143. Any other error is a bug and keeps its traceback. `args.seed`, if any,
    is checked here for all programs.
    """

    def __init__(
        self, body: Callable[..., int | None], defaults: Callable[[Any], Any] | None = None
    ):
        """Make a program.

        Args:
            body: the function to run.
            defaults: `defaults(flags: Flags) -> Args` gives the defaults of all flags, with
                `tyro.MISSING` for required ones; it depends on a few flags, which are parsed first.
        """
        functools.update_wrapper(self, body)
        self._body = body
        self._defaults = defaults
        self._hints = get_type_hints(body)
        path = Path(body.__code__.co_filename)
        path = path.parent if path.stem == "program" else path
        ours = path.parent == Path(scripts.__file__).parent
        self._prog = (scripts.COMMAND if ours else f"python -m {path.parent.name}.") + path.stem

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run with flags (None: the process's) and return the exit status."""
        argv = list(sys.argv[1:] if argv is None else argv)
        _never_fail_to_print()
        try:
            args = self._parse(argv)
            if getattr(args, "seed", None) is not None:
                require_seed("seed", args.seed)
            more = {}
            if "command" in self._hints:
                more["command"] = shlex.join([*self._prog.split(), *argv])
            with contextlib.suppress(OSError):  # not even a temporary folder can be made
                cache_folder()
            with _unwinding_on_signals():
                return self._body(args, **more) or 0
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 1
        except (MemoryError, RuntimeError) as error:
            # These import PyTorch, which is slow.
            from jukebox_core.machine import is_out_of_memory
            from jukebox_core.training.ranks import is_lost_peer

            if is_out_of_memory(error):
                print(f"error: not enough memory: {one_line(error)}", file=sys.stderr)
            elif is_lost_peer(error):
                hint = "see its messages; the same command continues"
                print(f"error: lost another process of this run: {hint}", file=sys.stderr)
            else:
                raise
            return 1
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 130

    def parser(self) -> Any:
        """The parser of the flags, with the defaults of an empty command line.

        Only the documents and the tests ask for it: tyro deprecates it and names no other way to
        list flags.
        """
        kind = self._hints["args"]
        return tyro.extras.get_parser(kind, default=self._default([]), registry=_FLAGS)

    def _parse(self, argv: Sequence[str]) -> Any:
        text = (self._body.__globals__.get("__doc__") or "").replace(
            "python -m scripts.", scripts.COMMAND
        )
        options = {"prog": self._prog, "description": text}
        return _parse(self._hints["args"], argv, default=self._default(argv), **options)

    def _default(self, argv: Sequence[str]) -> Any:
        """The defaults of all flags, which may depend on a few of them."""
        if self._defaults is None:
            return tyro.MISSING_NONPROP
        kind = get_type_hints(self._defaults)["flags"]
        flags, _ = _parse(kind, argv, return_unknown_args=True, add_help=False)
        return self._defaults(flags)


program = Program


@contextlib.contextmanager
def _unwinding_on_signals() -> Iterator[None]:
    """Inside the block, SIGTERM raises SystemExit, so that temporary files are removed.

    Neither it nor the KeyboardInterrupt of Ctrl-C gets lost, as it would in a callback of
    soundfile, where any exception is printed and ignored.
    """
    raised: dict[int, BaseException] = {}
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            raised[signal.SIGTERM] = SystemExit(128 + signal.SIGTERM)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raised[signal.SIGINT] = KeyboardInterrupt()

    def stop(number: int, frame: types.FrameType | None) -> None:
        if not _in_callback(frame):
            raise raised[number]
        threading.Timer(0.01, _send_again, (number,)).start()

    before = {number: signal.signal(number, stop) for number in raised}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send_again(number: int) -> None:
    """Send a signal to the main thread, which may be asleep."""
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def _in_callback(frame: types.FrameType | None) -> bool:
    """Whether libsndfile is reading or writing through a Python object."""
    while frame is not None:
        code = frame.f_code
        if code.co_name.startswith("vio_") and Path(code.co_filename).stem == "soundfile":
            return True
        frame = frame.f_back
    return False


def _never_fail_to_print() -> None:
    """Print ? for characters that the console's encoding lacks, as on Windows."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _delegate(rule: Callable[[Any], Any], info: Any) -> Any:
    """Tyro's own rule for a type."""
    _delegated.append(info)
    try:
        return rule(info)
    finally:
        _delegated.pop()


class _BadValue(ValueError):
    """The words after a flag are not of its type: `expected INT, got 'x'`."""


@_FLAGS.primitive_rule
def _value(
    info: PrimitiveTypeInfo,
) -> PrimitiveConstructorSpec[Any] | UnsupportedTypeAnnotationError | None:
    """Tyro's rule for a type, with `INT|auto` instead of `{None}|INT|{auto}` and short errors."""
    if _delegated and _delegated[-1] is info:
        return None
    kinds = get_args(info.type) if get_origin(info.type) in (Union, types.UnionType) else ()
    if type(None) in kinds:
        others = functools.reduce(operator.or_, (kind for kind in kinds if kind is not type(None)))
        spec = ConstructorRegistry.get_primitive_spec(
            replace(info, type=others, type_origin=get_origin(others))
        )
        return spec if isinstance(spec, UnsupportedTypeAnnotationError) else _optional(spec)
    spec = _delegate(ConstructorRegistry.get_primitive_spec, info)
    if isinstance(spec, UnsupportedTypeAnnotationError):
        return spec
    metavar = re.sub(r"\{(\w+)\}", r"\1", spec.metavar)

    def construct(words: list[str]) -> Any:
        if spec.choices is None or all(word in spec.choices for word in words):
            with contextlib.suppress(ValueError, TypeError):
                value = spec.instance_from_str(words)
                if not (isinstance(value, PurePath) and words == [""]):  # Path("") is "."
                    return value
        raise _BadValue(f"expected {metavar}, got {_shown(words)}")

    # Without choices: argparse would check them with its own message. The metavar shows them.
    return replace(spec, instance_from_str=construct, metavar=metavar, choices=None)


def _optional(spec: PrimitiveConstructorSpec[Any]) -> PrimitiveConstructorSpec[Any]:
    """Accept the word None, and do not advertise it."""
    return replace(
        spec,
        instance_from_str=lambda words: (
            None if words == ["None"] else spec.instance_from_str(words)
        ),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: (
            ["None"] if value is None else spec.str_from_instance(value)
        ),
    )


@_FLAGS.struct_rule
def _struct(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Tyro's rule for a dataclass; the help has no default that is None, empty or absolute."""
    if _delegated and _delegated[-1] is info:
        return None
    spec = _delegate(ConstructorRegistry.get_struct_spec, info)
    if not isinstance(spec, StructConstructorSpec):
        return None
    hint = tyro.conf.arg(help_behavior_hint=_default_shown)
    kinds: list[Any] = [Annotated[field.type, hint] for field in spec.fields]
    fields = (
        replace(field, type=kind, helptext=functools.partial(_joined, field.helptext))
        for field, kind in zip(spec.fields, kinds, strict=True)
    )
    return replace(spec, fields=tuple(fields))


def _joined(text: str | Callable[[], str | None] | None) -> str | None:
    """A docstring without its line breaks, which the help would keep."""
    text = text() if callable(text) else text
    return text and " ".join(text.split())


def _default_shown(default: str) -> str:
    own = default in ("", "None") or PurePath(default).is_absolute()  # of this installation
    return "" if own else f"(default: {default})"


def _shown(words: Sequence[str]) -> str:
    """The user's words, quoted and cut."""
    text = repr(words[0]) if len(words) == 1 else shlex.join(words) or "nothing"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def _parse(kind: type, argv: Sequence[str], **options: Any) -> Any:
    """Run tyro's parser; its boxed usage errors become one line.

    Raises:
        ValueError: A dataclass refuses the values of its fields.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), _wide_enough():
            return tyro.cli(kind, args=argv, registry=_FLAGS, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        cause = _cause(stop)
        if cause is not None and not isinstance(cause, _BadValue):
            raise cause from None
        message = _usage_error(errors.getvalue())
        if cause is not None and (flag := re.match(r"Error parsing (.+?):( |$)", message)):
            message = f"{flag[1]}: {cause}"  # tyro's box breaks long words
        print(f"error: {plain(message)} (see --help)", file=sys.stderr)
        raise


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """In a terminal of 20 columns, tyro would write one letter of the help in each line."""
    before = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


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
