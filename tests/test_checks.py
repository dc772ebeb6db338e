"""`jukebox_core.checks`: what is accepted, and what the refusal says."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox_core.checks import one_line, require, require_fields, require_types


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a.wav\nis\r\n  bad"), "a.wav is bad"),
        (ValueError("a\x1b[31m\x9b\u202e\0.wav"), r"a\x1b[31m\x9b\u202e\x00.wav"),
        (OSError(2, "No such file", "a\x07.wav"), r"No such file: a\x07.wav"),
        (ValueError("Ü é 鼓.wav"), "Ü é 鼓.wav"),
        (ValueError("\udcff.wav"), r"\udcff.wav"),
        (KeyError(), "KeyError"),
    ],
)
def test_messages_are_one_line_that_no_terminal_obeys(error, expected):
    assert one_line(error) == expected


def test_of_a_long_message_the_file_and_the_end_are_left():
    shown = one_line(ValueError(f"a.wav is {'x' * 9000}: copy it again"))
    assert len(shown) < 1010 and shown.startswith("a.wav is xx")
    assert shown.endswith("xx: copy it again") and " ... " in shown


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=5),
)


@given(ANYTHING, st.booleans())
def test_what_is_accepted_is_a_finite_number_within_the_bounds(value, whole):
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    expected = number and math.isfinite(value) and 0 <= value < 10
    try:
        require("rate", value, whole=whole, at_least=0, below=10)
        accepted = True
    except ValueError as error:
        accepted = False
        assert str(error).startswith(f"rate is {value!r}, expected ")
        assert "\n" not in repr(str(error))
    assert accepted == expected


@pytest.mark.parametrize("value", [10**30, 10**400, -(10**30), 1e39, 2**63])
def test_what_no_tensor_holds_is_refused_without_bounds(value):
    with pytest.raises(ValueError, match="steps is"):
        require("steps", value, whole=isinstance(value, int))


def test_numpy_numbers_are_numbers():
    require("n", np.int64(3), whole=True, at_least=3, at_most=3)
    require("x", np.float32(0.5), above=0, below=1)


def test_fields_are_named_with_the_position_in_a_tuple():
    @dataclass(frozen=True)
    class Config:
        strides: tuple[int, ...] = (2, 0)
        cycle: int | None = None

        def __post_init__(self):
            require_fields(self, "cycle", optional=True, whole=True, at_least=1)
            require_fields(self, "strides", whole=True, at_least=1)

    with pytest.raises(ValueError, match=r"strides\[1\] is 0, expected an integer at least 1"):
        Config()
    with pytest.raises(ValueError, match="cycle is 0"):
        Config((1, 1), 0)


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (10**20, {"at_least": 0}, "at least 0 and at most 9,223,372,036,854,775,807"),
        (-(10**20), {}, "at least -9,223,372,036,854,775,807"),
        (10**20, {"at_most": 5}, " at most 5"),
    ],
)
def test_the_range_of_huge_numbers_is_told(value, bounds, expected):
    with pytest.raises(ValueError, match=f"seed is {value}, expected an integer.*{expected}"):
        require("seed", value, whole=True, **bounds)


@dataclass(frozen=True)
class Everything:
    """A field of every kind."""

    whole: int = 1
    number: float | None = None
    word: str = "a"
    switch: bool = False
    mode: Literal["on", "off"] = "on"
    sizes: tuple[int, ...] = ()
    shapes: tuple[tuple[int, int, int], ...] = ()
    either: int | Literal["auto"] | None = None

    def __post_init__(self):
        require_types(self)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("whole", (0, -3, np.int64(2)), (True, 1.0, "1", None, (1,))),
        ("number", (0, -1.5, None, np.float32(1)), (True, "1", math.nan, math.inf, (1.0,))),
        ("word", ("", "b"), (1, None, ("a",))),
        ("switch", (True, False), (1, 0, "True", None)),
        ("mode", ("on", "off"), ("", "ON", 1, None, ("on",), ["on"])),
        ("sizes", ((), (1, 2)), (1, [1], (1.0,), (None,), "12")),
        ("shapes", ((), ((1, 2, 3),)), ((1, 2, 3), ((1, 2),), ((1, 2, 3.5),), (None,))),
        ("either", (None, 3, "auto"), ("nothing", 2.5, True, (3,))),
    ],
)
def test_types_follow_the_annotations(field, good, bad):
    for value in good:
        Everything(**{field: value})
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{field}(\[\d\])* is .*, expected "):
            Everything(**{field: value})
