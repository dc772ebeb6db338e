"""Checks of values that a user sets; the error names the value, what came, what was expected."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from functools import lru_cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_LONGEST = 1000  # characters of a message
_LARGEST = {True: 2**63 - 1, False: 3.4e38}  # integers: largest int64; others: largest float32


def one_line(error: BaseException) -> str:
    """The message of an error as `plain` text; the error's type if it has no message."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return plain(f"{error.strerror}: {error.filename}")
    return plain(str(error)) or type(error).__name__


def plain(text: str) -> str:
    r"""Text that may hold a file's words, as one line that a terminal shows as it is.

    Characters that a terminal obeys become escapes, such as `\x1b`; of more than 1000 characters
    only the beginning and the end are left.
    """
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 300]} ... {text[-290:]}"
    return printable(text)


def printable(text: object) -> str:
    r"""A path, or other text, as one line: line breaks too become escapes, such as `\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def require(
    name: str,
    value: Any,
    *,
    whole: bool = False,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    hint: str = "",
) -> None:
    """Refuse a value that is not a finite number within the bounds.

    Args:
        name: the value's name in the message, usually the name of the field.
        value: of any type.
        whole: only integers are accepted.
        at_least: smallest value accepted.
        above: the value must be larger.
        at_most: largest value accepted; by default the largest that a tensor can hold.
        below: the value must be smaller.
        hint: appended to the message, for example what the bound depends on.

    Raises:
        ValueError: The value is of another type, NaN, infinite, or out of bounds.
    """
    kind: Any = Integral if whole else Real
    largest = _LARGEST[isinstance(value, Integral)]
    if (
        isinstance(value, kind)
        and not isinstance(value, bool)
        and abs(value) <= largest  # also refuses NaN and infinities
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    ):
        return
    if isinstance(value, kind) and largest < abs(value) < float("inf"):
        at_least = -largest if at_least is None and value < 0 else at_least
        at_most = largest if at_most is None and value > 0 else at_most
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    expected = " and".join(
        f" {words} {bound:{',' if isinstance(bound, int) else 'g'}}"
        for words, bound in bounds.items()
        if bound is not None
    )
    expected = ("an integer" if whole else "a finite number") + expected
    raise ValueError(f"{name} is {value!r}, expected {expected}{hint and f' ({hint})'}")


def require_fields(config: Any, *names: str, optional: bool = False, **bounds: Any) -> None:
    """Apply `require` to the named attributes of a configuration.

    Args:
        config: usually `self`, in `__post_init__`.
        names: of the attributes; each element of a tuple is checked on its own.
        optional: None is accepted.
        bounds: keyword arguments of `require`.

    Raises:
        ValueError: As `require`.
    """
    for name in names:
        value = getattr(config, name)
        if optional and value is None:
            continue
        if isinstance(value, tuple):
            for index, element in enumerate(value):
                require(f"{name}[{index}]", element, **bounds)
        else:
            require(name, value, **bounds)


def require_types(config: Any) -> None:
    """Refuse a dataclass if the value of a field does not have the annotated type.

    Annotations may be numbers (only finite values pass), strings, booleans, other classes,
    literals, tuples of these, and unions. `require_fields` checks bounds.

    Args:
        config: usually `self`, in `__post_init__`.

    Raises:
        ValueError: As `require`.
    """
    for name, annotation in _annotations(config.__class__).items():
        _require_type(name, getattr(config, name), annotation)


@lru_cache(maxsize=64)
def _annotations(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _require_type(name: str, value: Any, annotation: Any) -> None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is float:
        return require(name, value)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        options = [option for option in arguments if option is not NoneType]
        if len(options) == 1:
            return _require_type(name, value, options[0])
        fits = any(_holds(value, option) for option in options)
    elif origin is Literal:
        fits = value in arguments
    elif annotation is int:
        fits = isinstance(value, Integral) and not isinstance(value, bool)
    else:
        fits = isinstance(value, origin or annotation)
    if not fits:
        raise ValueError(f"{name} is {value!r}, expected {_words(annotation)}")
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(value) != len(arguments):
            raise ValueError(f"{name} is {value!r}, expected {len(arguments)} values")
        for index, (element, inner) in enumerate(zip(value, arguments, strict=True)):
            _require_type(f"{name}[{index}]", element, inner)


def _holds(value: Any, annotation: Any) -> bool:
    try:
        _require_type("", value, annotation)
    except ValueError:
        return False
    return True


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_words(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    names = {int: "an integer", float: "a finite number", str: "a string", tuple: "a list"}
    names |= {bool: "True or False", NoneType: "nothing"}
    return names.get(origin or annotation) or f"a {annotation.__name__}"


def require_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ValueError: It is another value.
    """
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name} is {value!r}, expected {' or '.join(map(str, choices))}")


def require_seed(name: str, value: Any) -> None:
    """Refuse a random seed that PyTorch or NumPy does not accept.

    Raises:
        ValueError: It is not an integer from 0 to 2^63 - 1.
    """
    require(name, value, whole=True, at_least=0, at_most=2**63 - 1)
