"""Calibrated spectra: the fit against SciPy's, what a mask makes of it, and the command."""

import shutil

import numpy as np
import pytest
import scipy.optimize
import torch

import lqvae
from jukebox_core.audio.spectra import stft
from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.datasets.crops import CropDataset
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.separation.calibration import (
    Calibration,
    CalibrationMeter,
    load_calibration,
    save_calibration,
)
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.samples import Candidates
from jukebox_core.separation.settings import Settings
from scripts import calibrate

ALPHA = {"bass": 0.5, "drums": 0.25}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(bins=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    gain, floor = ({n: torch.rand(bins, generator=g) for n in ALPHA} for _ in range(2))
    return Calibration(gain, floor)


def test_the_fit_is_non_negative_least_squares_in_every_bin():
    true = 0.1 * noise(3, 4000)
    decoded = 0.7 * true + 0.05 * noise(3, 4000, seed=1)
    decoded[0] = 0.3 * noise(4000, seed=2)  # loud where the truth is not: negative slopes
    meter = CalibrationMeter(64)
    meter.add("bass", true[:2], decoded[:2])  # in any number of pieces
    meter.add("bass", true[2], decoded[2])
    found = meter.result()
    x, y = (stft(z, 64, 16).abs().square().double().numpy() for z in (true, decoded))
    zeros = 0
    for f in range(33):
        columns = np.stack([y[:, f].ravel(), np.ones(y[:, f].size)], 1)
        gain, floor = scipy.optimize.nnls(columns, x[:, f].ravel())[0]
        assert found.gain["bass"][f].item() == pytest.approx(gain, rel=1e-3, abs=1e-7)
        assert found.floor["bass"][f].item() == pytest.approx(floor, rel=1e-3, abs=1e-7)
        zeros += gain == 0
    assert zeros < 33


@pytest.mark.parametrize("case", ["rising", "falling", "through"])
def test_lines_that_would_be_negative_are_not(case):
    y = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    x = {"rising": 2 * y + 1, "falling": 10 - y, "through": (3 * y - 3).clamp_min(0)}[case]
    sums = [z.sum()[None] for z in (torch.ones_like(y), x, y, x * y, y * y)]
    from jukebox_core.separation.calibration import _line

    gain, floor = (z.item() for z in _line(*sums))
    expected = scipy.optimize.nnls(torch.stack([y, torch.ones_like(y)], 1).numpy(), x.numpy())[0]
    assert (gain, floor) == pytest.approx(tuple(expected), abs=1e-9)
    assert {"rising": floor > 0 < gain, "falling": gain == 0, "through": floor == 0}[case]


def test_what_a_filter_takes_is_given_back():
    """A 'codec' that plays every frequency at half its level: powers are four times the decoded."""
    true = 0.1 * noise(1, 8000)
    meter = CalibrationMeter(128)
    meter.add("bass", true, 0.5 * true)
    found = meter.result()
    assert torch.allclose(found.gain["bass"], torch.full((65,), 4.0), rtol=1e-4)
    assert found.floor["bass"].max() < 1e-6
    powers = torch.rand(2, 65, 9)
    assert torch.allclose(found("bass", powers, 0.5), 4 * powers, rtol=1e-3, atol=1e-6)


def test_floors_stand_in_the_mixture_as_their_source_does():
    calibration = made()
    powers = torch.rand(2, 5, 7)
    for name, alpha in ALPHA.items():
        gain, floor = calibration.gain[name], calibration.floor[name]
        expected = powers * gain[:, None] + alpha**2 * floor[:, None]
        assert torch.equal(calibration(name, powers, alpha), expected)
    with pytest.raises(ValueError, match="the calibration is of bass, drums, not of piano"):
        calibration("piano", powers, 1.0)


def test_other_stft_sizes_read_it_by_frequency():
    """Stationary noise has powers in proportion to the window's length."""
    level = noise(1, 400_000)
    floors = {}
    for n_fft in (256, 1024):
        meter = CalibrationMeter(n_fft)
        meter.add("bass", level, torch.zeros_like(level))  # a codec that loses all of it
        floors[n_fft] = meter.result()
    silence = torch.zeros(1, 513, 3)
    small, large = (floors[n]("bass", silence, 1.0)[0, 5:-5] for n in (256, 1024))
    assert torch.allclose(small.mean(), large.mean(), rtol=0.01)
    ramp = Calibration({"bass": torch.arange(5.0)}, {"bass": torch.zeros(5)})
    read = ramp("bass", torch.ones(1, 9, 1), 1.0)[0, :, 0]
    assert torch.allclose(read, torch.arange(9) / 2)


def test_a_calibrated_mask_is_the_mask_of_calibrated_powers():
    calibration = made(129)
    plain, mask = RatioMask(2.5, 256, 64, 0.5), RatioMask(2.5, 256, 64, 0.5, calibration)
    audio = {name: noise(2, 3, 2000, seed=n) for n, name in enumerate(ALPHA)}
    candidates = Candidates(audio, ALPHA)
    weights = torch.full((2, 3), 1 / 3)
    powers = plain.mean_powers(candidates, weights)
    expected = {n: calibration(n, p, ALPHA[n]) for n, p in powers.items()}
    found = mask.mean_powers(candidates, weights)
    assert all(torch.equal(found[n], expected[n]) for n in ALPHA)
    mixture = sum(ALPHA[n] * audio[n][:, 0] for n in ALPHA)
    stems = mask(mixture, candidates, weights)
    assert torch.allclose(sum(ALPHA[n] * stems[n] for n in ALPHA), mixture, atol=1e-5)
    assert mask.settings["calibration"] == repr(calibration)
    assert plain.settings["calibration"] is None


@pytest.mark.parametrize(
    ("gain", "floor", "message"),
    [
        ({}, {}, "gains of , floors of"),
        ({"bass": torch.ones(3)}, {"drums": torch.ones(3)}, "gains of bass, floors of drums"),
        ({"bass": torch.ones(3)}, {"bass": torch.ones(4)}, "not vectors of one size"),
        ({"bass": -torch.ones(3)}, {"bass": torch.ones(3)}, "gain of bass"),
        ({"bass": torch.ones(3)}, {"bass": torch.tensor([0, torch.nan, 0])}, "floor of bass"),
        ({"bass": torch.tensor([0, torch.inf, 0])}, {"bass": torch.ones(3)}, "gain of bass"),
    ],
)
def test_calibrations_that_cannot_be(gain, floor, message):
    with pytest.raises(ValueError, match=message):
        Calibration(gain, floor)


def test_files_keep_it_and_know_their_codec(tmp_path):
    path, calibration = tmp_path / "calibration.safetensors", made()
    save_calibration(path, calibration, "this", 22_050)
    assert (
        repr(load_calibration(path, "this", ("bass",))) == repr(calibration) != repr(made(seed=1))
    )
    with pytest.raises(ValueError, match="another codec"):
        load_calibration(path, "that")
    with pytest.raises(ValueError, match="piano"):
        load_calibration(path, "this", ("bass", "piano"))
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_calibration(tmp_path / "other")
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="is not a readable"):
        load_calibration(path)


def test_the_command_measures_round_trips_and_separation_takes_them(
    tiny_models, tiny_data, tmp_path
):
    family = shutil.copytree(tiny_models / "linearisation", tmp_path / "linearisation")
    path = family / "calibration.safetensors"
    before = lqvae.load_separator(tmp_path)
    flags = ["--vqvae", str(family / "vqvae"), "--data", str(tiny_data), "--output", str(path)]
    flags += ["--crops", "5", "--codes", "256", "--n-fft", "512", "--device", "cpu"]
    assert calibrate.main(flags) == 0
    codec, manifest = load_codec(family / "vqvae"), load_manifest(tiny_data)
    crop = 256 * codec.config.hop
    items = CropDataset(manifest.split("train"), "sources", crop, manifest.alpha, 0)
    meter = CalibrationMeter(512)
    for i in range(5):
        for name, true in zip(manifest.sources, items[i], strict=True):
            with torch.no_grad():
                meter.add(name, true[None], codec.decode(codec.encode(true[None])))
    expected, found = meter.result(), load_calibration(path, fingerprint(family / "vqvae"))
    # The command decodes in batches, and a bin whose power hardly varies blows up their rounding.
    for name in manifest.sources:
        torch.testing.assert_close(found.gain[name], expected.gain[name], rtol=5e-3, atol=1e-6)
        torch.testing.assert_close(found.floor[name], expected.floor[name], rtol=5e-3, atol=1e-6)
    assert before.mask.calibration is None
    after = lqvae.load_separator(tmp_path)
    assert repr(after.mask.calibration) == repr(found)
    mixture = 0.1 * noise(1, 6000)
    rate = manifest.sample_rate
    changed, same, without = (
        separator(mixture, rate, seed=0)["bass"]
        for separator in (
            after,
            before,
            lqvae.load_separator(tmp_path, Settings(calibration=False)),
        )
    )
    assert torch.equal(without, same) and not torch.allclose(changed, same, atol=1e-4)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        lqvae.load_separator(tmp_path, Settings(calibration=True))


def test_flags_that_cannot_be(tiny_models, tiny_data, tmp_path, capsys):
    flags = ["--vqvae", str(tiny_models / "linearisation" / "vqvae"), "--data", str(tiny_data)]
    flags += ["--output", str(tmp_path / "x")]
    for flag, value, expected in (("crops", "0", "at least 1"), ("n_fft", "100", "multiple of 8")):
        assert calibrate.main([*flags, f"--{flag.replace('_', '-')}", value]) == 1
        assert f"{flag} is {value}, expected" in (said := capsys.readouterr().err)
        assert expected in said
    assert not (tmp_path / "x").exists()
