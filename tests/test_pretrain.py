"""scripts.pretrain and scripts.demo: their stages have flags that the programs take."""

import importlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import demo, pretrain

PLANS = {
    "pretrain": pretrain.stages(pretrain.Args()),
    "pretrain, with takes": pretrain.stages(pretrain.Args(groove=Path("takes"), length=0.01)),
    "pretrain, whole songs": pretrain.stages(
        pretrain.Args(sources=("bass", "drums", "other"), method="neural")
    ),
    "demo": demo.stages(demo.Args()),
    "demo, plain": demo.stages(demo.Args(songs="plain")),
}


@pytest.mark.parametrize("name", PLANS)
def test_every_stage_is_a_command_that_its_program_takes(name):
    for stage in PLANS[name]:
        script, *flags = stage.command
        args = importlib.import_module(f"scripts.{script}").main._parse(flags)
        assert args is not None


def test_tables_and_priors_are_made_only_for_methods_that_read_them():
    tables = {"counts linearisation", "code sums"}
    names = {name: {stage.name for stage in plan} for name, plan in PLANS.items()}
    assert tables <= names["pretrain"]
    assert not tables & names["pretrain, whole songs"]
    priors = {f"prior linearisation {source}" for source in ("bass", "drums")}
    assert names["pretrain, whole songs"] == names["pretrain"] - tables - priors


def test_the_learning_rate_has_fallen_to_zero_at_the_last_step():
    for length in (0.001, 0.3, 1.0, 4.0):
        for flags in pretrain.longer(length).values():
            numbers = dict(zip(flags[::2], flags[1::2], strict=True))
            assert 0 < numbers["--optim.decay-steps"] <= numbers["--train.steps"]


def test_nothing_is_trained_for_a_package_that_cannot_be_written(tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for package in (tmp_path / "file", tmp_path / "full", out / "models"):
        assert pretrain.main(["--output", str(out), "--package", str(package)]) == 1
        assert capsys.readouterr().err.startswith("error: ")
    flags = ["--output", str(out), "--package", str(tmp_path / "new")]
    assert pretrain.main([*flags, "--groove", str(tmp_path / "nowhere")]) == 1
    assert not out.exists() and not (tmp_path / "new").exists()


def test_a_demo_of_plain_songs_is_not_continued_with_others(tmp_path, capsys):
    (tmp_path / "slakh").mkdir()
    (tmp_path / "slakh" / "synthetic.json").write_text(json.dumps({"version": 1, "seed": 0}))
    assert demo.main(["--output", str(tmp_path)]) == 1
    assert "--songs plain" in capsys.readouterr().err


@given(st.sampled_from(["tracks", "length", "seed", "cores"]), st.sampled_from([-1, 0, math.nan]))
def test_values_out_of_range_are_named(name, value):
    if name == "seed" and value == 0:
        return
    with pytest.raises(ValueError, match=f"^{name} is "):
        pretrain.Args(**{name: value})
