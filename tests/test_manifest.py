"""Reading prepared data."""

import json

import pytest
import torch

from jukebox_core import audio
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.files import sha256

SOURCES = ("bass", "drums")


@pytest.fixture
def folder(tmp_path):
    """Three tracks in two splits."""
    tracks = []
    for name, split in (("Track00001", "train"), ("Track00002", "test"), ("Track00003", "train")):
        files = {}
        for number, file in enumerate(("mixture", *SOURCES)):
            path = tmp_path / split / name / f"{file}.flac"
            audio.save(path, torch.full((100,), number / 4), 22050)
            files[file] = {"path": f"{split}/{name}/{file}.flac", "sha256": sha256(path)}
        tracks.append({"name": name, "split": split, "samples": 100, "gain": 1.0, "files": files})
    content = {
        "version": 1,
        "sample_rate": 22050,
        "sources": SOURCES,
        "alpha": dict.fromkeys(SOURCES, 0.5),
        "tracks": tracks,
        "skipped": [],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    return tmp_path


def change(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_reads_tracks_and_splits(folder):
    manifest = load_manifest(folder)
    assert manifest.root == folder
    assert manifest.sample_rate == 22050
    assert manifest.sources == SOURCES
    assert manifest.alpha == {"bass": 0.5, "drums": 0.5}
    assert [track.name for track in manifest.split("train")] == ["Track00001", "Track00003"]
    assert [track.name for track in manifest.split("test")] == ["Track00002"]
    assert manifest.split("validation") == []
    track = manifest.tracks[1]
    assert track.samples == 100 and track.split == "test"
    assert track.mixture == folder / "test/Track00002/mixture.flac"
    assert list(track.sources) == list(SOURCES)
    assert audio.load(track.sources["drums"])[0][0, 0] == 0.5


def test_a_track_is_its_own_song_unless_the_manifest_names_one(folder):
    names = ["Track00001", "Track00002", "Track00003"]
    assert [track.song for track in load_manifest(folder).tracks] == names
    tracks = json.loads((folder / "manifest.json").read_text())["tracks"]
    tracks[2]["song"] = tracks[0]["song"] = "TRAAAAA0123456789A"
    change(folder, tracks=tracks)
    songs = [track.song for track in load_manifest(folder).tracks]
    assert songs == ["TRAAAAA0123456789A", "Track00002", "TRAAAAA0123456789A"]
    tracks[1]["song"] = 3
    change(folder, tracks=tracks)
    with pytest.raises(ValueError, match="song of a track is 3, expected a string"):
        load_manifest(folder)


@pytest.mark.parametrize("where", ("absolute", "parent", "winding", "empty", "NUL"))
def test_files_outside_of_the_folder_are_refused(folder, where):
    inside = folder / "test/Track00002/bass.flac"
    outside = inside.replace(folder.parent / "bass.flac")
    path = {
        "absolute": str(outside),
        "parent": f"../{outside.name}",
        "winding": f"test/../../{outside.name}",
        "empty": "",
        "NUL": "test/a\0b.flac",
    }[where]
    tracks = json.loads((folder / "manifest.json").read_text())["tracks"]
    tracks[1]["files"]["bass"]["path"] = path
    change(folder, tracks=tracks)
    with pytest.raises(ValueError, match="manifest.json .*expected one inside the folder"):
        load_manifest(folder)


@pytest.mark.parametrize("value", (None, 1, ["a"]))
def test_checksums_are_text(folder, value):
    tracks = json.loads((folder / "manifest.json").read_text())["tracks"]
    tracks[1]["files"]["bass"]["sha256"] = value
    change(folder, tracks=tracks)
    with pytest.raises(ValueError, match="sha256 of bass is .*, expected a string"):
        load_manifest(folder)


def test_a_missing_manifest_tells_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: prepare the data first"):
        load_manifest(tmp_path / "nowhere")


def test_a_missing_file_is_named(folder):
    (folder / "test/Track00002/bass.flac").unlink()
    with pytest.raises(FileNotFoundError, match="Track00002/bass.flac"):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"version": 2}, "version is 2, expected 1"),
        ({"alpha": {"bass": 0.5}}, "no 'drums'"),
        ({"tracks": [{"name": "Track00001"}]}, "no 'files'"),
        ({"tracks": None}, "not a manifest"),
        ({"sample_rate": "fast"}, "not a manifest"),
    ],
)
def test_a_wrong_manifest_is_refused_in_one_line(folder, values, words):
    change(folder, **values)
    with pytest.raises(ValueError, match=words) as caught:
        load_manifest(folder)
    assert "\n" not in str(caught.value) and "manifest.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"text"'])
def test_what_is_not_json_or_no_object_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="not a manifest"):
        load_manifest(folder)
