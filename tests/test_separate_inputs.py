"""scripts.separate with files that players play, with damaged ones and with what is no file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from full_disk import files_up_to
from test_decoding import RATE, clicks, encoded, id3, mp3, without_info
from test_separate_script import music, separate

from jukebox_core import audio

REPOSITORY = Path(__file__).parent.parent


def mixtures():
    """{name: (content, samples)}."""
    song = mp3(clicks(1), "VARIABLE", 0.5)
    return {
        "no length.mp3": (without_info(song), RATE + 1500),
        "joined.mp3": (song + mp3(clicks(0.5)), RATE * 3 // 2),
        "padded.wav": (id3(bytes(9)) + bytes(3000) + song, RATE),
    }


def test_what_players_play_is_separated_to_its_end(tiny_models, tmp_path, capsys):
    for name, (content, samples) in mixtures().items():
        (tmp_path / name).write_bytes(content)
        whole, _ = audio.load(tmp_path / name)
        assert whole.shape[1] == pytest.approx(samples, abs=1500)
        assert separate(tiny_models, tmp_path / "out", tmp_path / name) == 0
        folder = tmp_path / "out" / Path(name).stem
        stems = [audio.load(folder / f"{source}.wav")[0] for source in ("bass", "drums")]
        torch.testing.assert_close(stems[0] + stems[1], whole, atol=1e-4, rtol=0)
    assert capsys.readouterr().err == ""


def test_a_truncated_mp3_is_separated_with_a_warning(tiny_models, tmp_path, capsys):
    data = mp3(clicks(3))
    (tmp_path / "cut.mp3").write_bytes(data[: len(data) // 2])
    assert separate(tiny_models, tmp_path / "out", tmp_path / "cut.mp3") == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and said.count("\n") == 1
    assert "cut.mp3" in said and "truncated" in said
    assert audio.info(tmp_path / "out" / "cut" / "bass.wav").frames > RATE


@pytest.mark.parametrize("form", ("WAV", "FLAC", "AIFF", "OGG"))
def test_half_a_file_is_no_song(tiny_models, tmp_path, capsys, form):
    data = encoded(clicks(2), format=form)
    path = tmp_path / f"half.{form.lower()}"
    path.write_bytes(data[: len(data) // 2])
    assert separate(tiny_models, tmp_path / "out", path) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert path.name in said and "damaged" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_is_refused_at_once(tiny_models, tmp_path):
    os.mkfifo(tmp_path / "song.wav")
    command = [sys.executable, "-m", "scripts.separate", "--models", str(tiny_models)]
    command += ["--output", str(tmp_path / "out"), "--device", "cpu", str(tmp_path / "song.wav")]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "song.wav is a named pipe" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ("wav", "flac"))
def test_a_disk_without_room_for_the_stems(tiny_models, tmp_path, capsys, form):
    audio.save(tmp_path / "song.wav", music(2, 44_100, 2), 44_100)
    with files_up_to(100_000):
        flags = ("--format", form)
        assert separate(tiny_models, tmp_path / "out", tmp_path / "song.wav", flags=flags) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "File too large" in said and f".{form}" in said
    assert not list((tmp_path / "out").rglob("*.*"))


@pytest.mark.parametrize(
    "text", ("#EXTM3U\n#EXTINF:6,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n")
)
def test_a_playlist_is_not_followed_to_other_files(tiny_models, tmp_path, capsys, text):
    audio.save(tmp_path / "other.wav", 0.1 * torch.randn(1, 22_050), 22_050)
    song = tmp_path / "song.m4a"
    song.write_text(text.format(tmp_path / "other.wav"))
    assert separate(tiny_models, tmp_path / "out", song) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and str(song) in said
    assert not (tmp_path / "out").exists()
