"""Small inputs of the programs, each made when a base command of a sweep first names it."""

from __future__ import annotations

import shutil
from pathlib import Path

from made_up_runs import write_runs
from test_groove import write_groove
from test_mma import write_mma
from test_parity import codec_fixture
from test_prepare_slakh import write_track
from test_synthetic import write_midi
from upstream_files import CODEC_HPS, codec_tensors, save_checkpoint

from jukebox_core import audio
from jukebox_core.files import write_json
from tests.conftest import RATE, tone_and_noise, train_tiny_models, write_tiny_data

CALIBRATED = ("reconstruction", "linearisation")


def make(folder: Path, name: str) -> Path:
    """The input `name` of the folder: as it is there, or made."""
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _MAKERS[name](path)
    return path


def _models(path: Path) -> None:
    train_tiny_models(path, make(path.parent, "data"))
    complete(path)


def complete(models: Path) -> None:
    """Add what `train_tiny_models` leaves out."""
    from scripts import calibrate, train_likelihood, train_mask, train_mask_network

    data = make(models.parent, "data")
    for family in CALIBRATED:
        codec, output = models / family / "vqvae", models / family / "calibration.safetensors"
        flags = ["--vqvae", codec, "--data", data, "--output", output, "--crops", "4"]
        _do(calibrate, *flags, "--codes", "128", "--n-fft", "256", "--device", "cpu")
    flags = ["--data", data, "--output", models / "mask_estimator", "--preset", "tiny"]
    _do(train_mask, *flags, "--device", "cpu", "--wandb", "disabled")
    common = ["--data", data, "--preset", "tiny", "--device", "cpu", "--wandb", "disabled"]
    family = models / "linearisation"
    network = ["--vqvae", family / "vqvae", "--output", family / "neural_likelihood"]
    _do(train_likelihood, *network, *common)
    last = ["--models", models, "--output", models / "mask_network/hybrid-neural"]
    _do(train_mask_network, *last, *common)
    for state in models.rglob("state.pt"):  # large, and read by nothing here
        state.unlink()


def _song(path: Path) -> None:
    audio.save(path, sum(tone_and_noise(9, 2 * RATE).values())[None] / 2, RATE)


def _slakh(path: Path) -> None:
    for number, split in enumerate(("train", "validation", "test"), start=1):
        write_track(path / split / f"Track{number:05d}", "Bass", "Drums", seed=number)


def _slakh_without_splits(path: Path) -> None:
    for number in (1, 2, 3):
        write_track(path / f"Track{number:05d}", "Bass", "Drums", seed=number)


def _midi(path: Path) -> None:
    notes = [(40 + step, step / 4, step / 4 + 0.2) for step in range(8)]
    write_midi(path / "song.mid", (33, False, notes), (0, True, notes))


def _fixtures(path: Path) -> None:
    path.mkdir()
    codec_fixture(path)


def _hps(path: Path) -> None:
    plain = {n: value.item() if hasattr(value, "item") else value for n, value in CODEC_HPS.items()}
    write_json(path, plain)


def _original(path: Path) -> None:
    """The table of a name's stem in the original format."""
    from scripts import convert_upstream

    native = make(path.parent, "models") / "linearisation" / f"{path.stem}.safetensors"
    _do(convert_upstream, "--kind", path.stem, "--input", native, "--output", path, "--back")


def _ablation(path: Path) -> None:
    from scripts import ablate

    made = path.parent / "ablation"
    flags = ["--models", make(path.parent, "models"), "--data", make(path.parent, "data")]
    flags += ["--chunks", "2", "--candidates", "4", "--seeds", "1", "--chunk-codes", "128"]
    _do(ablate, *flags, "--output", made, "--no-parts", "--jobs", "1")
    shutil.copyfile(made / "ablation.json", path)
    shutil.rmtree(made)


def _do(script, *flags) -> None:
    assert script.main([str(flag) for flag in flags]) == 0


_MAKERS = {
    "ablation.json": _ablation,
    "again": lambda path: path.symlink_to(make(path.parent, "models").resolve()),
    "codec.pth.tar": lambda path: save_checkpoint(path, codec_tensors(), CODEC_HPS),
    "counts.npz": _original,
    "data": write_tiny_data,
    "fixtures": _fixtures,
    "groove": write_groove,
    "hps.json": _hps,
    "midi": _midi,
    "mma": lambda path: write_mma(path / "mma"),
    "models": _models,
    "plain": _slakh_without_splits,
    "runs": write_runs,
    "slakh": _slakh,
    "song.wav": _song,
    "sums.pt": _original,
}
