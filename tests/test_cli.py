"""Scripts' exit status and one-line errors."""

import io
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from scripts._cli import program


@dataclass(frozen=True)
class Args:
    output: Path
    midi_dir: Path | None = None
    sources: tuple[str, ...] = ("bass", "drums")


SEEN = []
ERRORS = []


@program
def main(args: Args) -> None:
    """Record the flags, or raise what the test put there."""
    SEEN.append(args)
    if ERRORS:
        raise ERRORS.pop()


def test_flags_become_the_dataclass(capsys):
    assert main(["--output", "a", "--midi-dir", "b", "--sources", "x", "y", "z"]) == 0
    assert SEEN[-1] == Args(Path("a"), Path("b"), ("x", "y", "z"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (ValueError("came 3,\nexpected 4"), "error: came 3, expected 4", 1),
        (FileNotFoundError("there is no file x"), "error: there is no file x", 1),
        (PermissionError(13, "Permission denied", "/x"), "error: Permission denied: /x", 1),
        (ModuleNotFoundError("pip install it"), "error: pip install it", 1),
        (KeyboardInterrupt(), "error: interrupted", 130),
    ],
)
def test_expected_errors_are_one_line(capsys, error, line, status):
    ERRORS.append(error)
    assert main(["--output", "a"]) == status
    assert capsys.readouterr().err == line + "\n"


class Signalled(io.BytesIO):
    """A file that libsndfile writes to, in which a signal arrives."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, data):
        if self.number is not None:
            number, self.number = self.number, None
            signal.raise_signal(number)
        return super().write(data)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_audio_is_written_is_not_lost(number, status, capfd):
    if number == signal.SIGINT:  # a shell's background jobs ignore it
        inherited = signal.signal(number, signal.default_int_handler)
    before = signal.getsignal(number)

    @program
    def write(args: Args) -> None:
        """Write a file, and wait."""
        soundfile.write(Signalled(number), np.zeros(50_000), 8000, format="FLAC")
        time.sleep(20)

    began = time.monotonic()
    assert write(["--output", "a"]) == status
    assert time.monotonic() - began < 15 and "ignored" not in capfd.readouterr().err
    assert signal.getsignal(number) == before
    if number == signal.SIGINT:
        signal.signal(number, inherited)


def test_a_bug_keeps_its_traceback():
    ERRORS.append(RuntimeError("bug"))
    with pytest.raises(RuntimeError, match="bug"):
        main(["--output", "a"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--output"),
        (["--output", "a", "--outptu", "b"], "--outptu"),
        (["--output"], "--output"),
    ],
)
def test_wrong_flags_are_one_line(capsys, argv, words):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line and line.endswith("(see --help)")
    assert line.isascii()


def test_help_names_the_command_and_the_flags(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "python -m tests.test_cli" in out and "--midi-dir" in out
    assert "one-line errors" in out  # the module's docstring
