"""Models, stems, settings and results that version 0.1 wrote are used by today's programs."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from jukebox_core import audio
from jukebox_core.separation.settings import Settings
from scripts import separate, train_prior, train_vqvae
from scripts._methods import METHODS, PUBLISHED_METHODS

OLD = Path(__file__).parent / "written_by_version_0.1"


@pytest.fixture
def old(tmp_path):
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


def test_tuned_settings():
    lass, hybrid = (
        METHODS[name].resolve(Settings(), OLD / "models") for name in ("lass", "hybrid")
    )
    assert (lass.exponent, lass.smoothing, lass.temperature, lass.sampler) == (
        4.0,
        10.0,
        0.9,
        "ancestral",
    )
    assert (hybrid.exponent, hybrid.sigma, hybrid.smoothing) == (0.7, 0.3, 10.0)
    assert (hybrid.mask_power, hybrid.mask_n_fft, hybrid.compression) == (2.0, 2048, 0.3)


@pytest.mark.parametrize("method", PUBLISHED_METHODS)
def test_separation(old, method):
    song = old / "data" / "test" / "song3" / "mixture.flac"
    stems = old / "stems" / method
    flags = ["--method", method, "--models", old / "models", "--output", stems, "--window", 64]
    flags += ["--candidates", 2, "--device", "cpu", song]
    assert separate.main(list(map(str, flags))) == 0  # in place of the stems that are there
    record = json.loads((stems / "mixture" / "separation.json").read_text())
    assert record["stems"] == ["bass.wav", "drums.wav"]
    total = sum(audio.load(stems / "mixture" / name)[0] for name in record["stems"])
    torch.testing.assert_close(total, audio.load(song)[0], atol=1e-4, rtol=0)


def test_trainings_continue(old, capsys):
    models = old / "models" / "linearisation"
    common = ["--data", old / "data", "--preset", "tiny", "--device", "cpu", "--wandb", "disabled"]
    common += ["--train.crop", 2048, "--train.batch-size", 2, "--train.steps", 4, "--no-best"]
    codec = ["--objective", "linearisation", "--output", models / "vqvae", "--vqvae.width", 4]
    codec += ["--vqvae.depth", 1, "--vqvae.emb-width", 8, "--vqvae.l-bins", 8]
    prior = ["--vqvae", models / "vqvae", "--source", "bass", "--output", models / "prior_bass"]
    prior += ["--prior.width", 16, "--prior.depth", 1, "--prior.n-ctx", 128]
    for program, flags in ((train_prior, prior), (train_vqvae, codec)):
        assert program.main(list(map(str, [*flags, *common]))) == 0, capsys.readouterr().err
        assert "step 4" in capsys.readouterr().out
