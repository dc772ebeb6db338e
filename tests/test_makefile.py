"""The Makefile: what its targets run, and what they make again; a stub stands for python."""

import functools
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("hybrid-neural", "hybrid", "lass", "lqvae")
STUB = """#!/bin/sh
echo "$@" >> calls
models=runs/demo/models
case "$2" in
scripts.demo)
    for family in linearisation reconstruction; do
        for run in vqvae prior_bass prior_drums neural_likelihood; do
            mkdir -p $models/$family/$run
            test -e $models/$family/$run/weights.safetensors \
                || touch $models/$family/$run/weights.safetensors
        done
        for table in counts sums calibration; do
            test -e $models/$family/$table.safetensors || touch $models/$family/$table.safetensors
        done
    done
    mkdir -p $models/mask_network/hybrid-neural
    last=$models/mask_network/hybrid-neural/weights.safetensors
    test -e $last || touch $last ;;
scripts.tune)
    mkdir -p $4/tuned
    touch $4/tuned/$8.json ;;
esac
"""


@pytest.fixture
def results(tmp_path):
    """Runs `make results` and gives the commands it ran, [module, arguments...] each."""
    if shutil.which("make") is None or os.name == "nt":
        pytest.skip("there is no make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    stub = tmp_path / ".venv" / "bin" / "python"
    stub.parent.mkdir(parents=True)
    stub.write_text(STUB)
    stub.chmod(0o755)
    for stamp in (".runs", ".ready"):
        (tmp_path / ".venv" / stamp).touch()

    def run(*flags, target="results"):
        (tmp_path / "calls").write_text("")
        alone = {"PATH": os.environ["PATH"]}  # without the variables of a make that runs the tests
        command = ["make", target, *flags]
        subprocess.run(command, cwd=tmp_path, env=alone, check=True, capture_output=True)
        return [line.split()[1:] for line in (tmp_path / "calls").read_text().splitlines()]

    return run


def test_the_demo_comes_first_and_every_method_is_tuned_with_the_same_budget(results):
    calls = results()
    assert [call[0] for call in calls] == [
        "scripts.demo",
        *["scripts.tune"] * 4,
        "scripts.score_likelihood",
        "scripts.ablate",
        "scripts.make_synthetic",
        "scripts.prepare_slakh",
        "scripts.ablate",
    ]
    tunes = [call for call in calls if call[0] == "scripts.tune"]
    assert sorted(call[call.index("--method") + 1] for call in tunes) == sorted(METHODS)
    assert len({tuple(word for word in call if word not in METHODS) for call in tunes}) == 1


def test_settings_are_tuned_again_when_the_models_are_newer_and_only_then(results, tmp_path):
    results()
    assert "scripts.tune" not in [call[0] for call in results()]
    later = time.time() + 10
    changed = tmp_path / "runs/demo/models/reconstruction/calibration.safetensors"
    os.utime(changed, (later, later))
    assert [call[0] for call in results()].count("scripts.tune") == 4


def test_models_of_ones_own_are_tuned_without_the_demo(results, tmp_path):
    run = tmp_path / "mine" / "linearisation" / "vqvae"
    run.mkdir(parents=True)
    (run / "weights.safetensors").touch()
    calls = [call[0] for call in results("MODELS=mine", "DATA=data")]
    assert "scripts.demo" not in calls and calls.count("scripts.tune") == 3
    assert "scripts.tune" not in [call[0] for call in results("MODELS=mine", "DATA=data")]


def test_slakh_scores_the_models_or_trains_its_own(results, tmp_path):
    (tmp_path / "some songs").mkdir()
    benchmark = ["scripts.slakh_benchmark", "--slakh", "some", "songs"]
    slakh = functools.partial(results, "SLAKH=some songs", target="slakh")
    assert slakh() == [benchmark]
    assert slakh("MODELS=mine") == [[*benchmark, "--models", "mine"]]
    assert slakh("TRAIN=1") == [[*benchmark, "--train", "--preset", "small"]]
    assert slakh("TRAIN=1", "PRESET=t4") == [[*benchmark, "--train", "--preset", "t4"]]
    for flags in ([], ["SLAKH=nowhere"]):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            results(*flags, target="slakh")
        assert b"expected a folder of Slakh2100: make slakh SLAKH=DIR" in failed.value.stderr


def test_a_file_is_separated_by_the_models_that_ship(results, tmp_path):
    for name in ("song.mp3", "-n", "Ke$ha's \"a`id`b.mp3"):
        (tmp_path / name).touch()
        file = "FILE=" + name
        expected = ["scripts.separate", "--output", "stems", "--", *name.split()]
        assert results(file, target="separate") == [expected]
        assert results(file, "STEMS=out", target="separate")[0][2] == "out"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        results("FILE=nowhere.mp3", target="separate")
    assert b"expected an audio file: make separate FILE=song.mp3" in failed.value.stderr


def test_the_models_that_ship_are_trained_with_the_takes_that_are_given(results):
    train = ["scripts.pretrain", "--output", "runs/pretrained"]
    assert results(target="pretrained") == [train]
    assert results("GROOVE=takes", target="pretrained") == [[*train, "--groove", "takes"]]


def test_every_python_runs_a_part_of_the_tests_in_its_own_environment(results, tmp_path):
    for name in ("one", "two"):
        interpreter, environment = tmp_path / f"python-{name}", tmp_path / "build" / name
        interpreter.write_text(f"#!/bin/sh\necho {name}")
        interpreter.chmod(0o755)
        shutil.copytree(tmp_path / ".venv", environment)
        (environment / "bin" / "python").write_text(f'#!/bin/sh\necho -m {name} "$@" >> calls\n')
        for stamp in (".runs", ".ready"):
            os.utime(environment / stamp)
    calls = results("PYTHONS=./python-one ./python-two", "EVERY=3", target="pythons")
    tests = ["-m", "pytest", "-m", "not", "slow", "--every", "3", "-n", "auto"]
    assert calls == [["one", *tests], ["two", *tests]]
