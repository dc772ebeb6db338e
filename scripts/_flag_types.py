"""Parse the words after a flag, with a plain error message for words of the wrong type.

tyro's own messages list every type that was tried. Here one rule wraps all of tyro's rules, and its
message names in plain words what the flag expects.
"""

from __future__ import annotations

import dataclasses
import shlex
import types
import typing
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Literal, Union

from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

__all__ = ["WRITTEN_OUT", "BadFlag", "expected"]

WRITTEN_OUT = ConstructorRegistry()
"""In `with WRITTEN_OUT:`, tyro's parser raises `BadFlag` for words of the wrong type."""

_LONGEST = 100  # characters of the given words that the message repeats
_NAMES = {int: ("an integer", "integers"), float: ("a number", "numbers")}
_NAMES |= {str: ("a string", "strings"), bool: ("True or False", "True or False")}
_NAMES |= {type(None): ("None", "None")}
_asked: list[PrimitiveTypeInfo] = []  # types whose rule in tyro is being looked up


class BadFlag(ValueError):
    """The words after a flag are not of its type: `expected an integer, got 'x'`."""


@WRITTEN_OUT.primitive_rule
def _plain_words(
    info: PrimitiveTypeInfo,
) -> PrimitiveConstructorSpec | UnsupportedTypeAnnotationError | None:
    """Wrap tyro's rule for a type; only the error message changes."""
    if _asked and _asked[-1] is info:
        return None
    _asked.append(info)
    try:
        spec = ConstructorRegistry.get_primitive_spec(info)
    finally:
        _asked.pop()
    if not isinstance(spec, PrimitiveConstructorSpec):
        return spec

    def construct(words: list[str]) -> Any:
        if spec.choices is None or all(word in spec.choices for word in words):
            try:
                value = spec.instance_from_str(words)
                if not (isinstance(value, PurePath) and words == [""]):  # Path("") is "."
                    return value
            except (ValueError, TypeError):
                pass
        raise BadFlag(f"expected {expected(info.type)}, got {_shown(words)}")

    # Without choices: argparse would check them with its own message. The metavar shows them.
    return dataclasses.replace(spec, instance_from_str=construct, choices=None)


def expected(kind: Any) -> str:
    """Describe the values of a flag of this type: `an integer`, `numbers`, `a, b or c`."""
    return _name(kind, False)


def _name(kind: Any, many: bool) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in _NAMES:
        return _NAMES[kind][many]
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return "paths" if many else "a path"
    if origin is typing.Annotated:
        return _name(inner[0], many)
    if origin is Literal:
        return _either([str(choice) for choice in inner])
    if origin in (Union, types.UnionType):
        return _either([_name(each, many) for each in inner if each is not type(None)])
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return _name(inner[0], True)
    if origin is tuple and len(set(inner)) == 1:
        return f"{'groups of ' if many else ''}{len(inner)} {_name(inner[0], True)}"
    return f"values of {kind}" if many else f"a value of {kind}"


def _either(names: Sequence[str]) -> str:
    """`a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _shown(words: Sequence[str]) -> str:
    """The given words, quoted."""
    text = repr(words[0]) if len(words) == 1 else shlex.join(words) or "nothing"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
