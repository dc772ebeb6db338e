"""scripts.compare_models: models of two and of three sources on the same mixtures."""

import json

import numpy as np
import pytest
import torch

import hybrid
from jukebox_core import audio
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.bootstrap import bootstrap_mean, paired_difference
from jukebox_core.evaluation.metrics import sdr
from scripts import compare_models
from scripts.compare_models import Comparison, score_stems
from tests.conftest import RATE, tone_and_noise, write_data_set


def run(*flags):
    return compare_models.main([str(flag) for flag in flags])


@pytest.mark.slow
def test_bass_and_drums_of_mixtures_of_three(
    tiny_models, three_source_models, three_sources, tmp_path, capsys
):
    out = tmp_path / "compared.json"
    flags = ["--models", three_source_models, tiny_models, "--data", three_sources]
    flags += ["--method", "hybrid", "--candidates", 2, "--chunks-per-song", 2, "--output", out]
    assert run(*flags) == 0
    said = capsys.readouterr().out
    found = json.loads(out.read_text())
    manifest = load_manifest(three_sources)
    for row, models in zip(found["rows"], (three_source_models, tiny_models), strict=True):
        assert row["models"] == str(models) and [*row["sdr"]] == ["bass", "drums", "mean"]
        separator = hybrid.load_separator(models, candidates=2)
        length = separator.window * separator.codec.config.hop
        place = 0
        for track in manifest.split("test"):
            waves = {name: audio.load(path)[0][0] for name, path in track.sources.items()}
            mixture = audio.load(track.mixture)[0][0]
            count = found["songs"].count(track.song)
            starts = range(0, len(mixture) - length + 1, length)
            assert count == min(2, len(starts))
            for start in (starts[(2 * i + 1) * len(starts) // (2 * count)] for i in range(count)):
                stems = separator(mixture[start : start + length], RATE, seed=0)
                for name in ("bass", "drums"):
                    truth = waves[name][start : start + length]
                    expected = sdr(truth, stems[name] / manifest.alpha[name]).item()
                    assert row["chunks"][name][place] == pytest.approx(expected, abs=1e-4)
                place += 1
        assert place == len(found["songs"]) == len(row["chunks"]["bass"])
    (gap,) = found["differences"]
    assert (gap["first"], gap["second"]) == (str(three_source_models), str(tiny_models))
    for name in ("bass", "drums", "mean"):
        first, second = (row["sdr"][name]["mean"] for row in found["rows"])
        assert gap["difference"][name]["mean"] == pytest.approx(first - second)
        assert f"{first - second:+.2f} [" in said
    assert run(*flags) == 0  # replaces its own file


def test_intervals_are_by_song_and_silence_has_no_score():
    scores = {
        "a": np.array([[1.0, 2.0, 4.0], [3.0, np.nan, 1.0], [5.0, 3.0, 0.0]]),
        "b": np.array([[0.0, 2.5, 1.0], [1.0, np.nan, 2.0], [2.0, 1.0, 2.0]]),
    }
    means = {"a": [3.0, 2.5, 5 / 3], "b": [1.0, 1.75, 5 / 3]}
    songs = ["x", "x", "y"]
    table = Comparison(("bass", "drums", "other"), scores, songs)
    rows, gaps = table.rows(), table.differences()
    for name, own in scores.items():
        assert rows[name]["drums"] == bootstrap_mean(own[1], groups=songs)
        assert rows[name]["mean"] == bootstrap_mean(means[name], groups=songs)
    assert gaps["b"]["bass"] == paired_difference(scores["a"][0], scores["b"][0], songs)
    assert gaps["b"]["mean"] == paired_difference(means["a"], means["b"], songs)
    content = json.loads(json.dumps(table.content(), allow_nan=False))
    assert content["rows"][0]["chunks"]["drums"] == [3.0, None, 1.0]
    lines = table.text().splitlines()
    assert lines[-1].split()[:3] == ["a", "-", "b"] and len(lines) == 5


def test_stems_are_scored_as_loud_as_the_sources(three_source_models, three_sources, monkeypatch):
    """Stems that are the sources as they stand in the mixture are perfect but for rounding."""
    separator = hybrid.load_separator(three_source_models, candidates=2)
    monkeypatch.setattr(
        type(separator), "__call__", lambda self, mixture, rate, seed: stems_of(chunk)
    )

    def stems_of(chunk):
        return {name: chunk.alpha[name] * wave for name, wave in chunk.sources.items()}

    manifest = load_manifest(three_sources)
    rule = compare_models.silence_rule(False)[1]
    chunk = compare_models.consecutive_chunks(manifest, "test", 1, 4_000, rule)[0][0]
    scores = score_stems(separator, [chunk], ("bass", "other"), 0)
    assert scores.shape == (2, 1) and (scores > 100).all()


def test_what_cannot_be_compared_is_refused(tiny_models, three_source_models, tmp_path, capsys):
    wave = torch.ones(RATE) / 4
    other = {"piano": wave, "guitar": wave}
    piano = write_data_set(tmp_path / "piano", {"Track00001": ("test", other)})
    both = write_data_set(tmp_path / "both", {"Track00001": ("test", tone_and_noise(1, RATE))})
    taken = tmp_path / "taken.json"
    taken.write_text("{}")
    for models, more, words in (
        ([tiny_models], ["--data", both], "expected two folders or more"),
        ([tiny_models, tiny_models], ["--data", both], "each once"),
        ([tiny_models, three_source_models], ["--data", piano], "piano has piano, guitar, the"),
        ([tiny_models, tmp_path], ["--data", both], "linearisation is missing"),
        ([tiny_models, three_source_models], ["--data", both, "--output", taken], "taken.json"),
    ):
        assert run("--models", *models, "--method", "hybrid", "--candidates", 2, *more) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line, line
    assert taken.read_text() == "{}"
