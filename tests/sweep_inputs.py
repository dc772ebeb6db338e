"""Small inputs of every program, made once for a sweep (`tests.sweep_flags`)."""

from __future__ import annotations

import shutil
from pathlib import Path

from made_up_runs import write_runs
from original_files import CODEC_HPS, codec_tensors, save_checkpoint
from test_parity import codec_fixture
from test_prepare_slakh import write_track
from test_synthetic import write_midi

from jukebox_core import audio
from jukebox_core.files import write_json
from tests.conftest import RATE, tone_and_noise, train_tiny_models, write_tiny_data


def make_inputs(folder: Path, data: Path | None = None, models: Path | None = None) -> Path:
    """Fill `folder` with everything that base commands read.

    Args:
        folder: new.
        data: a tiny prepared data set to copy; None: it is written.
        models: models trained on it to copy; None: they are trained.
    """
    if data is None:
        write_tiny_data(folder / "data")
    else:
        shutil.copytree(data, folder / "data")
    if models is None:
        train_tiny_models(folder / "models", folder / "data")
    else:
        shutil.copytree(models, folder / "models")
    for state in (folder / "models").rglob("state.pt"):  # large, and read by nothing here
        state.unlink()
    song = sum(tone_and_noise(9, 2 * RATE).values()) / 2
    audio.save(folder / "song.wav", song[None], RATE)
    for split, number in (("train", 1), ("validation", 2), ("test", 3)):
        write_track(folder / f"slakh/{split}/Track{number:05d}", "Bass", "Drums", seed=number)
    for number in (1, 2, 3):
        write_track(folder / f"plain/Track{number:05d}", "Bass", "Drums", seed=number)
    notes = [(40 + step, step / 4, step / 4 + 0.2) for step in range(8)]
    write_midi(folder / "midi/song.mid", (33, False, notes), (0, True, notes))
    write_runs(folder / "runs")
    (folder / "fixtures").mkdir()
    codec_fixture(folder / "fixtures")
    save_checkpoint(folder / "codec.pth.tar", codec_tensors(), CODEC_HPS)
    _derive(folder)
    return folder


def _derive(folder: Path) -> None:
    """What other programs make of the above."""
    from scripts import ablate, calibrate, convert_upstream, train_mask

    data, models = folder / "data", folder / "models"
    for family in ("reconstruction", "linearisation"):
        codec, output = models / family / "vqvae", models / family / "calibration.safetensors"
        flags = ["--vqvae", codec, "--data", data, "--output", output, "--crops", "4"]
        _do(calibrate, *flags, "--codes", "128", "--n-fft", "256", "--device", "cpu")
    flags = ["--data", data, "--output", models / "mask_estimator", "--preset", "tiny"]
    _do(train_mask, *flags, "--device", "cpu", "--wandb", "disabled")
    (models / "mask_estimator/state.pt").unlink(missing_ok=True)
    for kind, native, original in (
        ("counts", "counts.safetensors", "counts.npz"),
        ("sums", "sums.safetensors", "sums.pt"),
    ):
        flags = ["--kind", kind, "--input", models / "linearisation" / native]
        _do(convert_upstream, *flags, "--output", folder / original, "--back")
    flags = ["--models", models, "--data", data, "--output", folder / "ablation", "--no-parts"]
    flags += ["--chunks", "2", "--candidates", "4", "--seeds", "1", "--chunk-codes", "128"]
    _do(ablate, *flags, "--jobs", "1")
    shutil.copyfile(folder / "ablation/ablation.json", folder / "ablation.json")
    shutil.rmtree(folder / "ablation")
    write_json(folder / "hps.json", {name: _plain(value) for name, value in CODEC_HPS.items()})


def _plain(value):
    """A NumPy scalar as Python's own."""
    return value.item() if hasattr(value, "item") else value


def _do(script, *flags) -> None:
    assert script.main([str(flag) for flag in flags]) == 0
