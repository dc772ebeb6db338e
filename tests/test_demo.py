"""scripts.demo: what its stages would refuse is refused before the first."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scripts
from data.synthetic import MOST_SECONDS
from jukebox_core.stages import Runner, Stage
from scripts import demo
from scripts.demo import Args, stages

NUMBERS = {"tracks": 1, "chunks": 1, "count_iterations": 1, "seed": 0, "cores": 1}  # the least


@given(st.sampled_from(sorted(NUMBERS)), st.integers() | st.integers(-3, 3))
def test_any_number_makes_a_plan_or_is_named(name, value):
    if NUMBERS[name] <= value < 2**63:
        assert stages(Args(**{name: value}))
    else:
        with pytest.raises(ValueError, match=f"^{name} is "):
            Args(**{name: value})


@given(st.floats() | st.sampled_from([0.0, 1.0, 2 * MOST_SECONDS, -1.0, math.nan, math.inf]))
def test_any_length_of_a_song_makes_a_plan_or_is_named(seconds):
    if 1 <= seconds <= MOST_SECONDS:
        assert stages(Args(seconds=seconds))
    else:
        with pytest.raises(ValueError, match="^seconds is "):
            Args(seconds=seconds)


def test_one_system_needs_no_other_codec():
    every, one = stages(Args()), stages(Args(methods=("hybrid-neural",)))
    for plan in (every, one):
        names = {each.name for each in plan}
        assert all({*each.after} <= names for each in plan)
        scored = [each.command for each in plan if each.command[0] == "evaluate"]
        assert all(words[-1] == "--parts-only" for words in scored[:-1]) and len(scored) > 1
    assert {each.name for each in one} < {each.name for each in every} | {"scores hybrid-neural"}
    assert not any("reconstruction" in word for each in one for word in each.command)
    joined = next(each for each in one if each.name == "scores")
    assert joined.command[-2:] == ("--methods", "hybrid-neural")
    assert "--methods" not in next(each for each in every if each.name == "scores").command


def test_the_networks_alone_need_neither_priors_nor_tables():
    plan = stages(Args(sources=("bass", "drums", "guitar", "piano"), methods=("neural",)))
    programs = [each.command[0] for each in plan]
    assert programs == [
        *("make_synthetic", "prepare_slakh", "train_vqvae", "train_mask", "train_likelihood"),
        *("train_mask_network", "calibrate", "tune", "evaluate", "evaluate", "report"),
    ]
    assert all({*each.after} <= {other.name for other in plan} for each in plan)
    network = next(each for each in plan if each.command[0] == "train_mask_network").command
    assert network[network.index("--output") + 1].endswith("mask_network/neural")
    tune = next(each for each in plan if each.command[0] == "tune")
    assert tune.command[tune.command.index("--prior") + 1] == "unigram"
    assert all(tune.name in each.after for each in plan if "--parts-only" in each.command)


@pytest.mark.parametrize(
    "flags",
    (
        ("--preset", "nonsense"),
        ("--tracks", "0"),
        ("--seconds", "nan"),
        ("--cores", "0"),
        ("--methods", "lass"),
        ("--methods", "hybrid", "hybrid"),
        ("--methods", "neural", "hybrid"),
    ),
)
def test_nothing_is_started_with_a_value_that_cannot_be(flags, tmp_path, capsys):
    assert demo.main(["--output", str(tmp_path / "out"), *flags]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and flags[0][2:] in said
    assert not any(tmp_path.iterdir())


def test_stages_run_the_installed_programs_in_any_folder(tmp_path, monkeypatch):
    (tmp_path / "data.py").write_text("raise ImportError('the wrong data')")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").write_text("raise ImportError('the wrong scripts')")
    monkeypatch.chdir(tmp_path)
    flags = "--output songs --tracks 1 --seconds 1 --parts bass drums".split()
    Runner([Stage("songs", ("make_synthetic", *flags))], tmp_path / "out", 1, scripts).run()
    assert len(list(tmp_path.glob("songs/**/mix.flac"))) == 1
