"""What a case of the fuzzer is, and the mutations that parsers share."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from test_damaged_results import changed, places

from jukebox_core.checks import one_line

LONGEST = 1010
"""Characters of a refusal, as programs print it."""

Random = np.random.Generator


class WrongResult(Exception):
    """Something was accepted, and what it yields is not what it must be."""


@dataclass(frozen=True)
class Case:
    """A case. label: what was mutated. read: reads it. names: one of them is in a refusal.

    valid: True if it must be accepted, False if it must be refused, None if either will do.
    """

    label: str
    read: Callable[[], None]
    names: tuple[str, ...]
    valid: bool | None = None


class Parser(Protocol):
    """One kind of input."""

    def prepare(self, seeds: Path) -> None:
        """Write the files that are mutated."""

    def make(self, rng: Random, seeds: Path, home: Path) -> Case:
        """Write a case into the empty folder `home`; outputs go to `home.parent / "out"`."""


def check(right: Any, what: str) -> None:
    """Raise WrongResult unless a condition holds."""
    if not right:
        raise WrongResult(what)


def refusal_faults(error: BaseException, names: Sequence[str]) -> list[str]:
    """What is wrong with the message of an error."""
    text, shown = str(error), one_line(error)
    found = []
    if not isinstance(error, OSError) and ("\n" in text or "\r" in text):
        found.append("several lines")
    if re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", shown):
        found.append("control characters")
    if not any(name in shown for name in names):
        found.append("unnamed")
    if "allow_pickle" in shown:
        found.append("words of NumPy")
    if len(shown) > LONGEST:
        found.append("too long")
    if found:
        found[0] += f": {type(error).__name__}: {text[:300]!r}"
    return found


def pick(rng: Random, options: Sequence[Any]) -> Any:
    """One of them."""
    return options[int(rng.integers(len(options)))]


NUMBERS = (0, 1, 2, 4, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)


def mutated(rng: Random, content: bytes, head: int = 256) -> bytes:
    """Bytes with one to four places changed, half of them among the first `head`."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        size = len(data)
        at = int(rng.integers(min(size, head) if rng.random() < 0.5 else size) if size else 0)
        span = int(min(2 ** rng.integers(11), max(size - at, 0)))
        match int(rng.integers(10)):
            case 0:
                del data[at:]
            case 1 | 2:
                for place in rng.integers(size, size=3) if size else ():
                    data[place] ^= 1 << int(rng.integers(8))
            case 3 | 4:
                width = int(pick(rng, (1, 2, 4, 8)))
                value = pick(rng, NUMBERS) + int(rng.integers(-1, 2))
                order = pick(rng, ("little", "big"))
                data[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, order)
            case 5:
                data[at : at + span] = rng.bytes(span)
            case 6:
                data[at : at + span] = bytes(span)
            case 7:
                del data[at : at + span]
            case 8:
                data[at:at] = data[at : at + span]
            case 9:
                data += rng.bytes(span)
    return bytes(data)


RAW = {"@digits": "9" * 5000, "@deep": "[" * 50_000 + "]" * 50_000, "@1e999": "1e999"}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, 1e-300, 1e30, 1e308, float("nan"), float("inf"),
    -float("inf"), 2**31, 2**53, 2**63, 2**64, 10**25, 10**400, "", "nonsense", "1",
    "a\nb\x1b[31m\x9b", "x" * 10_000, "\0", "\ud800", "/etc/hostname", "../../x", "..", ".",
    [], {}, [None], [[]], [1, 2], {"a": 1}, ["a", "b"], *RAW,
)  # fmt: skip


def edited(rng: Random, value: Any) -> tuple[Any, str]:
    """A JSON value with one or two places changed, and words for what was done."""
    done = []
    for _ in range(int(rng.integers(1, 3))):
        if not isinstance(value, dict | list):
            break
        place = pick(rng, list(places(value)))
        inner = value
        for key in place:
            inner = inner[key]
        match int(rng.integers(8)):
            case 0 if place and isinstance(place[-1], str):
                value = copy.deepcopy(value)
                holder = value
                for key in place[:-1]:
                    holder = holder[key]
                content = holder.pop(place[-1])
                if rng.random() < 0.5:
                    holder[pick(rng, ("other", "a\nb\x1b[31m", "", "x" * 3000))] = content
                done.append(f"without {'.'.join(map(str, place))}")
                continue
            case 1 if isinstance(inner, int | float):
                new: Any = pick(rng, (inner + 1, inner * 2, -inner, inner * 1000, str(inner)))
            case 2 if isinstance(inner, dict):
                new = inner | {pick(rng, ("more", "a\nb\x1b[31m", "")): pick(rng, VALUES)}
            case 3 if isinstance(inner, list):
                new = pick(rng, (inner[:-1], inner * 2, inner[::-1], inner + [pick(rng, VALUES)]))
            case 4:
                new = [inner]
            case _:
                new = pick(rng, VALUES)
        value = changed(value, place, new)
        done.append(f"{'.'.join(map(str, place))} is {str(new)[:40]!r}")
    return value, "; ".join(done)


def json_text(rng: Random, value: Any) -> tuple[bytes, str]:
    """The bytes of an edited JSON file, now and then damaged as a text, and what was done."""
    value, done = edited(rng, value)
    text = json.dumps(value, indent=int(rng.integers(3)) or None)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    data = text.encode()
    match int(rng.integers(20)):
        case 0:
            return b"\xef\xbb\xbf" + data, f"{done}; a byte order mark"
        case 1:
            return text.encode("utf-16"), f"{done}; UTF-16"
        case 2 | 3:
            return mutated(rng, data), f"{done}; bytes"
        case 4:
            return data[: int(rng.integers(len(data)))], f"{done}; cut"
    return data, done


class Evil:
    """Unpickling it makes a file `executed` in the working folder."""

    def __reduce__(self) -> Any:
        return open, ("executed", "w")
