"""A clock that goes backwards, and times that say nothing: progress, and what is finished."""

import itertools
import os
import sys
import time

import pytest
from test_separate_script import music, separate

from jukebox_core import audio
from scripts.separate import _advance, progress_bar

RATE = 22_050


@pytest.fixture
def backwards(monkeypatch):
    """Every look at the wall clock is an hour before the last one."""
    hours = itertools.count(0, -3600)
    monkeypatch.setattr(time, "time", lambda: 2e9 + next(hours))


def test_progress_goes_on(backwards, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar("song.wav", 3.0) as bar:
        for done in range(1, 8):
            _advance(bar)(done, 7)
            bar.refresh()
    assert "song.wav" in capsys.readouterr().err


def test_separation(backwards, tiny_models, tmp_path, capsys):
    audio.save(tmp_path / "song.wav", music(0.2, RATE, 1), RATE)
    assert separate(tiny_models, tmp_path / "out", tmp_path / "song.wav", method="lass") == 0
    assert separate(tiny_models, tmp_path / "out", tmp_path / "song.wav", method="lass") == 0
    assert "finished in" in capsys.readouterr().out


def test_another_song_of_the_same_length_and_time_is_not_finished(tiny_models, tmp_path, capsys):
    """As unpacked from an archive, or copied with its times."""
    path, out = tmp_path / "song.wav", tmp_path / "out"
    for seed in range(2):
        audio.save(path, music(0.2, RATE, 1, seed), RATE)
        os.utime(path, (1e9, 1e9))
        assert separate(tiny_models, out, path, method="lass") == 0
        assert "song.wav -> " in capsys.readouterr().out


def test_the_same_song_with_another_time_is_finished(tiny_models, tmp_path, capsys):
    path, out = tmp_path / "song.wav", tmp_path / "out"
    audio.save(path, music(0.2, RATE, 1), RATE)
    for seconds in (1e9, 1.0, 3e9):
        os.utime(path, (seconds, seconds))
        assert separate(tiny_models, out, path, method="lass") == 0
    said = capsys.readouterr().out
    assert said.count(" -> ") == 1 and said.count("finished in") == 2
