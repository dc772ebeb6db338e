"""scripts.slakh_benchmark: scores of real excerpts, the whole experiment, what it refuses."""

import json
import os
import re
from dataclasses import replace

import pytest
import torch
from made_up_runs import write_runs
from parity_fixtures import SHARED
from test_prepare_slakh import write_track

from jukebox_core import audio as audio_io
from jukebox_core.checkpoints import save_meta
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.bootstrap import paired_difference
from jukebox_core.evaluation.results import find_row, load_results, make_rows, series, sources_of
from jukebox_core.stages import Stage
from scripts import slakh_benchmark
from scripts._plan import SYSTEMS
from scripts._results import REFERENCE_TABLE, cell
from scripts.slakh_benchmark.program import Args, preparation, state_of
from scripts.slakh_benchmark.record import METRICS, Measured, describe
from scripts.slakh_benchmark.tables import text
from tests.conftest import RATE, tone_and_noise, write_data_set

EXCERPTS = None if SHARED is None else SHARED / "data" / "slakh_excerpts"
SOURCES = ("bass", "drums")


def write_songs(folder, count, seconds=1.0):
    """Songs in Slakh's layout, side by side."""
    for number in range(1 + len([*folder.glob("Track*")]), count + 1):
        sources = tone_and_noise(number, int(seconds * RATE))
        waves = {f"S{i:02d}": sources[name].numpy() for i, name in enumerate(SOURCES)}
        write_track(folder / f"Track{number:05d}", "Bass", "Drums", rate=RATE, **waves)
    return folder


def four_waves(number, seconds=1.0):
    """Bass, drums, and two more of song `number`, [4, T]."""
    both = (
        tone_and_noise(number, int(seconds * RATE)),
        tone_and_noise(number + 5, int(seconds * RATE)),
    )
    return torch.stack([wave for sources in both for wave in sources.values()]) / 2


def run(*flags):
    return slakh_benchmark.main([str(flag) for flag in flags])


def check(out, scored, songs, methods):
    """Hold a benchmark against its own results; return it."""
    benchmark = json.loads((out / "benchmark.json").read_text())
    assert set(benchmark["data"]["song_of"]) <= scored
    assert benchmark["data"]["songs"] == songs
    assert benchmark["reference"]["scores"] == REFERENCE_TABLE
    for measurement in benchmark["measurements"].values():
        results = load_results(out / measurement["results"])
        rows = make_rows(results["chunks"], SOURCES, songs=benchmark["data"]["song_of"])
        assert measurement["rows"] == [row for row in rows if row["metric"] in METRICS]
        assert {row["method"] for row in rows if row["refined"]} == {*methods}
    results = load_results(out / "results.json")
    for row in benchmark["differences"]:
        lines = ((row["method"], "selected", True), (row["minus"], "selected", False))
        values = [series(results, *line, "mean", "sdr") for line in lines]
        tracks = {item["chunk"]: item["track"] for item in results["chunks"]}
        groups = [benchmark["data"]["song_of"][tracks[chunk]] for chunk in values[0]]
        expected = paired_difference(*(list(v.values()) for v in values), groups)
        found = (row["mean"], row["low"], row["high"], row["n"])
        assert found == pytest.approx(expected)
    return benchmark


@pytest.mark.slow
@pytest.mark.skipif(
    EXCERPTS is None or not EXCERPTS.is_dir(), reason="the excerpts of Slakh2100 are not here"
)
def test_real_excerpts_are_scored_by_song(tiny_neural_models, tmp_path, capsys):
    flags = ["--slakh", EXCERPTS, "--output", tmp_path, "--models", tiny_neural_models]
    flags += ["--candidates", 2, "--methods", "lass", "hybrid-neural", "--cores", 1]
    assert run(*flags) == 0
    said = capsys.readouterr().out
    scored = {folder.name for folder in EXCERPTS.glob("test/*")}
    benchmark = check(tmp_path, scored, 11, ("lass", "hybrid-neural"))
    assert benchmark["data"]["generated"] is False and len(benchmark["data"]["song_of"]) == 12
    assert benchmark["measurements"]["reference"]["chunks"] == 12
    assert benchmark["measurements"]["all"]["chunks"] == 48
    assert {row["minus"] for row in benchmark["differences"]} == {"mixture", "supervised"}
    assert benchmark["models"]["families"]["linearisation"]["songs"] == 4
    assert "12 tracks of 11 songs: Track90011, Track90012" in said


@pytest.mark.slow
def test_the_whole_experiment_and_again(tmp_path, capsys):
    write_songs(tmp_path / "slakh/train", 7)
    write_songs(tmp_path / "slakh/test", 2)
    flags = ["--slakh", tmp_path / "slakh", "--output", tmp_path / "out", "--train", "--songs", 6]
    flags += ["--preset", "tiny", "--count-iterations", 2, "--chunks", 1, "--chunks-per-song", 2]
    assert run(*flags, "--cores", 2) == 0
    capsys.readouterr()
    out = tmp_path / "out" / "experiment"
    manifest = load_manifest(out / "data")
    assert (len(manifest.split("train")), len(manifest.split("test"))) == (4, 2)
    benchmark = check(out, {track.name for track in manifest.split("test")}, 2, SYSTEMS)
    counts = {name: (m["chunks"], m["songs"]) for name, m in benchmark["measurements"].items()}
    assert counts == {"reference": (1, 1), "all": (4, 2)}
    family = benchmark["models"]["families"]["reconstruction"]
    assert (family["preset"], family["songs"], family["scored_songs"]) == ("tiny", 3, 0)
    assert run(*flags, "--cores", 2) == 0
    said = capsys.readouterr().out
    again = json.loads((out / "benchmark.json").read_text())
    assert again["measurements"] == benchmark["measurements"]
    assert said.count("already done") == len(json.loads((out / "stages.json").read_text())) + 1


@pytest.mark.slow
def test_three_sources_are_those_of_the_models(three_source_models, tmp_path, capsys):
    for number in (1, 2):
        waves = {f"S{i:02d}": wave.numpy() for i, wave in enumerate(four_waves(number))}
        folder = tmp_path / f"slakh/test/Track{number:05d}"
        write_track(folder, "Bass", "Drums", "Piano", "Guitar", rate=RATE, **waves)
    flags = ["--slakh", tmp_path / "slakh", "--output", tmp_path / "out", "--cores", 1]
    flags += ["--models", three_source_models, "--methods", "hybrid", "--candidates", 2]
    assert run(*flags, "--chunks-per-song", 1) == 0
    said = capsys.readouterr().out
    assert "other" in said and "* reference report" not in said
    manifest = load_manifest(tmp_path / "out/data")
    assert {*manifest.sources} == {"bass", "drums", "other"}
    for track in manifest.tracks:
        rest, _ = audio_io.load(track.sources["other"])
        expected = four_waves(int(track.name[-1]))[2:].sum(0, keepdim=True)
        torch.testing.assert_close(rest, expected, atol=1e-4, rtol=0)
    results = load_results(tmp_path / "out/results.json")
    assert sources_of(results) == list(manifest.sources)
    rows = make_rows(results["chunks"], manifest.sources, songs=results["meta"]["song_of"])
    benchmark = json.loads((tmp_path / "out/benchmark.json").read_text())
    found = benchmark["measurements"]["all"]["rows"]
    assert found == [row for row in rows if row["metric"] in METRICS]


def test_methods_of_other_sources_are_refused(three_source_models, tiny_models, tmp_path, capsys):
    for family, models in (
        ("linearisation", three_source_models),
        ("reconstruction", tiny_models),
    ):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / family).symlink_to(models / family)
    write_songs(tmp_path / "slakh/test", 1, 0.1)
    flags = ["--slakh", tmp_path / "slakh", "--output", tmp_path / "out"]
    assert run(*flags, "--models", tmp_path / "models") == 1
    said = capsys.readouterr().err
    assert "models are of different sources (lqvae: bass drums other; lass: bass drums;" in said


@pytest.fixture
def made_up(tmp_path):
    """Models whose training songs are 1 and 2, and measurements of the songs 2 and 3."""
    songs = {n: tone_and_noise(n, 4_000) for n in (1, 2, 3)}
    data = {
        name: write_data_set(tmp_path / name, {f"Track{n:05d}": (split, songs[n]) for n in own})
        for name, split, own in (("own", "train", (1, 2)), ("new", "test", (2, 3)))
    }
    codec = tmp_path / "models/linearisation/vqvae"
    command = "python -m scripts.train_vqvae --data own"  # in a folder above the codec's
    meta = {"preset": "demo", "step": 500, "data": {"train_tracks": 2}, "command": command}
    save_meta(codec, meta)
    results = load_results(write_runs(tmp_path / "runs") / "results.json")
    tracks = {item["track"] for item in results["chunks"]}
    machine = {"device": "cpu", "cpu_count": 2, "torch": "2.13.0"}
    results["meta"] |= {"song_of": dict.fromkeys(tracks, "a song"), "machine": machine}
    results["meta"] |= {"candidates": {"lqvae": 64, "hybrid": 64}}
    results["meta"]["data"]["songs_left_out"] = []
    measured = {name: Measured(f"{name}.json", results) for name in ("reference", "all")}
    manifest = load_manifest(data["new"])
    methods = ("lqvae", "hybrid")
    return describe(tmp_path, tmp_path / "models", methods, manifest, measured), measured


def test_scored_songs_that_the_models_were_trained_on_are_counted(made_up):
    benchmark, measured = made_up
    family = benchmark["models"]["families"]["linearisation"]
    assert (family["preset"], family["steps"], family["songs"]) == ("demo", 500, 2)
    assert family["scored_songs"] == 1 and family["generated"] is None
    assert "warning: 1 of the scored tracks" in text(benchmark, measured)


@pytest.mark.parametrize("scored", [("lqvae", "lass", "hybrid"), ("lass",)])
def test_our_scores_stand_beside_those_of_the_reference_report(made_up, scored):
    """The reference report's are there for a method that was not scored, too."""
    benchmark, measured = made_up
    results = measured["all"].results
    others = {"lqvae", "lass", "hybrid"} - {*scored}
    results["rows"] = [row for row in results["rows"] if row["method"] not in others]
    lines = text(benchmark, measured).splitlines()
    for method in ("lqvae", "lass", "hybrid"):
        rows = [
            find_row(results, method, "oracle", False, source, "sdr_bsseval")
            for source in (*SOURCES, "mean")
        ]
        reference = [f"{REFERENCE_TABLE[method][source]:.2f}" for source in SOURCES]
        words = [*reference, *" ".join(map(cell, rows)).split()]
        assert sum(line.split()[-len(words) :] == words for line in lines) == 2  # of both


@pytest.mark.parametrize(
    ("folders", "flags", "words"),
    [
        ({"test": 3}, ["--train"], "slakh has 0 songs in its train folder, the experiment takes"),
        ({"train": 3}, ["--train"], "slakh has 3 songs in its train folder.* takes 300"),
        ({"": 2}, ["--train", "--songs", "4"], "slakh has 2 songs .* takes 4"),
        ({"train": 3}, ["--models", "MODELS"], "no TrackNNNNN .* choose .*/slakh/train"),
        ({"test": 1}, [], "models is nowhere, which has the parts of no method"),
        ({"test": 1}, ["--models", "MODELS", "--methods", "neural"], "neural_likelihood"),
        ({"test": 1}, ["--methods", "lass", "lass"], "methods is lass lass"),
        ({"train": 3}, ["--train", "--methods", "neural"], "methods is neural, --train has lqvae"),
        ({"test": 1}, ["--sources", "bass", "other"], "sources are for --train"),
        ({"train": 3}, ["--train", "--sources", "bass"], "sources are bass, expected two or more"),
    ],
)
def test_what_cannot_be_scored_or_trained_is_refused_first(
    folders, flags, words, tiny_models, tmp_path, capsys
):
    for name, count in folders.items():
        write_songs(tmp_path / "slakh" / name, count, 0.1)
    flags = [str(tiny_models) if word == "MODELS" else word for word in flags]
    out = tmp_path / "out"
    models = [] if "--models" in flags else ["--models", "nowhere"]
    assert run("--slakh", tmp_path / "slakh", "--output", out, *models, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line) and not out.exists()


def test_unusable_songs_do_not_count(tmp_path, capsys):
    songs = write_songs(tmp_path / "slakh/train", 3, 0.1)
    (songs / "Track00002/stems/S01.flac").unlink()
    flags = ["--output", tmp_path / "out", "--train", "--songs", 3, "--preset", "tiny"]
    assert run("--slakh", tmp_path / "slakh", *flags) == 1
    assert "has 2 usable songs in its train folder" in capsys.readouterr().err


def test_stages_run_again_for_other_songs_or_models(tmp_path):
    stage = Stage("scores", ("evaluate", "--seed", "0"))
    assert replace(stage, state="").key == stage.key
    assert len({stage.key, replace(stage, state="a").key, replace(stage, state="b").key}) == 3
    weights = tmp_path / "models" / "vqvae" / "weights.safetensors"
    save(weights.parent, b"1")
    before = state_of(tmp_path / "models")
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    save(weights.parent, b"2")
    os.utime(weights, ns=times)
    assert state_of(tmp_path / "models") != before
    save(weights.parent, b"1")
    assert state_of(tmp_path / "models") == before
    args = Args(write_songs(tmp_path / "slakh", 1, 0.1))

    def key(*sources):
        return preparation(args, tmp_path / "out", sources, RATE).key

    before = key(*SOURCES)
    assert key(*SOURCES) == before != key(*SOURCES, "other")
    write_songs(tmp_path / "slakh", 2, 0.1)
    assert key(*SOURCES) != before


def save(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(content)
