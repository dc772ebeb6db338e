"""scripts.separate loses nothing of the user's, and one bad name does not stop the other files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from contents import contents
from test_separate_script import FAST, REPOSITORY, music, separate, written

from jukebox_core import audio
from jukebox_core.separation import jobs as jobs
from jukebox_core.separation.jobs import RECORD, Job, check_same_song, find_jobs

RATE = 22_050


def song(path, seed=0):
    audio.save(path, music(1, RATE, 1, seed), RATE)
    return path


def errors(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return lines


def test_an_input_in_the_folder_of_its_stems_is_kept(tiny_models, tmp_path, capsys):
    mixture = song(tmp_path / "out" / "song" / "song.wav")
    (tmp_path / "out" / "song" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    assert separate(tiny_models, tmp_path / "out", mixture, flags=("--overwrite",)) == 1
    (line,) = errors(capsys)
    assert "song.wav" in line and contents(tmp_path) == before
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "out")
    assert separate(tiny_models, tmp_path / "out", link / "song" / "song.wav") == 1
    assert contents(tmp_path / "out") == contents(link) and len(errors(capsys)) == 1


def test_an_input_among_the_stems_of_another_is_kept(tiny_models, tmp_path, capsys):
    out = tmp_path / "out"
    assert separate(tiny_models, out, song(tmp_path / "bass.wav")) == 0
    before = contents(out)
    stem = out / "bass" / "bass.wav"  # recorded, and the input of the next run
    capsys.readouterr()
    assert separate(tiny_models, out, stem, flags=("--overwrite",)) == 1
    assert len(errors(capsys)) == 1 and contents(out) == before


@pytest.mark.parametrize("mine", ["notes.txt", "bass.wav", "inner/notes.txt"])
def test_what_no_former_run_wrote_is_never_replaced(tiny_models, tmp_path, capsys, mine):
    path = tmp_path / "out" / "a" / mine
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    other = song(tmp_path / "b.wav")
    out = tmp_path / "out"
    assert separate(tiny_models, out, song(tmp_path / "a.wav"), other) == 1
    (line,) = errors(capsys)
    assert mine in line and path.read_text() == "mine"
    assert {p.name for p in (out / "a").iterdir()} == {Path(mine).parts[0]}
    assert (out / "b" / "bass.wav").is_file()  # the other file went on


@pytest.mark.parametrize("how", ["added", "changed"])
def test_what_was_put_to_finished_stems_is_kept(tiny_models, tmp_path, capsys, how):
    mixture, out = song(tmp_path / "a.wav"), tmp_path / "out"
    assert separate(tiny_models, out, mixture) == 0
    mine = out / "a" / ("bass.wav" if how == "changed" else "mix down.wav")
    song(mine, seed=9)
    before = contents(out)
    capsys.readouterr()
    assert separate(tiny_models, out, mixture, flags=("--seed", "1", "--overwrite")) == 1
    assert mine.name in errors(capsys)[0] and contents(out) == before


def test_stems_without_checksums_need_overwrite(tiny_models, tmp_path, capsys):
    mixture, out = song(tmp_path / "a.wav"), tmp_path / "out"
    assert separate(tiny_models, out, mixture) == 0
    record = json.loads((out / "a" / RECORD).read_text())
    del record["files"]  # as earlier versions wrote it
    (out / "a" / RECORD).write_text(json.dumps(record))
    before = written(out)
    capsys.readouterr()
    assert separate(tiny_models, out, mixture) == 0 and "finished in" in capsys.readouterr().out
    assert separate(tiny_models, out, mixture, flags=("--seed", "1")) == 1
    assert "checksums" in errors(capsys)[0] and written(out) == before
    assert separate(tiny_models, out, mixture, flags=("--seed", "1", "--overwrite")) == 0
    assert written(out).keys() == before.keys() and written(out) != before


def test_another_song_of_the_same_name_needs_overwrite(tiny_models, tmp_path, capsys):
    out = tmp_path / "o"
    first, second = song(tmp_path / "x" / "t.wav", 1), song(tmp_path / "y" / "t.wav", 2)
    assert separate(tiny_models, out, first) == 0
    before, stems = contents(out), written(out / "t")
    capsys.readouterr()
    assert separate(tiny_models, out, second, song(tmp_path / "u.wav")) == 1
    (line,) = errors(capsys)
    assert str(first) in line and str(second) in line
    assert {p: c for p, c in contents(out).items() if p.startswith("t/")} == before
    assert (out / "u" / "bass.wav").is_file()
    assert separate(tiny_models, out, second, flags=("--overwrite",)) == 0
    assert written(out / "t") != stems
    # the same content at another place is the same song
    copy = tmp_path / "z" / "t.wav"
    copy.parent.mkdir()
    copy.write_bytes(second.read_bytes())
    capsys.readouterr()
    assert separate(tiny_models, out, copy) == 0 and "finished in" in capsys.readouterr().out


def test_a_relative_path_elsewhere_is_another_song(tiny_models, tmp_path, monkeypatch, capsys):
    for number, folder in enumerate("xy"):
        song(tmp_path / folder / "t.wav", number)
    monkeypatch.chdir(tmp_path / "x")
    assert separate(tiny_models, "../o", "t.wav") == 0
    monkeypatch.chdir(tmp_path / "y")
    capsys.readouterr()
    assert separate(tiny_models, "../o", "t.wav") == 1
    assert str(tmp_path / "x" / "t.wav") in errors(capsys)[0]


def test_names_of_dots_and_long_names_stay_inside_the_output(tiny_models, tmp_path):
    names = ("..wav", "...wav", "....wav", "x" * 251 + ".wav", "ü" * 125 + ".wav", "-x.wav")
    inputs = [song(tmp_path / "in" / name, n) for n, name in enumerate(names)]
    around = {tmp_path / "in", tmp_path / "up"}
    out = tmp_path / "up" / "out"
    assert separate(tiny_models, out, *inputs, flags=("--",)) == 0
    assert set(tmp_path.iterdir()) == around and set(out.parent.iterdir()) == {out}
    expected = {"..wav", "...wav", "....wav", "x" * 251, "ü" * 125, "-x"}
    assert {path.name for path in out.iterdir()} == expected
    assert all((path / "bass.wav").is_file() for path in out.iterdir())


def test_names_that_meet_are_refused_one_by_one(tiny_models, tmp_path, capsys):
    songs = tmp_path / "songs"
    for number, name in enumerate(("t.wav", "t.flac", "good.wav", "T.wav", "good/inner.wav")):
        song(songs / name, number)
    assert separate(tiny_models, tmp_path / "out", songs) == 1
    said = "\n".join(errors(capsys))
    assert said.count("error: ") == 3
    assert all(name in said for name in ("t.wav", "t.flac", "inner.wav"))
    assert {p.parent.name for p in (tmp_path / "out").rglob("bass.wav")} == {"good", "T"}


def test_the_stems_of_a_name_in_another_case_are_kept_where_case_does_not_count(
    tmp_path, monkeypatch
):
    """The record decides, as where `t` and `T` are one folder."""
    song(tmp_path / "t.wav", 1)
    song(tmp_path / "T.wav", 2)
    folder = tmp_path / "out" / "t"
    folder.mkdir(parents=True)
    (folder / "bass.wav").write_text("")
    identity = jobs.identify_input(tmp_path / "t.wav")
    jobs.write_record(folder, {}, ["bass.wav"], input=identity)
    check_same_song(Job(tmp_path / "t.wav", folder))
    with pytest.raises(FileExistsError, match=r"holds the stems of .*t\.wav"):
        check_same_song(Job(tmp_path / "T.wav", folder))


def test_inputs_inside_the_output_are_found_and_stems_are_not(tmp_path):
    out = tmp_path / "out"
    inputs = [song(out / "album" / name, n) for n, name in enumerate(("a.wav", "b.wav"))]
    found, failures = find_jobs([out / "album"], out)
    assert [job.path for job in found] == inputs and not failures
    assert [job.folder for job in found] == [out / "a", out / "b"]
    stem = song(out / "a" / "bass.wav")
    identity = jobs.identify_input(inputs[0])
    jobs.write_record(out / "a", {}, ["bass.wav"], input=identity)
    found, _ = find_jobs([out], out)
    assert stem not in [job.path for job in found] and inputs[0] in [job.path for job in found]


def test_a_name_that_no_file_can_have_does_not_stop_the_others(tiny_models, tmp_path, capsys):
    bad = (tmp_path / ("n" * 300 + ".wav"), tmp_path / "null\0.wav")
    for path in bad:
        assert separate(tiny_models, tmp_path / "out", path, song(tmp_path / "g.wav")) == 1
        assert len(errors(capsys)) == 1
        assert (tmp_path / "out" / "g" / "bass.wav").is_file()


def test_a_folder_that_cannot_be_read_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    good = song(tmp_path / "songs" / "good.wav")
    (tmp_path / "songs" / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root, as in a container, may read everything
    jobs, failures = find_jobs([tmp_path / "songs"], tmp_path / "out")
    assert [job.path for job in jobs] == [good]
    assert [f.path.name for f in failures] == ["closed"] and "Permission" in failures[0].message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_at_once(tiny_models, tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    song(tmp_path / "good.wav")
    command = [sys.executable, "-m", "scripts.separate", "--models", str(tiny_models), *FAST]
    command += ["--output", str(tmp_path / "out"), str(tmp_path)]
    run = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert run.returncode == 1 and "pipe.wav" in line
    assert (tmp_path / "out" / "good" / "bass.wav").is_file()


@pytest.mark.parametrize("output", ["file", "/dev/null"])
def test_an_output_that_is_no_folder(tiny_models, tmp_path, capsys, output):
    (tmp_path / "file").write_text("mine")
    assert separate(tiny_models, tmp_path / output, song(tmp_path / "a.wav")) == 1
    assert len(errors(capsys)) == 1 and (tmp_path / "file").read_text() == "mine"


def test_an_output_that_is_a_link_to_a_folder(tiny_models, tmp_path):
    (tmp_path / "disk" / "song").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "disk" / "song")
    for seed in ("0", "1"):
        flags = ("--seed", seed)
        assert separate(tiny_models, tmp_path / "out", song(tmp_path / "a.wav"), flags=flags) == 0
    assert (tmp_path / "out" / "a").is_symlink()
    assert {p.name for p in (tmp_path / "disk").iterdir()} == {"song"}
    assert (tmp_path / "disk" / "song" / "bass.wav").is_file()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("number", [9, 15])
def test_a_later_run_removes_what_a_killed_one_left(tiny_models, tmp_path, number):
    mixture, out = tmp_path / "long.wav", tmp_path / "out"
    audio.save(mixture, music(60, RATE, 1), RATE)
    command = [sys.executable, "-m", "scripts.separate", "--models", str(tiny_models), *FAST]
    command += ["--output", str(out), str(mixture), "--batch", "1", "--threads", "1"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob(".*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
    assert process.returncode != 0 and not (out / "long").exists()
    audio.save(mixture, music(1, RATE, 1), RATE)
    assert subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True).returncode == 0
    assert {path.name for path in out.iterdir()} == {"long"}
