"""Training that diverges is an error, and weights that are not finite are used by no program."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_trainer import OPTIM, TRAIN, Noise, Toy, toy_run

from jukebox_core.checkpoints import load_codec, load_meta, load_prior
from jukebox_core.datasets.batches import Batches
from jukebox_core.evaluation.mask_estimator import load_mask_estimator
from jukebox_core.separation.calibration import Calibration, load_calibration, save_calibration
from jukebox_core.training.distributed import make_fabric
from jukebox_core.training.trainer import Trainer
from scripts import calibrate, count_sums, precompute_sums, train_mask, train_prior, train_vqvae

COMMON = ("--preset", "tiny", "--device", "cpu", "--wandb", "disabled")


def refused(capsys, main, flags):
    """The error line of a program that ends with status 1; warnings may come before it."""
    capsys.readouterr()
    assert main([str(flag) for flag in flags]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert all(line.startswith("warning: ") for line in lines[:-1])
    return lines[-1]


def codec_flags(data, output, *more):
    flags = ["--objective", "reconstruction", "--data", data, "--output", output]
    return [*flags, *COMMON, "--optim.lr", "1e30", *more]


@pytest.mark.parametrize(
    "more",
    [
        ("--train.steps", "2"),
        ("--train.steps", "2", "--train.checkpoint-every", "1"),
        ("--train.steps", "1", "--train.validate-batches", "0"),
        ("--train.steps", "3", "--train.validate-batches", "0", "--optim.ema-decay", "0"),
        ("--train.steps", "2", "--precision", "bf16-mixed"),
        ("--train.steps", "3", "--loss.multispectral", "3e38", "--optim.lr", "1e-3"),
        ("--train.steps", "12", "--train.checkpoint-every", "100"),
    ],
)
def test_a_codec_that_diverges(tmp_path, tiny_data, capsys, more):
    said = refused(capsys, train_vqvae.main, codec_flags(tiny_data, tmp_path / "run", *more))
    assert "finite" in said or "loss of step" in said
    assert not (tmp_path / "run/weights.safetensors").exists()
    meta = load_meta(tmp_path / "run")
    assert meta["step"] == 0 and not meta["finished"]
    with pytest.raises(FileNotFoundError):
        load_codec(tmp_path / "run")


def test_a_prior_and_a_mask_estimator_that_diverge(tmp_path, tiny_data, tiny_models, capsys):
    codec = tiny_models / "reconstruction/vqvae"
    more = (*COMMON, "--optim.lr", "1e38", "--optim.warmup-steps", "0", "--train.steps", "2")
    flags = ["--data", tiny_data, "--output", tmp_path, *more]
    refused(capsys, train_prior.main, ["--vqvae", codec, "--source", "bass", *flags])
    refused(capsys, train_mask.main, flags)
    assert not list(tmp_path.glob("*.safetensors"))


class Explodes(Toy):
    """Its weight becomes infinite, or so large that the loss is, before a call."""

    def __init__(self, at, value):
        super().__init__()
        self._at, self._value = at, value

    def forward(self, batch, generator=None):
        if self.training and self.calls + 1 == self._at:
            with torch.no_grad():
                self.linear.weight.fill_(self._value)
        return super().forward(batch, generator)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("at", [6, 8])
def test_the_last_finite_checkpoint_stays(tmp_path, value, decay, at):
    train = dataclasses.replace(TRAIN, checkpoint_every=1, validate_batches=0)
    optim = dataclasses.replace(OPTIM, ema_decay=decay)
    with pytest.raises(ValueError, match="finite") as error:
        toy_run(tmp_path, train, optim, toy=Explodes(at, value))
    assert f"({tmp_path} keeps the last checkpoint)" in str(error.value)
    meta = load_meta(tmp_path)
    assert meta["step"] == at - 1 and not meta["finished"]
    weights = load_file(tmp_path / "weights.safetensors")
    assert all(x.isfinite().all() and x.abs().max() < 1e4 for x in weights.values())
    # The same command goes on from there, and ends where one ends that never exploded.
    toy_run(tmp_path, train, optim)
    assert load_meta(tmp_path)["finished"]


def test_a_run_that_skips_all_its_steps(tmp_path):
    with pytest.raises(ValueError, match="none of the 8 steps"):
        toy_run(tmp_path, toy=Toy(nan_at=range(100)))
    assert not (tmp_path / "meta.json").exists()


def test_a_last_loss_that_is_not_finite(tmp_path):
    with pytest.raises(ValueError, match="loss of the last step, 8, is not finite"):
        toy_run(tmp_path, toy=Toy(nan_at=(8,)))
    assert load_meta(tmp_path)["step"] == 5 and not load_meta(tmp_path)["finished"]


def test_buffers_are_looked_at(tmp_path):
    class Buffer(Toy):
        def forward(self, batch, generator=None):
            output = super().forward(batch, generator)
            self.seen.fill_(math.nan)
            return output

    with pytest.raises(ValueError, match="tensor seen is not finite at step 5"):
        toy_run(tmp_path, toy=Buffer())
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_validation_loss_that_is_not_finite(tmp_path):
    toy = Toy()
    trainer = Trainer(make_fabric("cpu"), OPTIM, TRAIN, tmp_path, meta={"kind": "toy"})
    validation = Batches(Noise(scale=1e30), 4)
    with pytest.raises(ValueError, match="validation loss of step 4 is inf"):
        trainer.fit(toy, toy, Batches(Noise(), 4), validation, samples_per_epoch=640)
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize("part", ["objective", "average"])
def test_a_state_that_is_not_finite_is_not_resumed(tmp_path, part):
    toy_run(tmp_path, dataclasses.replace(TRAIN, steps=4))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    tensors = state[part]
    tensors[0 if part == "average" else "linear.bias"][0] = math.nan
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state.pt: tensor linear\.\w+ has NaN"):
        toy_run(tmp_path)


def broken(source, folder, tensor, value):
    """A copy of a run with one value of a tensor replaced."""
    folder.mkdir()
    shutil.copy(source / "meta.json", folder)
    weights = load_file(source / "weights.safetensors")
    weights[tensor].view(-1)[-1] = value
    save_file(weights, folder / "weights.safetensors")
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["codebook", "ema_sum", "ema_count"])
def test_programs_refuse_a_codec_that_is_not_finite(
    tmp_path, tiny_data, tiny_models, capsys, name, value
):
    tensor = f"bottlenecks.1.{name}"
    codec = broken(tiny_models / "linearisation/vqvae", tmp_path / "vqvae", tensor, value)
    with pytest.raises(ValueError, match=f"weights.safetensors: tensor {tensor} has NaN"):
        load_codec(codec)
    if name == "codebook":
        output = ["--output", tmp_path / "out.safetensors"]
        programs = {
            train_prior.main: ["--source", "bass", "--output", tmp_path / "prior", *COMMON],
            count_sums.main: [*output, "--iterations", "2"],
            calibrate.main: [*output, "--crops", "1"],
        }
        for main, flags in programs.items():
            said = refused(capsys, main, ["--vqvae", codec, "--data", tiny_data, *flags])
            assert tensor in said and str(codec) in said
        assert tensor in refused(capsys, precompute_sums.main, ["--vqvae", codec, *output])
        assert {path.name for path in tmp_path.iterdir()} <= {"vqvae", "out.safetensors.spool"}


def test_loaders_refuse_priors_and_mask_estimators_that_are_not_finite(
    tmp_path, tiny_data, tiny_models
):
    prior = broken(
        tiny_models / "linearisation/prior_bass", tmp_path / "prior", "head.weight", math.inf
    )
    with pytest.raises(ValueError, match="prior/weights.safetensors: tensor head.weight has NaN"):
        load_prior(prior)
    flags = ["--data", str(tiny_data), "--output", str(tmp_path / "whole"), *COMMON]
    assert train_mask.main([*flags, "--train.steps", "1"]) == 0
    mask = broken(tmp_path / "whole", tmp_path / "mask", "norm_in.bias", math.nan)
    with pytest.raises(ValueError, match="mask/weights.safetensors: tensor norm_in.bias has NaN"):
        load_mask_estimator(mask)


def test_a_finished_run_that_is_not_finite_is_no_success(tmp_path, tiny_data, tiny_models, capsys):
    """Whoever wrote it: an earlier version did."""
    tensor = "decoders.1.out.bias"
    run = broken(tiny_models / "reconstruction/vqvae", tmp_path / "run", tensor, math.nan)
    flags = ["--objective", "reconstruction", "--data", tiny_data, "--output", run, *COMMON]
    assert tensor in refused(capsys, train_vqvae.main, flags)


def test_meta_data_that_ask_for_more_than_the_weights_hold(tmp_path, tiny_models):
    """Before a codec of that size is made."""
    run = tmp_path / "vqvae"
    shutil.copytree(tiny_models / "reconstruction/vqvae", run)
    meta = json.loads((run / "meta.json").read_text())
    meta["config"]["l_bins"] = 2_000_000
    (run / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"codebook is \(32, 16\), expected \(20000"):
        load_codec(run)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_a_calibration_is_finite(tmp_path, value):
    good = torch.ones(5, dtype=torch.float64)
    bad = good.clone()
    bad[2] = value
    for gain, floor in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="bass has negative, NaN or infinite values"):
            Calibration({"bass": gain}, {"bass": floor})
    path = tmp_path / "calibration.safetensors"
    save_calibration(path, Calibration({"bass": good}, {"bass": good}), "abc", 22_050)
    tensors = load_file(path) | {"bass.floor": bad}
    about = {"kind": "calibration", "codec": "abc", "sample_rate": "22050"}
    save_file(tensors, path, metadata=about)
    with pytest.raises(ValueError, match=f"{path}: the floor of bass has negative, NaN"):
        load_calibration(path)
