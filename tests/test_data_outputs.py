"""Preparing and rendering: nothing of the user's is replaced, one bad track stops no other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_prepare_slakh import tree, write_track
from test_synthetic import BEAT, LINE, write_midi

from data import slakh
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.files import sha256
from scripts.make_synthetic import main as make_synthetic
from scripts.prepare_slakh import main as prepare_slakh

RATE = 8000
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def songs(tmp_path):
    """Four tracks without splits."""
    for number in range(1, 5):
        write_track(tmp_path / f"songs/Track0000{number}", "Bass", "Drums", seed=number)
    return tmp_path / "songs"


@pytest.fixture
def data_set(tmp_path):
    """Three tracks to train, one to test."""
    for split, number in (("train", 1), ("train", 2), ("train", 3), ("test", 4)):
        write_track(tmp_path / f"slakh/{split}/Track0000{number}", "Bass", "Drums", seed=number)
    return tmp_path / "slakh"


def prepare(source, output, *more):
    flags = ["--slakh", source, "--output", output, "--sample-rate", RATE, "--workers", "2"]
    return prepare_slakh([str(flag) for flag in (*flags, *more)])


def make(output, *more):
    flags = ["--output", output, "--sample-rate", RATE, "--seconds", "2", "--workers", "1"]
    flags += ["--parts", "bass", "drums"]
    return make_synthetic([str(flag) for flag in (*flags, *more)])


def refused(capsys):
    """The one line of an error."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def left_alone(run, capsys, *folders):
    """Run what is to be refused without a change in the folders; returns its message."""
    before = [tree(folder) for folder in folders]
    capsys.readouterr()
    assert run() == 1
    line = refused(capsys)
    assert [tree(folder) for folder in folders] == before
    return line


# Nothing of the user's is replaced


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["bass.flac", "notes.txt", "inner/mine.wav"])
def test_a_track_folder_with_the_users_files_is_not_replaced(
    data_set, tmp_path, capsys, finished, name
):
    output = tmp_path / "out"
    assert prepare(data_set, output, "--limit", "2") == 0
    folder = output / "train/Track00001"
    if not finished or name == "bass.flac":
        shutil.rmtree(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    (data_set / "train/Track00001/metadata.yaml").write_text(
        (data_set / "train/Track00001/metadata.yaml").read_text() + "more: 1\n"
    )
    line = left_alone(lambda: prepare(data_set, output, "--limit", "2"), capsys, output)
    assert name in line and "Track00001" in line


def test_a_track_that_waits_for_its_split_replaces_nothing_of_the_users(songs, tmp_path, capsys):
    output = tmp_path / "out"
    assert prepare(songs, output) == 0
    (track,) = output.glob("*/Track00002")
    (track / "mine.txt").write_text("mine")
    write_track(tmp_path / "new", "Bass", "Drums", seed=99)
    shutil.rmtree(songs / "Track00002")
    shutil.move(tmp_path / "new", songs / "Track00002")
    assert "mine.txt" in left_alone(lambda: prepare(songs, output), capsys, output)
    (track / "mine.txt").unlink()
    assert prepare(songs, output) == 0
    assert not (output / ".unassigned").exists()


def test_what_waits_without_being_of_a_run_stays(songs, tmp_path):
    output = tmp_path / "out"
    assert prepare(songs, output) == 0
    for name in ("Track00009", "mine"):
        (output / ".unassigned" / name).mkdir(parents=True)
    (output / ".unassigned/mine/a.txt").write_text("mine")
    orphan = output / ".unassigned/Track00008"
    (track,) = output.glob("*/Track00002")
    shutil.copytree(track, orphan)
    assert prepare(songs, output) == 0
    assert sorted(p.name for p in (output / ".unassigned").iterdir()) == ["Track00009", "mine"]
    assert (output / ".unassigned/mine/a.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["manifest.json", "settings.json"])
@pytest.mark.parametrize("content", ["mine", '{"mine": 1}', "[" * 100_000, "\udcff"])
def test_files_that_are_not_of_a_run_are_not_replaced(data_set, tmp_path, capsys, name, content):
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    line = left_alone(lambda: prepare(data_set, output), capsys, output)
    assert name in line and "exists" in line


@pytest.mark.parametrize("kind", ["file", "device", "pipe"])
@pytest.mark.parametrize("where", ["", "settings.json", "manifest.json", "synthetic.json"])
def test_outputs_that_are_no_folder_or_no_file(data_set, tmp_path, capsys, kind, where):
    output = tmp_path / "out"
    path = output / where
    path.parent.mkdir(exist_ok=True)
    if kind == "device":
        path.symlink_to(os.devnull)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("mine")
    run = make if where == "synthetic.json" else prepare
    before = path.lstat()
    status = run(output, "--tracks", "1") if run is make else run(data_set, output)
    assert status == 1 and str(path) in refused(capsys)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert where == "" or [p.name for p in output.iterdir()] == [where]


@pytest.mark.parametrize("inside", ["", "train", "train/deeper", "train/Track00001", "Track00009"])
def test_an_output_in_the_data_set_is_refused(data_set, capsys, inside):
    line = left_alone(lambda: prepare(data_set, data_set / inside), capsys, data_set)
    assert "would be mixed" in line
    assert not (data_set / "Track00009").exists()


def test_an_output_beside_the_tracks_is_no_part_of_the_data_set(songs):
    before = tree(songs)
    for _ in range(2):
        assert prepare(songs, songs / "prepared") == 0
    assert before.items() <= tree(songs).items()
    assert len(load_manifest(songs / "prepared").tracks) == 4


def test_tracks_that_lie_where_prepared_ones_go_are_refused(songs, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    songs = songs.rename(tmp_path / "out/train")
    line = left_alone(lambda: prepare(songs, tmp_path / "out"), capsys, tmp_path / "out")
    assert "would be mixed" in line
    (tmp_path / "link").symlink_to(songs)
    line = left_alone(lambda: prepare(songs, tmp_path / "link"), capsys, tmp_path / "out")
    assert "would be mixed" in line


def test_what_cannot_be_prepared_leaves_the_folder_to_other_settings(data_set, tmp_path, capsys):
    assert prepare(data_set, tmp_path / "out", "--sources", "bass", "kazoo") == 1
    assert "no rendered stem of kazoo" in refused(capsys)
    assert not (tmp_path / "out").exists()
    assert prepare(data_set, tmp_path / "out") == 0
    assert prepare(data_set, tmp_path / "out", "--sources", "bass", "kazoo") == 1
    assert len(load_manifest(tmp_path / "out").tracks) == 4


def test_rendering_replaces_no_track_of_the_users(tmp_path, capsys):
    output = tmp_path / "out"
    assert make(output, "--tracks", "1") == 0
    (output / "test/Track00002").mkdir(parents=True)
    (output / "test/Track00002/mix.flac").write_text("mine")
    line = left_alone(lambda: make(output, "--tracks", "2"), capsys, output)
    assert "mix.flac" in line
    metadata = yaml.safe_load((output / "train/Track00001/metadata.yaml").read_text())
    del metadata["generator"]
    (output / "test/Track00002/metadata.yaml").write_text(yaml.safe_dump(metadata))
    assert "Track00002" in left_alone(lambda: make(output, "--tracks", "2"), capsys, output)
    shutil.rmtree(output / "test/Track00002")
    (output / "test/Track00002").mkdir()  # an empty folder is no finished track
    assert make(output, "--tracks", "2") == 0
    assert (output / "test/Track00002/mix.flac").is_file()


@pytest.mark.parametrize("content", ["mine", "[]", '{"version": 1}', "null", "[" * 100_000])
def test_a_record_that_is_not_ours_is_one_line(tmp_path, capsys, content):
    (tmp_path / "synthetic.json").write_text(content)
    line = left_alone(lambda: make(tmp_path, "--tracks", "1"), capsys, tmp_path)
    assert "synthetic.json exists" in line


def test_midi_files_beside_the_output_can_be_rendered_again(tmp_path):
    write_midi(tmp_path / "a.mid", (33, False, LINE), (0, True, BEAT))
    for output in (tmp_path / "out", tmp_path):
        for _ in range(2):  # those of tracks in the output are no songs
            assert make(output, "--midi-dir", tmp_path) == 0
        assert len(list(output.glob("*/Track*"))) == 1
        shutil.rmtree(output / "train")


# One bad track stops no other


def put(target, what):
    """Put there what cannot be read."""
    if what == "folder":
        target.mkdir()
    elif what == "dangling":
        target.symlink_to("nowhere")
    elif what == "pipe":
        os.mkfifo(target)
    elif what == "device":
        target.symlink_to("/dev/zero")
    elif what == "loop":
        target.symlink_to(target.name)
    elif what == "huge":
        target.write_bytes(b"#" * (2 << 20))
    else:
        target.write_bytes(WRONG[what])


WRONG = {
    "empty": b"",
    "text": b"text",
    "list": b"- stems",
    "number": b"stems: 5",
    "null": b"stems:",
    "names": b"stems: [S00, S01]",
    "deep": b"[" * 5000,
    "date": b"stems: {S00: 2020-99-99}",
    "digits": b"stems: {S00: " + b"9" * 5000 + b"}",
    "bytes": b"\xff\xfe\x00",
    "control": b"stems: \x00",
    "key": b"stems: {[S00]: 1}",
    "alias": b"stems: *nowhere",
    "tag": b"stems: !!python/object:os.system {}",
    "class": b"stems: {S00: {inst_class: [Bass]}}",
    "outside": b"stems: {../../S00: {inst_class: Bass}, S01: {is_drum: true}}",
    "long": b"stems: {" + b"x" * 300 + b": {inst_class: Bass}, S01: {is_drum: true}}",
    "noise": bytes(range(256)) * 20,
}
KINDS = ("folder", "dangling", "pipe", "device", "loop")


@pytest.mark.parametrize(
    "kind",
    [
        *(f"metadata {what}" for what in (*KINDS, "huge", *WRONG) if what != "noise"),
        *(f"stem {what}" for what in (*KINDS, "empty", "text", "noise")),
    ],
)
def test_a_track_that_cannot_be_read_is_skipped(data_set, tmp_path, capsys, kind):
    file, _, what = kind.partition(" ")
    name = "stems/S00.flac" if file == "stem" else "metadata.yaml"
    target = data_set / "train/Track00002" / name
    target.unlink()
    put(target, what)
    assert prepare(data_set, tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "skipped train/Track00002: " in captured.out
    content = json.loads((tmp_path / "out/manifest.json").read_text())
    (entry,) = content["skipped"]
    assert entry["name"] == "train/Track00002"
    assert target.name in entry["reason"] or "stem" in entry["reason"] or kind == "metadata long"
    assert "\n" not in entry["reason"]
    assert [track["name"][-1] for track in content["tracks"]] == ["1", "3", "4"]


@pytest.mark.parametrize("what", ["folder", "dangling", "empty"])
def test_track_folders_that_are_none(data_set, tmp_path, what):
    put(data_set / "train/Track00009", what)
    assert prepare(data_set, tmp_path / "out") == 0
    skipped = json.loads((tmp_path / "out/manifest.json").read_text())["skipped"]
    assert [entry["name"] for entry in skipped] == ["train/Track00009"] * (what != "empty")


@pytest.mark.parametrize("name", ["metadata.yaml", "S00.flac"])
def test_a_track_without_permission_to_read_is_skipped(data_set, tmp_path, monkeypatch, name):
    locked = data_set / "train/Track00002"

    def denied(function):
        def called(path, *arguments, **options):
            if Path(path).name == name and locked in Path(path).parents:
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *arguments, **options)

        return called

    monkeypatch.setattr(slakh.audio, "load", denied(slakh.audio.load))
    monkeypatch.setattr(Path, "read_bytes", denied(Path.read_bytes))
    assert prepare(data_set, tmp_path / "out") == 0
    (entry,) = json.loads((tmp_path / "out/manifest.json").read_text())["skipped"]
    assert entry["reason"] == f"{name} cannot be read: Permission denied"


def test_a_header_that_promises_too_much_is_skipped(data_set, tmp_path):
    path = data_set / "train/Track00002/stems/S00.flac"
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # 2^36 samples
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    assert prepare(data_set, tmp_path / "out", "--limit", "3") == 0
    skipped = json.loads((tmp_path / "out/manifest.json").read_text())["skipped"]
    assert [entry["name"] for entry in skipped] == ["train/Track00002"]


def test_too_many_open_files_are_no_fault_of_a_track(data_set, tmp_path, monkeypatch, capsys):
    def exhausted(path):
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(slakh.audio, "load", exhausted)
    assert prepare(data_set, tmp_path / "out") == 1
    assert "Too many open files" in refused(capsys)
    assert not (tmp_path / "out/manifest.json").exists()


def limited(module, flags, size):
    """Run a program that can write files of `size` bytes only, as on a full disk."""
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        f"from scripts.{module} import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = [sys.executable, "-c", code, *map(str, flags)]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the size of files")
def test_a_disk_that_is_full_ends_the_preparation(tmp_path):
    data_set = tmp_path / "slakh"
    for number in (1, 2):
        write_track(data_set / f"train/Track0000{number}", "Bass", "Drums", samples=100_000)
    flags = ["--slakh", data_set, "--output", tmp_path / "out", "--sample-rate", RATE]
    result = limited("prepare_slakh", flags, 5000)
    assert result.returncode == 1, result.stderr
    assert len(result.stderr.splitlines()) == 1 and "skipped" not in result.stdout
    assert not (tmp_path / "out/manifest.json").exists()
    assert not list((tmp_path / "out").rglob("*.flac"))
    assert prepare(data_set, tmp_path / "out") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the size of files")
def test_a_disk_that_is_full_ends_the_rendering(tmp_path):
    flags = ["--output", tmp_path / "out", "--tracks", 1, "--seconds", 2, "--workers", 1]
    result = limited("make_synthetic", flags, 5000)
    assert result.returncode == 1, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list((tmp_path / "out").rglob("*.flac"))


@pytest.mark.parametrize("kind", [*KINDS, "empty", "text", "noise", "name"])
def test_a_bad_midi_file_stops_no_other(tmp_path, capsys, kind):
    source = tmp_path / "midi"
    write_midi(source / "a.mid", (33, False, LINE), (0, True, BEAT))
    write_midi(source / "c.mid", (33, False, LINE), (0, True, BEAT))
    if kind == "name":
        shutil.copy(source / "a.mid", source / os.fsdecode(b"b\xff.mid"))
    else:
        put(source / "b.mid", kind)
    for _ in range(2):
        assert make(tmp_path / "out", "--midi-dir", source) == 0
        captured = capsys.readouterr()
        tracks = 3 if kind == "name" else 2
        assert captured.err == "" and f"{tracks} tracks" in captured.out
        assert captured.out.startswith("skipped") == (kind not in ("folder", "name"))
    assert len(list((tmp_path / "out").glob("*/Track*"))) == tracks


def test_finished_tracks_of_earlier_versions_are_found(data_set, tmp_path):
    """The files as they were written before, to the byte."""
    output = tmp_path / "out"
    assert prepare(data_set, output) == 0
    settings = json.loads((output / "settings.json").read_text())
    assert list(settings) == ["sources", "sample_rate", "silence_dbfs", "limit", "split", "seed"]
    record = json.loads((output / "train/Track00001/track.json").read_text())
    assert list(record) == ["inputs", "samples", "gain", "sha256"]
    assert record["inputs"] == {
        "metadata.yaml": sha256(data_set / "train/Track00001/metadata.yaml"),
        "S00.flac": (data_set / "train/Track00001/stems/S00.flac").stat().st_size,
        "S01.flac": (data_set / "train/Track00001/stems/S01.flac").stat().st_size,
    }
    before = tree(output)
    assert prepare(data_set, output) == 0
    changed = {name for name, state in tree(output).items() if before[name] != state}
    assert changed == {"manifest.json"}
    assert np.isclose(record["gain"], 1.0)
