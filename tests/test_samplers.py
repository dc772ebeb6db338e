"""Samplers by name: which one it is, what it takes, and that a separator works with each."""

import json

import pytest
import torch

import lqvae
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.beam import BeamSampler
from jukebox_core.separation.particles import ParticleSampler
from jukebox_core.separation.samplers import SAMPLERS, make_sampler
from jukebox_core.separation.settings import Settings
from scripts import evaluate
from scripts._methods import METHODS


def test_names_and_options():
    assert make_sampler("ancestral") == AncestralSampler()
    assert make_sampler("ancestral", temperature=0.9, top_k=4, top_p=0.5) == AncestralSampler(
        0.9, 4, 0.5
    )
    assert make_sampler("beam", temperature=0.9) == BeamSampler(0.9)
    assert make_sampler("particle") == ParticleSampler(1.0, 0.5)
    assert make_sampler("particle", temperature=0.9, threshold=0.0) == ParticleSampler(0.9, 0.0)
    assert [name for name in SAMPLERS if make_sampler(name).independent] == ["ancestral"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("beams", {}, "sampler is 'beams', expected .*beam"),
        ("beam", {"top_k": 3}, "top_k is 3, but the sampler is beam; top_k belongs to ancestral"),
        ("particle", {"top_k": 3}, "top_k is 3, but the sampler is particle"),
        (
            "ancestral",
            {"threshold": 0.5},
            "threshold is 0.5, but the sampler is ancestral; threshold belongs to particle",
        ),
        ("ancestral", {"top_k": -2}, "top_k is -2, expected an integer"),
        ("ancestral", {"top_p": 0.0}, "top_p is 0.0, expected"),
        ("particle", {"threshold": 2.0}, "threshold is 2.0, expected .*a share of N"),
    ],
)
def test_options_that_do_not_belong_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        make_sampler(name, **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_takes_a_temperature_of_zero(name):
    with pytest.raises(ValueError, match="temperature is 0"):
        make_sampler(name, temperature=0)


@pytest.mark.parametrize("method", ("hybrid", "lqvae"))
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_separator_works_with_every_sampler(tiny_models, name, method):
    settings = Settings(sampler=name)
    separator = METHODS[method].load_separator(tiny_models, settings, "cpu", candidates=3)
    assert separator.sampler == make_sampler(name)
    generator = torch.Generator().manual_seed(0)
    mixture = 0.1 * torch.randn(2, separator.window * separator.codec.config.hop)
    stems = separator(mixture, separator.sample_rate)
    assert set(stems) == set(separator.sources)
    torch.testing.assert_close(sum(stems.values()), mixture, atol=1e-4, rtol=1e-4)
    drawn = separator.candidates(mixture, generator).samples
    assert (drawn.log_weights is not None) == (name == "particle")


def test_options_reach_the_sampler(tiny_models):
    options = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    settings = Settings(sampler="ancestral", **options)
    separator = lqvae.load_separator(tiny_models, settings, "cpu")
    assert separator.sampler == AncestralSampler(0.7, 5, 0.9)
    with pytest.raises(ValueError, match="top_k is 5, but the sampler is beam"):
        lqvae.load_separator(tiny_models, Settings(sampler="beam", top_k=5))


@pytest.mark.parametrize(
    ("flags", "recorded"),
    [
        ([], {"name": "ParticleSampler", "temperature": 1.0, "threshold": 0.5}),
        (
            ["--sampler", "ancestral", "--top-k", "7", "--top-p", "0.9"],
            {"name": "AncestralSampler", "temperature": 1.0, "top_k": 7, "top_p": 0.9},
        ),
        (["--sampler", "beam"], {"name": "BeamSampler", "temperature": 1.0}),
    ],
)
def test_the_evaluation_records_the_sampler(tiny_models, tiny_data, tmp_path, flags, recorded):
    output = tmp_path / "results.json"
    command = ["--models", str(tiny_models), "--data", str(tiny_data), "--output", str(output)]
    command += ["--methods", "lqvae", "--baselines", "mixture", "--chunks", "1"]
    command += ["--candidates", "3", "--examples", "0", "--device", "cpu"]
    assert evaluate.main([*command, *flags]) == 0
    meta = json.loads(output.read_text())["meta"]
    assert meta["models"]["lqvae"]["sampler"] == recorded
    assert all(flag in meta["command"] for flag in flags)


def test_flags_that_do_not_belong_are_one_line(tmp_path, capsys):
    flags = ["--models", "nowhere", "--data", "nowhere", "--output", str(tmp_path / "x.json")]
    assert evaluate.main([*flags, "--sampler", "beam", "--top-k", "3"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: top_k is 3, but the sampler is beam")
