"""Flags that cannot be, or would change nothing: one line before any model is read, no output."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jukebox_core import audio
from jukebox_core.separation import method as method_module
from jukebox_core.separation.settings import Settings, tuned_path
from scripts import (
    ablate,
    app,
    calibrate,
    evaluate,
    score_likelihood,
    score_uncertainty,
    separate,
    tune,
)
from scripts._methods import METHODS
from scripts.ablate import program as ablate_program


@pytest.fixture
def unread(monkeypatch):
    """Reading a model's weights is a failure."""

    def fail(*args, **kwargs):
        raise AssertionError("weights were read")

    for module in (method_module, ablate_program, score_likelihood):
        monkeypatch.setattr(module, "load_codec", fail)


@pytest.fixture
def mixture(tmp_path):
    path = tmp_path / "mix.wav"
    noise = 0.1 * torch.randn(1, 12_000, generator=torch.Generator().manual_seed(0))
    audio.save(path, noise, 22_050)
    return path


def separated(models, mixture, *flags):
    common = ["--models", str(models), "--output", str(mixture.parent / "out"), "--device", "cpu"]
    return separate.main([str(mixture), *common, *map(str, flags)])


def refused(capsys, status, field, value, folder=None):
    said = capsys.readouterr()
    assert status == 1 and said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ") and f"{field} is {value}, " in line
    assert folder is None or not (folder / "out").exists()
    return line


VALUES = [
    (flag, value)
    for flag, values in {
        "--sigma": ("0", "-1", "1e-300", "1e300", "inf", "nan"),
        "--temperature": ("0", "-1", "1e-300", "1e30", "inf", "nan"),
        "--mask-power": ("0", "-1", "inf", "nan"),
        "--mask-n-fft": ("0", "1", "-4", "4095", "4098", "2147483648", "99999999999999999999"),
        "--compression": ("0", "-1", "1e-300", "1e30", "inf", "nan"),
        "--shifts": ("0", "-1", "3", "1000000000"),
        "--candidates": ("0", "-1", "1000000000", "99999999999999999999"),
        "--window": ("0", "-1", "1000000000"),
        "--batch": ("0", "-1", "99999999999999999999"),
        "--seed": ("-1", "99999999999999999999"),
    }.items()
    for value in values
]
OTHERS = [
    (("--method", "lass", "--exponent"), ("0", "-1", "inf", "nan", "1e300")),
    (("--method", "lass", "--smoothing"), ("-1", "inf", "nan", "1e-300", "1e300")),
    (("--sampler", "ancestral", "--top-k"), ("-1", "99999999999999999999")),
    (("--sampler", "ancestral", "--top-p"), ("0", "-1", "2", "inf", "nan")),
]
VALUES += [((*flags,), value) for flags, values in OTHERS for value in values]


@pytest.mark.parametrize(("flags", "value"), VALUES)
def test_values_of_a_separation(tiny_models, mixture, capsys, unread, flags, value):
    flags = (flags,) if isinstance(flags, str) else flags
    field = flags[-1].strip("-").replace("-", "_")
    shown = value if field in {"candidates", "window", "batch", "seed"} else None
    if shown is None:
        shown = value if "fft" in field or field in {"shifts", "top_k"} else repr(float(value))
    status = separated(tiny_models, mixture, *flags, value)
    line = capsys.readouterr().err
    assert status == 1 and line.count("\n") == 1
    assert line.startswith("error: ") and f"{field} is {shown}" in line
    assert not (mixture.parent / "out").exists()


IDLE = [
    ("--method lass --sigma 0.3", "sigma"),
    ("--method lass --gaussian True", "gaussian"),
    ("--method lass --gaussian False", "gaussian"),
    ("--method lqvae --exponent 2", "exponent"),
    ("--method lqvae --smoothing 3", "smoothing"),
    ("--method lqvae --smoothing 0", "smoothing"),
    ("--method lqvae --smoothing-base overall", "smoothing_base"),
    ("--method lqvae --symmetric True", "symmetric"),
    ("--method lqvae --gaussian True", "gaussian"),
    ("--method hybrid --gaussian False --sigma 0.3", "sigma"),
    ("--method hybrid --gaussian False --smoothing 0 --sigma 0.3", "sigma"),
    ("--method hybrid --gaussian False --smoothing-base overall --sigma 0.3", "sigma"),
    ("--method hybrid --smoothing 0 --smoothing-base gaussian", "smoothing_base"),
    ("--method lass --smoothing 0 --smoothing-base overall", "smoothing_base"),
    ("--top-k 3", "top_k"),
    ("--sampler beam --top-p 0.5", "top_p"),
    ("--sampler beam --top-k 0", "top_k"),
    ("--selection rejection", "selection"),
    ("--weights bayes-risk --compression 0.5", "compression"),
    ("--no-refine --weights bayes-risk", "weights"),
    ("--no-refine --mask-power 3", "mask_power"),
    ("--no-refine --mask-n-fft 1024", "mask_n_fft"),
    ("--no-refine --compression 0.5", "compression"),
    ("--no-refine --calibration False", "calibration"),
]


@pytest.mark.parametrize(("flags", "field"), IDLE)
def test_settings_without_effect(tiny_models, mixture, capsys, unread, flags, field):
    status = separated(tiny_models, mixture, *flags.split())
    said = capsys.readouterr().err
    assert status == 1 and said.count("\n") == 1 and not (mixture.parent / "out").exists()
    assert said.startswith(f"error: {field} is ") and "it would have no effect" in said


@pytest.mark.parametrize(
    "flags",
    [
        "--method lqvae --sigma 0.3",
        "--method lass --exponent 2 --smoothing 1 --smoothing-base overall --symmetric True",
        "--method hybrid --gaussian False --smoothing-base gaussian --sigma 0.3",
        "--window 64 --weights log-posterior",
        "--no-refine --selection rejection-pair",
        "--sampler ancestral --shifts 1 --smoothing 0 --gaussian False --exponent 3 --no-refine",
    ],
)
def test_settings_with_an_effect(tiny_models, mixture, flags):
    assert separated(tiny_models, mixture, "--candidates", "2", *flags.split()) == 0


def evaluated(models, data, output, *flags):
    common = ["--models", str(models), "--data", str(data), "--output", str(output)]
    common += ["--candidates", "2", "--chunks", "1", "--chunk-codes", "32", "--device", "cpu"]
    return evaluate.main([*common, "--baselines", "mixture", "--examples", "0", *flags])


def test_an_evaluation_gives_settings_to_the_methods_that_use_them(
    tiny_models, tiny_data, tmp_path, capsys, unread, monkeypatch
):
    out = tmp_path / "out" / "results.json"
    for flags, field, value in (
        (("--methods", "lass", "--sigma", "0.3"), "sigma", "0.3"),
        (("--methods", "lqvae", "--exponent", "2"), "exponent", "2.0"),
        (("--methods", "lqvae", "lass", "--gaussian", "True"), "gaussian", "True"),
        (("--top-k", "3"), "top_k", "3"),
        (("--exponent", "inf"), "exponent", "inf"),
        (("--batch", "0"), "batch", "0"),
        (("--chunk-codes", "-1"), "chunk_codes", "-1"),
        (("--seed", "-1"), "seed", "-1"),
    ):
        refused(capsys, evaluated(tiny_models, tiny_data, out, *flags), field, value, tmp_path)
    monkeypatch.undo()
    flags = ("--methods", "lqvae", "lass", "--sigma", "0.3", "--exponent", "2")
    assert evaluated(tiny_models, tiny_data, out, *flags) == 0
    models = json.loads(out.read_text())["meta"]["models"]
    assert models["lqvae"]["sigma"] == 0.3 and "exponent" not in models["lqvae"]
    assert models["lass"]["exponent"] == 2.0 and "sigma" not in models["lass"]


def test_other_programs_refuse_before_they_work(tiny_models, tiny_data, tmp_path, capsys, unread):
    both = ["--models", str(tiny_models), "--data", str(tiny_data)]
    for program, flags, field in (
        (tune.main, ["--chunks", "0"], "chunks"),
        (tune.main, ["--budget", "-1"], "budget"),
        (tune.main, ["--jobs", "0"], "jobs"),
        (tune.main, ["--candidates", "0"], "candidates"),
        (tune.main, ["--sizes", "4", "0"], "sizes[1]"),
        (tune.main, ["--sizes", "4", "1000000000"], "candidates"),
        (tune.main, ["--chunk-codes", "0"], "chunk_codes"),
        (tune.main, ["--split", "test"], "split"),
        (ablate.main, ["--seeds", "0"], "seeds"),
        (ablate.main, ["--seeds", "1000000000"], "seeds"),
        (ablate.main, ["--candidates", "1000000000"], "candidates"),
        (ablate.main, ["--chunk-codes", "0"], "chunk_codes"),
        (score_likelihood.main, ["--iterations", "0"], "iterations"),
        (score_likelihood.main, ["--iterations", "1000000000"], "iterations"),
        (score_likelihood.main, ["--compared", "1000000000"], "compared"),
        (score_likelihood.main, ["--smoothings", "3", "0"], "smoothings[1]"),
        (score_likelihood.main, ["--sigmas", "inf"], "sigmas[0]"),
        (score_likelihood.main, ["--exponents", "nan"], "exponents[0]"),
        (score_uncertainty.main, ["--within", "nan"], "within"),
        (score_uncertainty.main, ["--candidates", "6"], "candidates"),
        (score_uncertainty.main, ["--chunks", "-1"], "chunks"),
    ):
        output = ["--output", str(tmp_path / "out")] if program is ablate.main else []
        refused_by = program([*both, *output, *flags])
        said = capsys.readouterr()
        assert refused_by == 1 and said.err.count("\n") == 1, flags
        assert f"{field} is " in said.err and not any(tmp_path.iterdir())
    vqvae = ["--vqvae", str(tiny_models / "linearisation" / "vqvae"), "--data", str(tiny_data)]
    for flags, field in (
        (["--crops", "0"], "crops"),
        (["--codes", "-1"], "codes"),
        (["--n-fft", "2147483648"], "n_fft"),
    ):
        status = calibrate.main([*vqvae, "--output", str(tmp_path / "out"), *flags])
        refused(capsys, status, field, flags[1], tmp_path)


def test_the_app_takes_settings_that_one_of_its_methods_uses(tiny_models, tmp_path, capsys):
    pytest.importorskip("gradio")
    only = tmp_path / "models"
    shutil.copytree(tiny_models / "reconstruction", only / "reconstruction")
    for models, flags, field in (
        (tiny_models, ["--selection", "rejection"], "selection"),
        (only, ["--sigma", "0.3"], "sigma"),
        (tiny_models, ["--sigma", "nan"], "sigma"),
        (tiny_models, ["--port", "-1"], "port"),
        (tiny_models, ["--port", "0"], "port"),
        (tiny_models, ["--host", "0"], "host"),
        (tiny_models, ["--host", ""], "host"),
        (tiny_models, ["--host", "nonsense.invalid"], "host"),
        (tiny_models, ["--max-megabytes", "1e30"], "max_megabytes"),
        (tiny_models, ["--port", "65536"], "port"),
        (tiny_models, ["--max-seconds", "nan"], "max_seconds"),
        (tiny_models, ["--max-megabytes", "inf"], "max_megabytes"),
        (tiny_models, ["--candidates", "0"], "candidates"),
    ):
        assert app.main(["--models", str(models), *flags]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{field} is " in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"temperature": 0}, "temperature is 0"),
        ({"mask_n_fft": 4096.0}, "mask_n_fft is 4096.0"),
        ({"kernel": 1}, "gaussian is 1"),
        ({"sampler": []}, "sampler is \\[\\]"),
        ({"shifts": 0}, "shifts is 0"),
        ({"speed": 3}, "unknown settings speed"),
        ("abc", "is damaged"),
        (3, "is damaged"),
        (None, "is damaged"),
    ],
)
def test_tuned_values_are_checked_and_named_by_their_file(tiny_models, tmp_path, options, words):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    path = tuned_path(models, "lqvae")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"options": options}))
    with pytest.raises(ValueError, match=words) as caught:
        METHODS["lqvae"].load_separator(models)
    assert str(caught.value).startswith(str(path))


def test_tuned_values_without_effect_are_left_out(tiny_models, tmp_path):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    path = tuned_path(models, "lass")
    path.parent.mkdir(exist_ok=True)
    stored = {"sigma": 0.2, "kernel": True, "weight": 2, "sampler": "ancestral", "top_k": 5}
    path.write_text(json.dumps({"options": stored | {"temperature": None}}))
    load = METHODS["lass"].load_separator
    separator = load(models, candidates=2)
    assert separator.likelihood.exponent == 2 and separator.sampler.top_k == 5
    beams = load(models, Settings(sampler="beam"), candidates=2)
    assert type(beams.sampler).__name__ == "BeamSampler"


def test_zero_is_not_unset(tiny_models):
    load = METHODS["hybrid"].load_separator
    for name in ("candidates", "window", "shifts"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            if name == "shifts":
                load(tiny_models, Settings(shifts=0))
            load(tiny_models, **{name: 0})


def damage(path, **changed):
    """Replace tensors of a safetensors file; the metadata stay."""
    from safetensors import safe_open

    with safe_open(str(path), "numpy") as file:
        metadata = file.metadata()
    save_file(load_file(path) | changed, path, metadata)


@pytest.mark.parametrize("method", ["lass", "lqvae"])
def test_tables_of_values_that_cannot_be(tiny_models, tmp_path, mixture, capsys, method):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    family = models / {"lass": "reconstruction", "lqvae": "linearisation"}[method]
    if method == "lass":
        path = family / "counts.safetensors"
        good = load_file(path)
        k = len(good["offsets"]) - 1
        damages = [
            {"counts": np.where(np.arange(len(good["counts"])) == 1, 0, good["counts"])},
            {"counts": -good["counts"]},
            {"first": good["first"] + k},
            {"second": good["second"] - k},
            {"offsets": np.concatenate([good["offsets"][:0], good["offsets"][::-1]])},
        ]
    else:
        path = family / "sums.safetensors"
        good = load_file(path)
        damages = [
            {"sum_codes": good["sum_codes"] + len(good["sum_codes"])},
            {"sum_codes": good["sum_codes"] - 1000},
            {"sum_codes": good["sum_codes"].astype(np.float32) * np.nan},
            {"sum_codes": good["sum_codes"][:-1]},
        ]
    for changed in damages:
        damage(path, **good | changed)
        assert separated(models, mixture, "--method", method, "--candidates", "2") == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and path.name in said
