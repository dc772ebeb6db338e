"""Flags: what --help shows, and one line for words of the wrong type."""

import contextlib
import importlib
import io
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts._cli import program

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Inner:
    rate: float | None = None
    size: int = 3

    def __post_init__(self):
        if not self.size > 0:
            raise ValueError(f"size is {self.size}, expected a positive number of {'a' * 100}")


@dataclass(frozen=True)
class Args:
    inner: Inner = field(default_factory=Inner)
    steps: int | None = None
    batch: int | Literal["auto"] = "auto"
    kernel: bool | None = None
    method: Literal["lqvae", "lass"] = "lass"
    output: Path | None = None
    inputs: tuple[Path, ...] = ()
    rates: tuple[float, ...] = ()
    stft: tuple[int, int, int] = (1, 2, 3)
    stfts: tuple[tuple[int, int, int], ...] = ()
    names: tuple[str, ...] = ()
    seed: int | None = None


SEEN = []


@program
def main(args: Args) -> None:
    """Record the flags."""
    SEEN.append(args)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--steps", "nonsense"], "--steps: expected INT, got 'nonsense'"),
        (["--steps", "1.5"], "--steps: expected INT, got '1.5'"),
        (["--steps", ""], "--steps: expected INT, got ''"),
        (["--inner.rate", "fast"], "--inner.rate: expected FLOAT, got 'fast'"),
        (["--batch", "many"], "--batch: expected INT|auto, got 'many'"),
        (["--kernel", "yes"], "--kernel: expected {True,False}, got 'yes'"),
        (["--method", "LASS"], "--method: expected {lqvae,lass}, got 'LASS'"),
        (["--output", ""], "--output: expected PATH, got ''"),
        (["--inputs", "a", ""], "--inputs: expected [PATH [PATH ...]], got a ''"),
        (["--rates", "1", "x"], "--rates: expected [FLOAT [FLOAT ...]], got 1 x"),
        (["--stft", "1", "2", "x"], "--stft: expected INT INT INT, got 1 2 x"),
        (["--stfts", "1", "2"], "--stfts: expected [INT INT INT [INT INT INT ...]], got 1 2"),
        (["--seed", "x"], "--seed: expected INT, got 'x'"),
    ],
)
def test_a_word_that_is_no_value_is_named_with_its_flag(capsys, argv, line):
    assert main(argv) == 2
    assert capsys.readouterr().err == f"error: {line} (see --help)\n"


PROGRAMS = sorted(
    path.parent.name if path.stem == "__main__" else path.stem
    for path in (*ROOT.glob("scripts/*/__main__.py"), *ROOT.glob("scripts/[!_]*.py"))
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_kinds_and_defaults_and_never_none(capsys, name):
    main = importlib.import_module(f"scripts.{name}").main
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"python -m scripts.{name}" in shown and "default: None" not in shown
    for action in main.parser()._actions:
        text, _, default = action.help.partition("(default: ")
        assert not re.search(r"\{(None|\w+)\}", str(action.metavar)), action.option_strings
        assert not (default and re.search(r"\b[Dd]efault\b", text)), text


def test_long_words_are_cut_and_never_broken(capsys):
    word = "x" * 10_000
    assert main(["--steps", word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "x" * 90 in line and len(line) < 250


def test_what_a_dataclass_refuses_is_its_own_line(capsys):
    assert main(["--inner.size", "0"]) == 1
    expected = f"size is 0, expected a positive number of {'a' * 100}"
    assert capsys.readouterr().err == f"error: {expected}\n"


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999", str(2**63)])
def test_seeds_outside_the_range_are_refused(capsys, seed):
    assert main(["--seed", seed]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: seed is {seed}, expected an integer at least 0")
    assert "9,223,372,036,854,775,807" in line
    assert main(["--seed", str(2**63 - 1)]) == 0


def test_values_are_those_of_the_parser(capsys):
    argv = ["--steps", "3", "--batch", "auto", "--kernel", "None", "--output", ".", "--stfts"]
    argv += ["1", "2", "3", "4", "5", "6", "--names", "", "--rates", "--inner.rate", "nan"]
    assert main(argv) == 0
    args = SEEN[-1]
    assert (args.steps, args.batch, args.kernel, args.output) == (3, "auto", None, Path("."))
    assert args.stfts == ((1, 2, 3), (4, 5, 6)) and args.names == ("",) and args.rates == ()
    for word, value in (("True", True), ("False", False)):
        assert main(["--kernel", word]) == 0
        assert SEEN[-1].kernel is value


@given(st.text(max_size=30), st.sampled_from(["--steps", "--inner.rate", "--output", "--stft"]))
def test_any_word_is_a_value_or_one_line(word, flag):
    said = errors_of([f"{flag}={word}"])
    if said is not None:
        assert said.count("\n") == 1 and said.startswith("error: ")


def errors_of(argv):
    """What is written to stderr, None where the flags are accepted."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        return None if main(argv) == 0 else said.getvalue()


def test_an_empty_output_leaves_the_current_folder_alone(tmp_path):
    flags = ["--models", "m", "--output", "", "a.wav"]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.separate", *flags],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 2 and not any(tmp_path.iterdir())
    assert done.stderr == "error: --output: expected PATH, got '' (see --help)\n"
