"""What scripts.score_likelihood prints is what it writes."""

import json

import pytest

from scripts import score_likelihood


def test_the_json_holds_the_table(tiny_models, tiny_data, tmp_path, capsys):
    path = tmp_path / "new" / "likelihood.json"
    flags = ["--models", str(tiny_models), "--data", str(tiny_data), "--iterations", "1"]
    flags += ["--smoothings", "3", "--sigmas", "0.4", "--exponents", "0.5", "3", "--compared", "64"]
    assert score_likelihood.main([*flags, "--threads", "1", "--output", str(path)]) == 0
    said = capsys.readouterr().out
    stored = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written is left
    assert set(stored["variants"]) == set(score_likelihood.FAMILIES)
    assert stored["asked"] == {"split": "validation", "iterations": 1, "compared": 64, "seed": 0}
    lines = {" ".join(line.split()) for line in said.splitlines()}
    for family, variants in stored["variants"].items():
        for name, found in variants.items():
            bits = "inf" if found["bits_per_code"] is None else f"{found['bits_per_code']:.3f}"
            pairs = [f"{found['pair_bits'][weight]:.2f}" for weight in ("0.5", "3")]
            assert " ".join([name, f"{found['impossible']:.1%}", bits, *pairs]) in lines
            assert (found["bits_per_code"] is None) == (found["impossible"] > 0)
            assert f"{family}: {found['n']} codes of validation songs" in said
    counted = stored["variants"]["reconstruction"]["counts, symmetric (LASS)"]
    assert counted["impossible"] > 0  # an infinity is among what is written
