"""The harness that kills stages: it reaches every change, and sees what a kill breaks."""

import sys

import pytest

from jukebox_core.files import remove_leftovers, write_text
from tests.kill_stages import kill_stage, started

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stages run in a forked process")


def careful(output):
    """Two files, each whole or missing."""
    remove_leftovers(output)
    for name in "ab":
        if not (output / name).exists():
            write_text(output / name, name * 1000)
    return 0


def careless(output):
    """A file that is taken for whole if it is there."""
    if not (output / "a").exists():
        with open(output / "a", "w") as file:
            file.write("begun")
            file.flush()
            (output / "b").mkdir()
            file.write("finished")
    return 0


@pytest.fixture
def output(tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


def test_what_is_whole_or_missing_has_no_difference(tmp_path, output, capsys):
    outcome = kill_stage("x", lambda: careful(output), tmp_path, output, 30, "0")
    assert outcome.kills == 30 and not outcome.faults and outcome.at_changes > 10
    assert sorted(path.name for path in output.iterdir()) == ["a", "b"]


def test_half_a_file_is_found(tmp_path, output, capsys):
    outcome = kill_stage("x", lambda: careless(output), tmp_path, output, 30, "0")
    assert "different: a" in outcome.faults and "missing: b" in outcome.faults
    assert (output / "b").is_dir()  # what comes after starts from an undisturbed run


def test_an_error_after_a_kill_is_found(tmp_path, output, capsys):
    def program():
        if (output / "a").exists():
            raise ValueError("what is this file?")
        (output / "a").write_text("")
        (output / "a").unlink()
        return 0

    outcome = kill_stage("x", program, tmp_path, output, 5, "0")
    assert "what is this file?" in outcome.faults[0]


def test_every_change_is_counted_and_can_be_the_last(tmp_path, output):
    (output / "old").write_text("")

    def program():
        (output / "new").mkdir()
        (output / "old").read_text()
        (output / "old").rename(output / "moved")
        (tmp_path / "elsewhere").write_text("")
        (output / "moved").unlink()
        return 0

    log, seen = tmp_path / "log", []
    for change in (1, 2, 3):
        start = started(program, output, log, change=change)
        assert start.status is None
        seen.append(sorted(path.name for path in output.iterdir()))
        (output / "new").exists() and (output / "new").rmdir()
        if (output / "moved").exists():
            (output / "moved").rename(output / "old")
    assert seen == [["old"], ["new", "old"], ["moved", "new"]]
    whole = started(program, output, log)
    assert (whole.status, whole.changes) == (0, 3)
