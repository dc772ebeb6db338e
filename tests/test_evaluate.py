"""scripts.evaluate end to end on tiny models: the JSON's contract and its numbers."""

import json
import math
import shutil

import numpy as np
import pytest
import soundfile
import torch

import hybrid
from jukebox_core import audio as audio_io
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.bootstrap import bootstrap_mean, paired_difference
from jukebox_core.evaluation.chunks import choose_chunks, consecutive_chunks
from jukebox_core.evaluation.mask_estimator import load_mask_estimator
from jukebox_core.evaluation.metrics import sdr
from jukebox_core.evaluation.results import chunk_value, difference
from jukebox_core.evaluation.scores import METRICS, museval_sdr
from scripts import evaluate, train_mask
from scripts._results import default_line, format_table
from scripts.evaluate import scoring
from scripts.evaluate.scoring import Scoring
from tests.conftest import tone_and_noise, write_data_set

SOURCES = ("bass", "drums")
ESTIMATES = {(e, r) for e in ("oracle", "selected", "single") for r in (False, True)}
CODES = 128


@pytest.fixture(scope="session")
def models(tiny_models):
    return tiny_models


def run(models, data, output, *flags):
    common = ["--models", str(models), "--data", str(data), "--output", str(output)]
    common += ["--device", "cpu", "--chunks", "3", "--chunk-codes", str(CODES), "--candidates", "3"]
    return evaluate.main([*common, *flags])


@pytest.fixture(scope="module")
def folder(models, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    assert run(models, tiny_data, folder / "results.json", "--examples", "2") == 0
    return folder


@pytest.fixture(scope="module")
def results(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} in the JSON")

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)


def items(results, method, estimate="oracle", refined=False):
    wanted = (method, estimate, refined)
    return [
        item
        for item in results["chunks"]
        if (item["method"], item["estimate"], item["refined"]) == wanted
    ]


def test_the_json_holds_every_method_and_estimate(results):
    assert set(results) == {"meta", "rows", "chunks", "seconds_per_chunk"}
    there = {}
    for row in results["rows"]:
        keys = {"method", "estimate", "refined", "source", "metric"}
        assert set(row) == keys | {"mean", "ci_low", "ci_high", "n"}
        there.setdefault(row["method"], set()).add((row["estimate"], row["refined"]))
        assert row["source"] in (*SOURCES, "mean") and row["metric"] in METRICS
        assert row["n"] == 3 and row["ci_low"] <= row["mean"] <= row["ci_high"]
    systems = dict.fromkeys(("lqvae", "lass", "hybrid"), ESTIMATES)
    plain, truth = {("selected", False)}, {("oracle", False)}
    baselines = {"mixture": plain, "hpss": plain, "nmf": plain, "irm": truth, "codec": truth}
    assert there == systems | baselines | {"codec_lass": truth}
    assert len(results["rows"]) == (3 * 6 + 6) * 3 * len(METRICS)
    assert len(results["chunks"]) == (3 * 6 + 6) * 3
    assert set(results["seconds_per_chunk"]) == {"lqvae", "lass", "hybrid", "hpss", "nmf"}
    assert all(seconds > 0 for seconds in results["seconds_per_chunk"].values())


def test_meta_says_how_the_numbers_came_about(results, tiny_data):
    meta = results["meta"]
    data = meta["data"]
    assert (data["chunks"], data["songs"], data["several_chunks_per_song"]) == (3, 2, True)
    assert data["split"] == "test" and data["sample_rate"] == 22_050
    assert data["chunk_samples"] == CODES * meta["hop"]
    assert meta["models"]["hybrid"]["steps"]["vqvae"] > 0
    assert meta["candidates"] == {"lqvae": 3, "lass": 3, "hybrid": 3}
    assert meta["command"].startswith("python -m scripts.evaluate --models")
    assert meta["machine"]["torch"] == torch.__version__ and meta["skipped_values"] == 0
    assert {"oracle", "selected", "single", "irm", "codec", "scale"} <= set(meta["definitions"])
    assert data["generated"] is None  # nothing is claimed that the manifest does not say
    described = meta["models"]
    assert described["lqvae"]["sigma"] == 0.4 and "exponent" not in described["lqvae"]
    assert (described["hybrid"]["sigma"], described["hybrid"]["exponent"]) == (0.4, 1.0)
    assert described["lass"]["exponent"] == 3.0 and "sigma" not in described["lass"]
    assert described["hybrid"]["smoothing"] == described["lass"]["smoothing"] == 3.0
    assert any("several chunks per song" in note for note in meta["notes"])
    for codec, value in meta["codec_sdr"].items():
        assert value == np.mean([chunk_value(i, "mean", "sdr") for i in items(results, codec)])
    assert set(meta["codec_sdr"]) == {"codec", "codec_lass"}


def test_rows_are_the_means_of_the_chunks(results):
    for row in results["rows"]:
        found = items(results, row["method"], row["estimate"], row["refined"])
        values = [chunk_value(item, row["source"], row["metric"]) for item in found]
        expected = bootstrap_mean(values)
        assert row["mean"] == pytest.approx(np.mean(values)) == pytest.approx(expected.mean)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((expected.low, expected.high))


def test_every_method_has_the_same_chunks(results):
    chunks = {}
    for item in results["chunks"]:
        place = chunks.setdefault(item["chunk"], (item["track"], item["start"]))
        assert place == (item["track"], item["start"])
    assert len(set(chunks.values())) == 3
    first, second, again = (chunks[i][0] for i in range(3))
    assert first != second and first == again


@pytest.mark.parametrize("method", ["lqvae", "lass", "hybrid"])
def test_the_oracle_is_no_worse_than_a_choice_among_the_same(results, method):
    better = [(("oracle", False), ("selected", False)), (("oracle", False), ("single", False))]
    better += [(("oracle", True), ("single", True))]
    for best, other in better:
        for a, b in zip(items(results, method, *best), items(results, method, *other), strict=True):
            for source in SOURCES:
                assert a["values"][source]["sdr"] >= b["values"][source]["sdr"] - 1e-9


def test_the_mixture_does_not_improve_on_itself(results):
    for item in items(results, "mixture", "selected", False):
        assert all(value["si_sdri"] == 0 for value in item["values"].values())


def test_the_mixture_row_is_the_plain_formula(results, tiny_data):
    tracks = {track.name: track for track in load_manifest(tiny_data).tracks}
    length = results["meta"]["data"]["chunk_samples"]
    for item in items(results, "mixture", "selected", False):
        track, start = tracks[item["track"]], item["start"]
        mixture = audio_io.load_segment(track.mixture, start, length)[0]
        for source, path in track.sources.items():
            truth = audio_io.load_segment(path, start, length)[0]
            assert item["values"][source]["sdr"] == pytest.approx(sdr(truth, mixture).item())


def test_examples_are_written_at_the_scores(results, folder):
    """A written stem, at its own scale again, has the score that the JSON says."""
    examples = results["meta"]["examples"]
    assert [example["chunk"] for example in examples] == [0, 1]
    for example in examples:
        files = example["files"]
        systems = {"lqvae", "lass", "hybrid"}
        heard = {"truth", "nmf", *systems, *(f"{m}_oracle" for m in systems)}
        assert set(files) == {"mixture", *heard}
        mixture, rate = audio_io.load(folder / files["mixture"])
        assert rate == 22_050
        for method in ("lqvae", "lass", "hybrid"):
            stems = {s: audio_io.load(folder / files[method][s])[0][0] for s in SOURCES}
            torch.testing.assert_close(sum(stems.values()), mixture[0], atol=1e-4, rtol=0)
            best = {s: audio_io.load(folder / files[f"{method}_oracle"][s])[0][0] for s in SOURCES}
            blind = {s: audio_io.load(folder / files["nmf"][s])[0][0] for s in SOURCES}
            for played, *estimate in (
                (stems, method, "selected", True),
                (best, method, "oracle", False),
                (blind, "nmf", "selected", False),
            ):
                item = items(results, *estimate)[example["chunk"]]
                for source, stem in played.items():
                    truth = audio_io.load(folder / files["truth"][source])[0][0]
                    assert item["values"][source]["sdr"] == pytest.approx(
                        sdr(truth, stem).item(), abs=1e-3
                    )
    assert len(list((folder / "results_audio").iterdir())) == 2 * (1 + 8 * 2 + 3)
    assert soundfile.info(folder / examples[0]["files"]["mixture"]).subtype == "PCM_24"


def test_the_uncertainty_of_examples_is_that_of_the_candidates(results, folder, models):
    separator = hybrid.load_separator(models, candidates=3)
    generator = torch.Generator().manual_seed(0)
    for example in results["meta"]["examples"]:
        mixture = audio_io.load(folder / example["files"]["mixture"])[0]
        candidates = separator.candidates(mixture, generator)
        expected = separator.uncertainty(mixture, candidates)[0].numpy()
        with np.load(folder / example["uncertainty"]["hybrid"]) as stored:
            np.testing.assert_allclose(stored["uncertainty"], expected, atol=2e-3)
            assert stored["hertz"] == 22_050 / separator.mask.n_fft
            assert stored["seconds"] == separator.mask.hop / 22_050


def test_parts_are_gone_and_the_table_shows_the_numbers(results, folder, capsys):
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results_audio"]
    table = format_table(results)
    for row in results["rows"]:
        if row["metric"] == "sdr" and (row["estimate"], row["refined"]) in {
            ("oracle", False),
            ("selected", False),
            ("selected", True),
        }:
            assert f"{row['mean']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]" in table
    assert "4.72" in table and "5.41" in table and "nan" not in table.lower()
    interval = difference(results, default_line("hybrid"), default_line("lqvae"))
    assert interval.n == 3 and math.isfinite(interval.mean)


def strip(results):
    return {key: results[key] for key in ("rows", "chunks")}


def test_same_seed_same_numbers_and_a_stopped_run_goes_on(
    models, tiny_data, tmp_path, monkeypatch, capsys
):
    flags = ["--methods", "lqvae", "--examples", "1", "--batch", "2"]
    assert run(models, tiny_data, tmp_path / "whole.json", *flags) == 0
    whole = json.loads((tmp_path / "whole.json").read_text())

    with monkeypatch.context() as patch:
        patch.setattr(Scoring, "baselines", _stop)
        assert run(models, tiny_data, tmp_path / "stopped.json", *flags) == 130
    assert not (tmp_path / "stopped.json").exists()
    assert (tmp_path / "stopped.json.parts" / "lqvae.json").is_file()

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "draw_candidates", _stop)  # it must not be done again
        assert run(models, tiny_data, tmp_path / "stopped.json", *flags) == 0
    resumed = json.loads((tmp_path / "stopped.json").read_text())
    assert strip(resumed) == strip(whole)
    baselines = {"mixture", "hpss", "nmf", "codec", "irm"}
    assert {row["method"] for row in whole["rows"]} == {"lqvae", *baselines}
    assert not (tmp_path / "stopped.json.parts").exists()

    assert run(models, tiny_data, tmp_path / "other.json", *flags, "--seed", "1") == 0
    assert strip(json.loads((tmp_path / "other.json").read_text())) != strip(whole)
    capsys.readouterr()


def _stop(*_, **__):
    raise KeyboardInterrupt


def test_parts_of_other_settings_are_not_taken(models, tiny_data, tmp_path, monkeypatch):
    output, fresh = tmp_path / "results.json", tmp_path / "fresh.json"
    flags = ["--methods", "lqvae"]
    with monkeypatch.context() as patch:
        patch.setattr(Scoring, "baselines", _stop)
        assert run(models, tiny_data, output, *flags) == 130
    flags += ["--temperature", "0.5"]
    assert run(models, tiny_data, output, *flags) == 0
    assert run(models, tiny_data, fresh, *flags) == 0
    first, second = (json.loads(path.read_text()) for path in (output, fresh))
    assert strip(first) == strip(second)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--chunks", "0"], "chunks is 0"),
        (["--batch", "0"], "batch is 0"),
        (["--candidates", "0"], "candidates is 0"),
        (["--split", "nowhere"], "no songs in its nowhere split"),
        (["--output", "x.txt"], "expected the name of a .json file"),
        (["--models", "nowhere"], "nowhere"),
        (["--data", "nowhere"], "there is no manifest.json in nowhere"),
        (["--methods", "lqvae", "lqvae"], "expected each once"),
    ],
)
def test_bad_flags_are_one_line(models, tiny_data, tmp_path, capsys, flags, words):
    assert run(models, tiny_data, tmp_path / "results.json", *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not list(tmp_path.iterdir())


def assert_apart(chunks, length):
    """No two chunks of a song overlap."""
    for name in {chunk.track for chunk in chunks}:
        starts = sorted(chunk.start for chunk in chunks if chunk.track == name)
        assert all(b - a >= length for a, b in zip(starts, starts[1:], strict=False))


def test_no_source_of_a_chunk_is_silent(tmp_path):
    songs = {}
    for number in (1, 2, 3):
        sources = tone_and_noise(number, 40_000)
        sources["bass"][:10_000] = 0
        songs[f"Track{number:05d}"] = ("test", sources)
    songs["Track00002"][1]["drums"][:] = 0
    songs["Track00004"] = ("test", tone_and_noise(4, 3_000))
    manifest = load_manifest(write_data_set(tmp_path, songs))
    chunks, left_out = choose_chunks(manifest, "test", 6, 4_000, 0, audio_io.is_silent)
    assert left_out == ["Track00004", "Track00002"]
    assert [chunk.track for chunk in chunks] == ["Track00001", "Track00003"] * 3
    assert_apart(chunks, 4_000)
    for chunk in chunks:
        assert not any(audio_io.is_silent(x) for x in chunk.sources.values())
        total = sum(0.5 * x for x in chunk.sources.values())
        torch.testing.assert_close(chunk.mixture, total, atol=1e-6, rtol=0)
    again, _ = choose_chunks(manifest, "test", 6, 4_000, 0, audio_io.is_silent)
    assert [c.start for c in again] == [c.start for c in chunks]
    other, _ = choose_chunks(manifest, "test", 6, 4_000, 1, audio_io.is_silent)
    assert [c.start for c in other] != [c.start for c in chunks]
    few, left_out = choose_chunks(manifest, "test", 100, 12_000, 0, audio_io.is_silent)
    assert 2 <= len(few) <= 2 * (40_000 // 12_000) and left_out == ["Track00004", "Track00002"]
    assert_apart(few, 12_000)
    with pytest.raises(ValueError, match="in which two sources sound"):
        choose_chunks(manifest, "test", 1, 4_000, 0, lambda x: True)


def test_consecutive_chunks_are_spread_over_every_song(tmp_path):
    songs = {f"Track{n:05d}": ("test", tone_and_noise(n, 40_000)) for n in (1, 2)}
    songs["Track00002"][1]["bass"][4_000:38_000] = 0
    songs["Track00003"] = ("test", tone_and_noise(3, 3_000))
    manifest = load_manifest(write_data_set(tmp_path, songs))
    silent = audio_io.is_silent
    chunks, left_out = consecutive_chunks(manifest, "test", 100, 4_000, silent)
    assert left_out == ["Track00003"]
    places = [(chunk.track[-1], chunk.start) for chunk in chunks]
    assert places == [("1", 4_000 * i) for i in range(10)] + [("2", 0), ("2", 36_000)]
    for chunk in chunks:
        whole = songs[chunk.track][1]
        for name, x in chunk.sources.items():
            expected = whole[name][chunk.start : chunk.start + 4_000]
            torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)
        total = sum(0.5 * x for x in chunk.sources.values())
        torch.testing.assert_close(chunk.mixture, total, atol=1e-6, rtol=0)
    for count in range(1, 10):
        some, _ = consecutive_chunks(manifest, "test", count, 4_000, silent)
        starts = [chunk.start // 4_000 for chunk in some if chunk.track == "Track00001"]
        gaps = {b - a for a, b in zip(starts, starts[1:], strict=False)}
        assert len(starts) == count and (not gaps or max(gaps) - min(gaps) <= 1)
    with pytest.raises(ValueError, match="in which two sources sound"):
        consecutive_chunks(manifest, "test", 1, 4_000, lambda x: True)


def test_intervals_by_song(models, tiny_data, tmp_path):
    """The scores are the same; the bootstrap draws songs, here two tracks of one and another."""
    folder = tmp_path / "data"
    songs = {f"Track{n:05d}": ("test", tone_and_noise(n, 22_050)) for n in (1, 2, 3)}
    write_data_set(folder, songs)
    content = json.loads((folder / "manifest.json").read_text())
    for track in content["tracks"][:2]:
        track["song"] = "one"
    (folder / "manifest.json").write_text(json.dumps(content))
    flags = ["--methods", "lass", "--baselines", "mixture", "--examples", "0"]
    flags += ["--chunks-per-song", "2"]
    found = {}
    for name, more in (("plain", []), ("songs", ["--by-song"])):
        assert run(models, folder, tmp_path / f"{name}.json", *flags, *more) == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["plain"]["chunks"] == found["songs"]["chunks"]
    plain, by_song = (found[name]["meta"] for name in ("plain", "songs"))
    assert (plain["data"]["songs"], by_song["data"]["songs"]) == (3, 2)
    assert "song_of" not in plain
    assert by_song["song_of"] == {
        "Track00001": "one",
        "Track00002": "one",
        "Track00003": "Track00003",
    }
    assert any("several chunks per song" in note for note in plain["notes"])
    assert not any("several chunks per song" in note for note in by_song["notes"])
    for row in found["songs"]["rows"]:
        own = items(found["songs"], row["method"], row["estimate"], row["refined"])
        values = [chunk_value(item, row["source"], row["metric"]) for item in own]
        groups = [by_song["song_of"][item["track"]] for item in own]
        expected = bootstrap_mean(values, groups=groups)
        assert (row["mean"], row["ci_low"], row["ci_high"], row["n"]) == expected and row["n"] == 6
    lines = (("lass", "selected", True), ("mixture", "selected", False))
    first, second = (
        [chunk_value(i, "mean", "sdr") for i in items(found["songs"], *x)] for x in lines
    )
    expected = paired_difference(first, second, groups)
    assert difference(found["songs"], *lines) == pytest.approx(expected)
    assert difference(found["plain"], *lines) == pytest.approx(paired_difference(first, second))


def test_fewer_chunks_than_asked_for_and_fewer_baselines_are_said(models, tiny_data, tmp_path):
    flags = ["--methods", "lass", "--baselines", "mixture", "codec", "--examples", "0"]
    assert run(models, tiny_data, tmp_path / "r.json", *flags, "--chunks", "1000") == 0
    results = json.loads((tmp_path / "r.json").read_text())
    count = results["meta"]["data"]["chunks"]
    assert 2 < count < 1000
    assert any("1000 chunks" in n and f"have {count}" in n for n in results["meta"]["notes"])
    assert {row["method"] for row in results["rows"]} == {"lass", "mixture", "codec"}
    assert results["meta"]["examples"] == [] and not (tmp_path / "r_audio").exists()
    assert any("LASS (reconstruction)" in note for note in results["meta"]["notes"])


def test_the_supervised_baseline_is_scored_where_it_is(tiny_models, tiny_data, tmp_path, capsys):
    models, folder = tmp_path / "models", tmp_path / "models/mask_estimator"
    shutil.copytree(tiny_models / "reconstruction", models / "reconstruction")
    flags = ["--methods", "lass", "--baselines", "supervised", "--examples", "0"]
    assert run(models, tiny_data, tmp_path / "without.json", *flags) == 0
    without = json.loads((tmp_path / "without.json").read_text())
    assert {row["method"] for row in without["rows"]} == {"lass"}
    assert any("python -m scripts.train_mask" in note for note in without["meta"]["notes"])
    common = ["--output", str(folder), "--preset", "tiny", "--device", "cpu"]
    common += ["--data", str(tiny_data), "--wandb", "disabled"]
    assert train_mask.main(common) == 0
    assert run(models, tiny_data, tmp_path / "r.json", *flags) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert set(results["seconds_per_chunk"]) == {"lass", "supervised"}
    tracks = {track.name: track for track in load_manifest(tiny_data).tracks}
    length = results["meta"]["data"]["chunk_samples"]
    for item in items(results, "supervised", "selected", False):
        track, start = tracks[item["track"]], item["start"]
        mixture = audio_io.load_segment(track.mixture, start, length)
        stems = load_mask_estimator(folder).separate(mixture)
        for source, path in track.sources.items():
            truth = audio_io.load_segment(path, start, length)
            expected = pytest.approx(sdr(truth, stems[source]).item(), rel=1e-5)
            assert item["values"][source]["sdr"] == expected
    meta = json.loads((folder / "meta.json").read_text())
    meta["alpha"] = {"bass": 0.7, "drums": 0.3}
    (folder / "meta.json").write_text(json.dumps(meta))
    capsys.readouterr()
    assert run(models, tiny_data, tmp_path / "other.json", *flags) == 1
    assert "mask_estimator was trained for" in capsys.readouterr().err


@pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")),
    reason="museval imports only where ffmpeg and ffprobe are installed",
)
def test_museval_agrees_with_the_framewise_sdr(models, tiny_data, tmp_path):
    pytest.importorskip("museval")
    flags = ["--methods", "lass", "--baselines", "mixture", "--museval", "--chunks", "1"]
    assert run(models, tiny_data, tmp_path / "r.json", *flags, "--candidates", "2") == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert {row["metric"] for row in results["rows"]} == {*METRICS, "sdr_museval"}
    for item in results["chunks"]:
        for value in item["values"].values():
            assert value["sdr_museval"] == pytest.approx(value["sdr_bsseval"], abs=1e-6)


def test_museval_refuses_silence_and_that_is_no_score():
    pytest.importorskip("museval") if shutil.which("ffmpeg") else pytest.skip("no ffmpeg")
    truth = tone_and_noise(1, 5_000)
    scores = museval_sdr(truth, {"bass": truth["bass"], "drums": torch.zeros(5_000)})
    assert all(score.isnan() for score in scores.values())


def test_museval_without_its_tools_is_one_line(models, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run(models, tiny_data, tmp_path / "r.json", "--museval") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "ffmpeg and ffprobe" in line
