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


@pytest.mark.parametrize(("cores", "most"), ((1, 1), (2, 2), (3, 3), (4, 4), (16, 4)))
def test_a_stage_has_a_core_and_the_first_that_is_ready_starts(tmp_path, monkeypatch, cores, most):
    running, started, together = [], [], []

    class Process:
        """Ends when it is asked for the third time."""

        def __init__(self, command, env, **_):
            self.name, self.asked = command[-1], 0
            running.append(self.name)
            started.append(self.name)
            together.append(len(running))
            assert int(env["OMP_NUM_THREADS"]) == max(1, cores // 4)

        def poll(self):
            self.asked += 1
            if self.asked < 3:
                return None
            running.remove(self.name)
            return 0

    monkeypatch.setattr("jukebox_core.stages.subprocess.Popen", Process)
    waits = iter(range(100))
    monkeypatch.setattr("jukebox_core.stages.time.sleep", lambda _: next(waits))
    names = [str(number) for number in range(9)]
    after = {"1": ("0",)}
    plan = [Stage(name, ("program", name), after.get(name, ()), 0.25) for name in names]
    Runner(plan, tmp_path, cores, scripts).run()
    assert max(together) == most
    waiting = names[:1] + names[2 : most + 1]  # all but the stage that waits for another
    assert started[:most] == waiting and started[most] == "1"
    assert sorted(started) == names


def test_the_networks_come_before_priors_and_tables():
    names = [each.name for each in stages(Args())]
    first = ("mask estimator", "neural likelihood", "mask network")
    others = [name for name in names if name.startswith(("prior", "counts", "calibration"))]
    assert max(map(names.index, first)) < min(map(names.index, others))
