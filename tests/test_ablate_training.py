"""Variants of training, end to end on tiny models: each has parts of its own and shares others."""

import json

import pytest

from jukebox_core.checkpoints import fingerprint, load_meta
from jukebox_core.evaluation.results import load_results, series
from scripts import ablate_training


@pytest.mark.slow
def test_variants_differ_in_one_thing(tiny_data, tmp_path):
    flags = ["--data", str(tiny_data), "--output", str(tmp_path), "--preset", "tiny"]
    flags += ["--variants", "codec trained on both, batch 6", "prior: transposed", "--chunks", "2"]
    flags += ["--candidates", "2", "--chunk-codes", "128", "--count-iterations", "1"]
    assert ablate_training.main([*flags, "--cores", "2"]) == 0
    base, both, transposed = (
        tmp_path / name / "models" / "linearisation"
        for name in ("base", "codec_trained_on_both_batch_6", "prior_transposed")
    )
    assert load_meta(both / "vqvae")["train_on"] == "both"
    assert load_meta(base / "vqvae")["train_on"] == "sources"
    assert fingerprint(both / "vqvae") != fingerprint(base / "vqvae")
    assert fingerprint(transposed / "vqvae") == fingerprint(base / "vqvae")
    assert load_meta(transposed / "prior_bass")["transpose_semitones"] == 2
    rows = json.loads((tmp_path / "training.json").read_text())["variants"]
    assert [row["variant"] for row in rows] == [
        "base",
        "codec trained on both, batch 6",
        "prior: transposed",
    ]
    for row, family in zip(rows, (base, both, transposed), strict=True):
        results = load_results(family.parent.parent / "results.json")
        own = series(results, "hybrid", "selected", True, "mean", "sdr").values()
        assert row["scores"]["refined"]["sdr"] == pytest.approx(sum(own) / len(own))
        meta = load_meta(family / "vqvae")["config"]
        assert 1 <= row["perplexity_mixtures"] <= meta["l_bins"]
    assert rows[0]["scores"]["refined"]["to_base"]["mean"] == 0
    assert rows[0]["codec_sdr_mixtures"] == rows[2]["codec_sdr_mixtures"]


def test_unknown_variants_are_refused(tiny_data, tmp_path, capsys):
    flags = ["--data", str(tiny_data), "--output", str(tmp_path), "--variants", "larger"]
    assert ablate_training.main(flags) == 1
    assert "--variants names larger; there are" in capsys.readouterr().err
