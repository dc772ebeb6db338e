"""How the words after a flag become a value, and what is said of words that become none.

tyro's own messages list every type that was tried. Here each flag says in plain words what it
expects, by one rule around all of tyro's.
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
"""Active (`with WRITTEN_OUT:`), the parser raises `BadFlag` for words that make no value."""

_LONGEST = 100  # characters of what came that are repeated
_NAMES = {int: ("an integer", "integers"), float: ("a number", "numbers"), str: ("a text", "texts")}
_NAMES |= {bool: ("True or False", "True or False"), type(None): ("None", "None")}
_asked: list[PrimitiveTypeInfo] = []  # whose own rule is being looked up


class BadFlag(ValueError):
    """The words after a flag are not of its type: `expected an integer, got 'x'`."""


@WRITTEN_OUT.primitive_rule
def _plain_words(
    info: PrimitiveTypeInfo,
) -> PrimitiveConstructorSpec | UnsupportedTypeAnnotationError | None:
    """Wrap the rule of tyro for a type, with another message."""
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

    # Without choices, which the parser would compare itself; the metavar still shows them.
    return dataclasses.replace(spec, instance_from_str=construct, choices=None)


def expected(kind: Any) -> str:
    """What a flag of a type takes, in words: `an integer`, `numbers`, `a, b or c`."""
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
    """What came, quoted."""
    text = repr(words[0]) if len(words) == 1 else shlex.join(words) or "nothing"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
