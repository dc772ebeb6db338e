"""Settings of the data functions: every value works, or one line names it before any work."""

import json
import math
import random
import shutil
import tempfile
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from unittest.mock import MagicMock

import pretty_midi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare_slakh import write_track

from data import synthetic
from data.layout import assign_splits, check_workers
from data.slakh import prepare
from data.synthetic import make_synthetic
from jukebox_core.datasets.manifest import load_manifest
from scripts import make_synthetic as make_script
from scripts import prepare_slakh as prepare_script

WHOLE = st.one_of(
    st.integers(), st.integers(0, 40), st.sampled_from([0, -1, 10**9, 2**63, 10**20, 8000])
)
REAL = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1e30, 1e-300, -60.0, 0.5]))
SHARES = st.one_of(st.none(), st.lists(REAL, max_size=4).map(tuple))
NAMES = st.sampled_from(["bass", "Bass", "drums", "mixture", "kazoo", "", "\u0660", "x" * 300])


def one_of(**strategies):
    """Keyword arguments that each are left out or drawn."""
    return st.fixed_dictionaries({}, optional=strategies)


@pytest.fixture(scope="module")
def slakh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slakh")
    for number in range(1, 4):
        write_track(folder / f"train/Track0000{number}", "Bass", "Drums", samples=200)
    return folder


@given(
    options=one_of(
        sources=st.lists(NAMES, max_size=3).map(tuple),
        sample_rate=WHOLE,
        limit=st.one_of(st.none(), WHOLE),
        split=SHARES,
        seed=WHOLE,
        silence_dbfs=REAL,
        workers=st.one_of(st.none(), WHOLE),
    )
)
@settings(max_examples=150)
def test_any_preparation_works_or_names_what_is_wrong(slakh, options):
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        try:
            manifest, _ = prepare(slakh, output, **options)
        except ValueError as error:
            message = str(error)
            unusable = "tracks in" in message and "could be used" in message
            assert unusable or any(message.startswith(name) for name in options), message
            assert "\n" not in message and not output.exists()
        else:
            assert manifest.tracks and manifest == load_manifest(output)
            assert manifest.sample_rate == options.get("sample_rate", 22050)


@given(
    options=one_of(
        tracks=st.one_of(st.none(), WHOLE),
        seconds=st.one_of(st.none(), REAL),
        seed=WHOLE,
        sample_rate=WHOLE,
        split=SHARES.filter(lambda value: value is not None),
        parts=st.one_of(st.none(), st.lists(NAMES, max_size=3).map(tuple)),
        reprogram=st.booleans(),
        style=st.sampled_from(["plain", "wide", "", "Wide"]),
        groove_share=st.one_of(st.none(), REAL),
        production=st.lists(st.sampled_from(["eq", "all", "reverb", "kazoo"]), max_size=2),
        level=st.sampled_from(["rms", "loudness", "loud"]),
        programs=st.sampled_from(["song", "all", "some", 3]),
        workers=st.one_of(st.none(), WHOLE),
    )
)
@settings(max_examples=150)
def test_any_rendering_is_possible_or_names_what_is_wrong(options):
    """All but the rendering, which takes as long as it is asked to."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic.Sources, "check", lambda _: None)
        patch.setattr(synthetic, "_write_all", lambda *_: {})
        output = Path(folder) / "out"
        try:
            made, _ = make_synthetic(output, **options)
        except ValueError as error:
            message = str(error)
            assert any(message.startswith(name) for name in options), message
            assert "\n" not in message and not output.exists()
        else:
            assert len(made) == (20 if options.get("tracks") is None else options["tracks"])


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("tracks", ["0", "-1", "100000", "99999999999999999999"]),
        ("seconds", ["0", "0.5", "-1", "nan", "inf", "1e9", "1e30"]),
        ("sample_rate", ["0", "-1", "10000000", "99999999999999999999"]),
        ("split", ["0 0 0", "-1 1 1", "nan 1 1", "1 inf 1", "1e39 0 0"]),
        ("seed", ["-1", "99999999999999999999"]),
        ("workers", ["0", "-1", "5000"]),
        ("parts", ["", "kazoo", "bass kazoo"]),
        ("production", ["kazoo", "eq kazoo"]),
        ("level", ["", "kazoo"]),
        ("soundfont", ["", "kazoo", "embedded kazoo"]),
        ("drumkit", ["", "kazoo"]),
        ("programs", ["", "kazoo", "all --reprogram"]),
    ],
)
def test_flags_of_make_synthetic(tmp_path, capsys, field, values):
    flag = f"--{field.replace('_', '-')}"
    for value in values:
        words = ["--output", str(tmp_path / "x"), flag, *value.split()]
        assert make_script.main(words) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and field in line
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("sample_rate", ["0", "-1", "999", "1000000000"]),
        ("limit", ["0", "-1"]),
        ("silence_dbfs", ["nan", "inf", "-inf", "1", "1e30"]),
        ("split", ["0 0 0", "-1 1 1", "nan 1 1", "1 inf 1"]),
        ("seed", ["-1", "99999999999999999999"]),
        ("workers", ["0", "-1", "10000"]),
        ("sources", ["bass bass", "mixture bass", "bass ..."]),
    ],
)
def test_flags_of_prepare_slakh(slakh, tmp_path, capsys, field, values):
    flag = f"--{field.replace('_', '-')}"
    for value in values:
        words = ["--slakh", str(slakh), "--output", str(tmp_path / "x"), flag, *value.split()]
        assert prepare_script.main(words) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and field in line
        assert list(tmp_path.iterdir()) == []


def test_songs_larger_than_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "free_bytes", lambda device: 1 << 30)
    with pytest.raises(ValueError, match=r"seconds is 40000 and sample_rate 44100"):
        make_synthetic(tmp_path / "x", seconds=40000, tracks=1)
    with pytest.raises(ValueError, match=r"workers is 30, the memory is enough for \d processes"):
        make_synthetic(tmp_path / "x", seconds=5, tracks=40, workers=30)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"RIFF", b"RIFF\xff\0\0\0sfbk", bytes(5000)])
def test_what_is_no_soundfont_is_refused(tmp_path, capsys, content):
    (tmp_path / "a.sf2").write_bytes(content)
    words = ["--output", str(tmp_path / "x"), "--tracks", "1", "--soundfont"]
    for path in ("a.sf2", ".", "none.sf2"):
        assert make_script.main([*words, str(tmp_path / path)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "soundfont" in line and not (tmp_path / "x").exists()


SOUNDFONT = Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")


@pytest.mark.parametrize("damage", ["half", "tail", "indices"])
def test_damaged_soundfonts_are_refused(tmp_path, capfd, damage):
    content = bytearray(SOUNDFONT.read_bytes())
    if damage == "indices":
        generator = random.Random(0)
        for _ in range(200):
            content[generator.randrange(len(content) - 200_000, len(content))] = 255
    else:
        del content[len(content) // 2 if damage == "half" else -1000 :]
    (tmp_path / "a.sf2").write_bytes(content)
    words = ["--output", str(tmp_path / "x"), "--tracks", "1", "--seconds", "1", "--soundfont"]
    assert make_script.main([*words, str(tmp_path / "a.sf2")]) == 1
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "a.sf2" in line and not (tmp_path / "x").exists()


def test_another_soundfont_renders(tmp_path):
    shutil.copy(SOUNDFONT, tmp_path / "a.sf2")
    options = {"tracks": 1, "seconds": 1, "sample_rate": 8000}
    (track,), _ = make_synthetic(tmp_path / "x", soundfont=tmp_path / "a.sf2", **options)
    (same,), _ = make_synthetic(tmp_path / "y", **options)
    assert (track / "mix.flac").read_bytes() == (same / "mix.flac").read_bytes()


def test_a_process_that_is_killed_is_one_line(tmp_path, monkeypatch, capsys):
    pool = MagicMock()
    pool.return_value.__enter__.return_value.map.side_effect = BrokenProcessPool("killed")
    monkeypatch.setattr(synthetic, "ProcessPoolExecutor", pool)
    words = ["--output", str(tmp_path / "x"), "--tracks", "2", "--seconds", "1", "--workers", "2"]
    assert make_script.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "workers" in line


def test_songs_without_the_parts_are_named(tmp_path, capsys):
    """Guitars play in some songs only; the others are skipped, each by its name."""
    words = ["--output", str(tmp_path), "--seconds", "2", "--sample-rate", "8000"]
    words += ["--tracks", "8", "--parts", "guitar", "--workers", "1"]
    for _ in range(2):
        assert make_script.main(words) == 0
        said = capsys.readouterr().out.splitlines()
        made = len(list(tmp_path.glob("*/Track*")))
        assert 0 < made < 8 and len(said) == 8 - made + 1
        assert said[-1].startswith(f"{made} tracks") and f"{8 - made} songs skipped" in said[-1]
        assert all(line.startswith("skipped Track0000") for line in said[:-1])


def test_many_tracks_are_split_fast():
    splits = assign_splits(99_999, (0.7, 0.1, 0.2))
    assert Counter(splits) == {"train": 69_999, "validation": 10_000, "test": 20_000}


def test_as_many_workers_as_a_machine_can_use(monkeypatch):
    monkeypatch.setattr("data.layout.os.cpu_count", lambda: 100)
    check_workers(400)
    check_workers(None)
    with pytest.raises(ValueError, match="workers is 401"):
        check_workers(401)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sample_rate": 0}, "sample_rate is 0"),
        ({"sample_rate": math.inf}, "sample_rate is inf"),
        ({"sample_rate": 22050.5}, "sample_rate is 22050.5"),
        ({"alpha": {"bass": math.nan, "drums": 0.5}}, "alpha of bass is nan"),
        ({"alpha": {"bass": -0.5, "drums": 0.5}}, "alpha of bass is -0.5"),
        ({"alpha": {"bass": "0.5", "drums": 0.5}}, "alpha of bass is '0.5'"),
        ({"sources": []}, "sources are"),
        ({"sources": ["bass", "bass"]}, "sources are"),
    ],
)
def test_manifests_that_cannot_be_are_refused(slakh, tmp_path, values, words):
    prepare(slakh, tmp_path / "out", workers=1, sample_rate=8000)
    path = tmp_path / "out/manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"sample_rate": 8000.0}))
    assert load_manifest(path.parent).sample_rate == 8000
    path.write_text(json.dumps(content | values))
    with pytest.raises(ValueError, match=words):
        load_manifest(path.parent)
    for samples in (0, -1, 0.5, math.nan, math.inf, "5"):
        content["tracks"][0]["samples"] = samples
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="samples of Track00001 is"):
            load_manifest(path.parent)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not a manifest"):
        load_manifest(path.parent)
    shutil.rmtree(path.parent)
