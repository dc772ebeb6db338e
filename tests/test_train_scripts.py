"""The training scripts end to end, at the tiny preset."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import RATE, tone_and_noise, write_data_set
from safetensors.torch import load_file

from jukebox_core.checkpoints import (
    fingerprint,
    load_codec,
    load_meta,
    load_prior,
)
from jukebox_core.config import Bandwidths, LossConfig, from_dict
from jukebox_core.datasets.crops import CropDataset
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.mask_estimator import load_mask_estimator
from jukebox_core.files import write_json
from jukebox_core.presets import PRESETS, PresetName
from jukebox_core.training import run as run_module
from jukebox_core.training.tracking import read_metrics
from jukebox_core.training.trainer import TIMINGS
from jukebox_core.vqvae.losses import bandwidths_of
from scripts import plot_losses, train_mask, train_prior, train_vqvae

ROOT = Path(__file__).resolve().parent.parent
COMMON = ("--preset", "tiny", "--device", "cpu", "--wandb", "disabled")


def codec_flags(data, output, *more, objective="reconstruction"):
    flags = ["--objective", objective, "--data", str(data), "--output", str(output)]
    return [*flags, *COMMON, *more]


def prior_flags(codec, data, output, *more, source="bass"):
    flags = ["--vqvae", str(codec), "--source", source, "--data", str(data)]
    return [*flags, "--output", str(output), *COMMON, *more]


def mask_flags(data, output, *more):
    return ["--data", str(data), "--output", str(output), *COMMON, *more]


def error_of(capsys, status):
    assert status != 0
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and said.startswith("error: "), said
    return said


def weights(folder):
    return load_file(folder / "weights.safetensors")


def same_weights(one, two):
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_models_are_trained_and_described(tiny_models, tiny_data):
    for objective in ("reconstruction", "linearisation"):
        folder = tiny_models / objective / "vqvae"
        codec, meta = load_codec(folder), load_meta(folder)
        assert codec.config == PRESETS["tiny"].vqvae
        assert meta["kind"] == "vqvae" and meta["objective"] == objective
        assert meta["step"] == 6 and meta["finished"] and meta["preset"] == "tiny"
        assert meta["loss"] == dataclasses.asdict(LossConfig()) | {
            "spectral_stft": [2048, 256, 1536],
            "multispectral_stfts": [[2048, 240, 1200], [1024, 120, 600], [512, 50, 240]],
        }
        assert meta["alpha"] == {"bass": 0.5, "drums": 0.5} and meta["sample_rate"] == RATE
        assert meta["command"].startswith(f"python -m scripts.train_vqvae --objective {objective}")
        assert meta["versions"]["torch"] == torch.__version__
        for source in ("bass", "drums"):
            run = tiny_models / objective / f"prior_{source}"
            prior = load_prior(run, codec_fingerprint=fingerprint(folder))
            assert torch.equal(prior.embed.codebook, codec.codebook)
            meta = load_meta(run)
            assert meta["kind"] == "prior" and meta["source"] == source
            assert meta["objective"] == objective
    assert not same_weights(
        *(tiny_models / o / "vqvae" for o in ("reconstruction", "linearisation"))
    )


def test_metrics_cover_both_splits(tiny_models):
    rows = read_metrics(tiny_models / "linearisation/vqvae/metrics.csv")
    names = {
        split: {row.metric for row in rows if row.split == split}
        for split in ("train", "validation")
    }
    assert {"loss", "latent_loss", "commit_loss", "usage", "grad_norm", "lr"} <= names["train"]
    assert {"loss", "latent_loss", "recons_loss"} <= names["validation"]
    assert sorted({row.step for row in rows if row.split == "train"}) == [1, 2, 3, 4, 5, 6]
    assert sorted({row.step for row in rows if row.split == "validation"}) == [3, 6]
    # a step is 2 items of 4096 samples of 4 songs of 3 s
    assert rows[-1].epoch == pytest.approx(6 * 2 * 4096 / (4 * 3 * RATE), rel=1e-5)
    rows = read_metrics(tiny_models / "linearisation/prior_bass/metrics.csv")
    assert {"loss", "bits_per_code"} <= {row.metric for row in rows}


def test_bandwidths_are_measured_on_the_training_crops(tiny_models, tiny_data):
    manifest = load_manifest(tiny_data)
    items = CropDataset(manifest.split("train"), "sources", 4096, manifest.alpha)
    batches = (items[index] for index in range(-(-items.samples // 4096)))
    expected = bandwidths_of(batches, (2048, 256, 1536))
    stored = from_dict(Bandwidths, load_meta(tiny_models / "linearisation/vqvae")["bandwidths"])
    for name, value in dataclasses.asdict(expected).items():
        assert getattr(stored, name) == pytest.approx(value, rel=1e-5)


def test_a_finished_run_is_left_alone(tiny_models, tiny_data, capsys):
    for main, folder, flags in (
        (train_vqvae.main, "vqvae", lambda run: codec_flags(tiny_data, run)),
        (
            train_prior.main,
            "prior_bass",
            lambda run: prior_flags(run.parent / "vqvae", tiny_data, run),
        ),
    ):
        run = tiny_models / "reconstruction" / folder
        before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
        (run / ".lock").touch()  # as a process leaves it that is killed at its very end
        assert main(flags(run)) == 0
        assert "is already finished" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before


@pytest.mark.parametrize("objective", ("reconstruction", "linearisation"))
def test_a_longer_run_is_a_continued_shorter_one(tmp_path, tiny_data, tiny_models, objective):
    """The order of the data, the codebook and its restarts, the optimiser: all go on."""
    run = tmp_path / "vqvae"
    flags = codec_flags(tiny_data, run, objective=objective)
    assert train_vqvae.main([*flags, "--train.steps", "4"]) == 0
    assert load_meta(run)["step"] == 4
    assert train_vqvae.main(flags) == 0
    assert same_weights(run, tiny_models / objective / "vqvae")


def test_a_terminated_process_continues_bit_identically(tmp_path, tiny_data):
    """SIGTERM at any moment: a checkpoint, status 143, one line; then as if never stopped."""
    more = ("--train.steps", "24", "--train.log-every", "2", "--train.checkpoint-every", "1000")
    more += ("--train.validate-every", "1000", "--threads", "1", "--vqvae.top-only")
    flags = codec_flags(tiny_data, tmp_path / "parts", *more)
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.train_vqvae", *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "parts/metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and "\n4," in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.startswith("stopped by SIGTERM at step ") and err.count("\n") == 1
    step = load_meta(tmp_path / "parts")["step"]
    assert 4 <= step < 24 and f"step {step};" in err
    assert train_vqvae.main(flags) == 0
    assert train_vqvae.main(codec_flags(tiny_data, tmp_path / "whole", *more)) == 0
    assert same_weights(tmp_path / "parts", tmp_path / "whole")
    rows = [
        [r for r in read_metrics(tmp_path / run / "metrics.csv") if r.metric not in TIMINGS]
        for run in ("parts", "whole")
    ]
    assert rows[0] == rows[1]


def test_flags_of_another_run_are_refused(tiny_models, tiny_data, capsys):
    run = tiny_models / "reconstruction/vqvae"
    flags = codec_flags(tiny_data, run, "--vqvae.l-bins", "64", "--optim.lr", "1e-4")
    said = error_of(capsys, train_vqvae.main(flags))
    assert "holds another run" in said
    assert "config.l_bins is 32 there, now 64" in said
    assert "optim.lr is 0.0003 there, now 0.0001" in said
    said = error_of(capsys, train_vqvae.main(codec_flags(tiny_data, run, "--seed", "1")))
    assert "train.seed is 0 there, now 1" in said


def test_every_configuration_field_is_a_flag(tmp_path, tiny_data):
    flags = codec_flags(tiny_data, tmp_path, "--seed", "7", "--train.steps", "1", "--vqvae.l-bins")
    flags += ["16", "--loss.commit", "0.5", "--optim.betas", "0.8", "0.9", "--vqvae.top-only"]
    flags += ["--vqvae.downs-t", "1", "2", "--train-on", "both", "--train.batch-size", "6"]
    flags += ["--loss.multispectral-stfts", "512", "50", "240", "256", "30", "120"]
    assert train_vqvae.main(flags) == 0
    meta = load_meta(tmp_path)
    assert meta["config"]["l_bins"] == 16 and meta["config"]["downs_t"] == [1, 2]
    assert meta["config"]["top_only"] and meta["config"]["width"] == 8
    assert meta["loss"]["commit"] == 0.5 and len(meta["loss"]["multispectral_stfts"]) == 2
    assert meta["optim"]["betas"] == [0.8, 0.9]
    assert meta["train"]["seed"] == meta["seed"] == 7 and meta["train_on"] == "both"
    assert load_codec(tmp_path).levels == (1,)


def test_presets_are_defaults_and_flags_override_them(capsys):
    assert get_args(PresetName) == tuple(PRESETS)
    for words, steps in (
        (["--preset", "t4"], 19_160),
        (["--x", "y", "--preset=tiny"], 6),
        ([], 500),
    ):
        assert train_vqvae.main(["--help", *words]) == 0
        assert f"Optimiser steps. (default: {steps})" in capsys.readouterr().out


def test_the_prior_takes_its_codes_from_the_codec(tmp_path, tiny_data, capsys):
    codec = tmp_path / "vqvae"
    more = ("--vqvae.l-bins", "24", "--vqvae.emb-width", "8", "--train.steps", "1")
    assert train_vqvae.main(codec_flags(tiny_data, codec, *more)) == 0
    flags = prior_flags(codec, tiny_data, tmp_path / "prior", "--train.steps", "1")
    assert train_prior.main(flags) == 0
    config = load_prior(tmp_path / "prior", codec_fingerprint=fingerprint(codec)).config
    assert config == dataclasses.replace(PRESETS["tiny"].prior, l_bins=24, emb_width=8)
    capsys.readouterr()
    # explicitly what the preset says is as explicit as any other number
    for number in ("32", "64"):
        said = error_of(capsys, train_prior.main([*flags, "--prior.l-bins", number]))
        assert f"--prior.l-bins is {number}, the codec" in said and "has 24" in said


def test_codes_come_from_where_fewer_samples_are_encoded(tmp_path, tiny_data, tiny_models):
    codec = tiny_models / "linearisation/vqvae"
    train = PRESETS["tiny"].prior_train
    songs = [track.samples for track in load_manifest(tiny_data).split("train")]
    enough = -(-2 * sum(songs) // (train.batch_size * train.crop))  # two shifts of every song
    for began, expected in ((enough - 1, "audio"), (enough, "cache")):
        run = tmp_path / expected
        # As it began, also if it would begin otherwise today.
        for steps, seconds in ((began, "0.01"), (3 * enough, "0.02")):
            more = ("--train.steps", str(steps), "--max-seconds", seconds)
            assert train_prior.main(prior_flags(codec, tiny_data, run, *more)) == 0
            assert load_meta(run)["codes_from"] == expected


def test_codes_from_audio_and_from_the_cache_train_the_same_kind_of_prior(
    tmp_path, tiny_data, tiny_models
):
    codec = tiny_models / "reconstruction/vqvae"
    losses = {}
    for source in ("audio", "cache"):
        run = tmp_path / source
        more = ("--codes-from", source, "--train.steps", "20", "--optim.warmup-steps", "0")
        more += ("--optim.lr", "3e-3", "--prior.embedding", "table", "--train.log-every", "20")
        assert train_prior.main(prior_flags(codec, tiny_data, run, *more)) == 0
        assert load_meta(run)["codes_from"] == source
        losses[source] = load_meta(run)["metrics"]["validation"]["loss"]
    assert losses["audio"] < 4.9 and losses["cache"] < 4.9
    assert losses["audio"] == pytest.approx(losses["cache"], rel=0.1)


def test_a_prior_resumes_and_a_retrained_codec_is_noticed(tmp_path, tiny_data, tiny_models, capsys):
    run = tmp_path / "prior"
    family = tiny_models / "linearisation"
    flags = prior_flags(family / "vqvae", tiny_data, run, source="drums")
    assert train_prior.main([*flags, "--train.steps", "3"]) == 0
    capsys.readouterr()
    other = prior_flags(tiny_models / "reconstruction/vqvae", tiny_data, run, source="drums")
    assert "vqvae_fingerprint is '" in error_of(capsys, train_prior.main(other))
    assert train_prior.main(flags) == 0
    assert same_weights(run, family / "prior_drums")


def test_a_run_from_before_the_effects_continues_without_them(tmp_path, tiny_data, capsys):
    run = tmp_path / "mask"
    assert train_mask.main(mask_flags(tiny_data, run, "--train.steps", "4")) == 0
    meta = load_meta(run)
    del meta["augmentation"]["production"]
    write_json(run / "meta.json", meta)
    capsys.readouterr()
    other = mask_flags(tiny_data, run, "--production", "0.5")
    assert "augmentation.production is None there, now 0.5" in error_of(
        capsys, train_mask.main(other)
    )
    assert train_mask.main(mask_flags(tiny_data, run)) == 0
    assert load_meta(run)["step"] == 6


def test_a_run_with_effects_resumes_bit_for_bit_and_not_without_them(tmp_path, tiny_data, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ("--production", "0.7", "--train.workers", "1")
    assert train_vqvae.main(codec_flags(tiny_data, whole, *flags)) == 0
    assert train_vqvae.main(codec_flags(tiny_data, parts, *flags, "--train.steps", "3")) == 0
    capsys.readouterr()
    message = error_of(capsys, train_vqvae.main(codec_flags(tiny_data, parts)))
    assert "augmentation.production is 0.7 there, now 0.0" in message
    assert train_vqvae.main(codec_flags(tiny_data, parts, "--production", "0.7")) == 0
    assert same_weights(whole, parts)
    refused = codec_flags(tiny_data, tmp_path / "new", "--production", "1.5")
    assert "production is 1.5" in error_of(capsys, train_vqvae.main(refused))


def test_a_mask_estimator_is_trained_and_resumes(tmp_path, tiny_data, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_mask.main(mask_flags(tiny_data, whole)) == 0
    meta = load_meta(whole)
    assert meta["kind"] == "mask_estimator" and meta["step"] == 6 and meta["finished"]
    assert meta["pairing"] == "random"
    assert meta["augmentation"] == {"gain_db": 6.0, "production": 0.0}
    estimator = load_mask_estimator(whole)
    assert estimator.config == PRESETS["tiny"].mask
    assert estimator.alpha == load_manifest(tiny_data).alpha
    rows = read_metrics(whole / "metrics.csv")
    for split in ("train", "validation"):
        names = {row.metric for row in rows if row.split == split}
        assert {"loss", "sdr_bass", "sdr_drums"} <= names
    assert train_mask.main(mask_flags(tiny_data, parts, "--train.steps", "4")) == 0
    assert load_meta(parts)["step"] == 4
    assert train_mask.main(mask_flags(tiny_data, parts)) == 0
    assert same_weights(whole, parts)
    capsys.readouterr()
    assert train_mask.main(mask_flags(tiny_data, parts)) == 0
    assert "is already finished" in capsys.readouterr().out
    flags = mask_flags(tiny_data, parts, "--mask.hidden", "8", "--pairing", "song")
    said = error_of(capsys, train_mask.main(flags))
    assert "config.hidden is 16 there, now 8" in said
    assert "pairing is 'random' there, now 'song'" in said


def test_a_mask_estimator_learns_and_starts_from_the_features(tmp_path, tiny_data):
    more = ("--train.steps", "60", "--optim.lr", "1e-2", "--optim.warmup-steps", "0")
    more += ("--optim.ema-decay", "0", "--train.validate-every", "60")
    assert train_mask.main(mask_flags(tiny_data, tmp_path, *more)) == 0
    first = [r.value for r in read_metrics(tmp_path / "metrics.csv") if r.metric == "loss"][0]
    assert load_meta(tmp_path)["metrics"]["validation"]["loss"] < first - 5
    estimator = load_mask_estimator(tmp_path)
    assert estimator.mean.std() > 0.1 and not torch.equal(estimator.scale, torch.ones(129))


LAUNCHERS = {
    "devices": (("-m",), ("--devices", "2")),
    "torchrun": (("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"), ()),
    "sharded": (("-m",), ("--devices", "2", "--shard-optimizer")),
    "mpiexec": (("-m",), ()),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("kind", ("codec", "prior"))
def test_two_processes_train_as_one(tmp_path, tiny_data, tiny_models, kind, launcher):
    """The same items per step, averaged gradients, one codebook: the same but for rounding."""
    before, more = LAUNCHERS[launcher]
    more += ("--threads", "1")  # rounding, too, depends on their number
    mpi = ()
    if launcher == "mpiexec":
        pytest.importorskip("mpi4py")
        mpi = (str(Path(sys.executable).with_name("mpiexec")), "-n", "2")
    family = tiny_models / "linearisation"
    if kind == "codec":
        script, one = "train_vqvae", family / "vqvae"
        flags = codec_flags(tiny_data, tmp_path / "run", *more, objective="linearisation")
    else:
        script, one = "train_prior", family / "prior_bass"
        flags = prior_flags(family / "vqvae", tiny_data, tmp_path / "run", *more)
    command = [*mpi, sys.executable, *before, f"scripts.{script}", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("step 6") == 1, "the first process alone speaks"
    expected, found = weights(one), weights(tmp_path / "run")
    for name in expected:
        # Codes are chosen among ties here (the mean of two codes is as far from both), which
        # rounding decides; that the codebooks are the same is tested in test_codebook_ranks.py.
        # Where a gradient is nearly zero, rounding decides a part of AdamW's step (3e-4) as well.
        if not name.startswith("bottlenecks"):
            assert torch.allclose(expected[name], found[name], atol=5e-5), name
    rows = [
        {
            (r.step, r.split): r.value
            for r in read_metrics(run / "metrics.csv")
            if r.metric == "loss"
        }
        for run in (one, tmp_path / "run")
    ]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)
    # Alone again, whatever kept the optimiser's state: it goes on.
    main = {"codec": train_vqvae.main, "prior": train_prior.main}[kind]
    alone = [flag for flag in flags if flag not in ("--devices", "2", "--shard-optimizer")]
    assert main([*alone, "--train.steps", "7"]) == 0
    assert load_meta(tmp_path / "run")["step"] == 7


def test_validation_falls_back_to_held_out_songs(tmp_path):
    songs = {f"Track{n:05d}": ("train", tone_and_noise(n, RATE)) for n in range(3)}
    data = write_data_set(tmp_path / "data", songs)
    assert train_vqvae.main(codec_flags(data, tmp_path / "run", "--train.steps", "1")) == 0
    meta = load_meta(tmp_path / "run")
    assert meta["data"]["train_tracks"] == 2 and meta["data"]["validation_tracks"] == 1
    assert "validation" in meta["metrics"]


def test_short_songs_are_reported(tmp_path, capsys):
    songs = {
        f"Track{n:05d}": (split, tone_and_noise(n, length))
        for n, (split, length) in enumerate(
            [("train", RATE), ("train", 3000), ("validation", 2000)], start=1
        )
    }
    data = write_data_set(tmp_path / "data", songs)
    flags = codec_flags(data, tmp_path / "run", "--train.steps", "1")
    assert train_vqvae.main(flags) == 0
    said = capsys.readouterr()
    assert "left out, shorter than a crop of 4096: Track00002\n" in said.out
    assert said.err.startswith("warning: nothing to validate on (no song is as long")
    assert "validation" not in load_meta(tmp_path / "run")["metrics"]
    flags = codec_flags(data, tmp_path / "other", "--train.crop", "32768")
    assert "longest has 22050; choose a shorter crop" in error_of(capsys, train_vqvae.main(flags))


def test_linearisation_needs_two_sources(tmp_path, capsys):
    sources = {"bass": tone_and_noise(1, RATE)["bass"]}
    data = write_data_set(tmp_path / "data", {"Track00001": ("train", sources)})
    flags = codec_flags(data, tmp_path / "run", objective="linearisation")
    assert "linearisation mixes two sources or more" in error_of(capsys, train_vqvae.main(flags))


def test_a_time_budget_stops_and_counts_as_finished(tmp_path, tiny_data, capsys):
    flags = codec_flags(tiny_data, tmp_path, "--max-seconds", "0.5", "--train.steps", "100000")
    flags += ["--train.validate-every", "100000", "--train.checkpoint-every", "100000"]
    began = time.monotonic()
    assert train_vqvae.main(flags) == 0
    assert time.monotonic() - began < 30
    meta = load_meta(tmp_path)
    assert 0 < meta["step"] < 100_000 and meta["finished"] and meta["elapsed"] >= 0.5
    assert meta["metrics"]["validation"]["loss"] > 0
    capsys.readouterr()
    assert train_vqvae.main(flags) == 0
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ("png", "svg"))
def test_loss_figures(tiny_models, tmp_path, capsys, suffix):
    flags = ["--models", str(tiny_models), "--output", str(tmp_path), "--format", suffix]
    assert plot_losses.main(flags) == 0
    names = {
        f"{kind}_loss_{split}.{suffix}"
        for kind in ("vqvae", "prior")
        for split in ("train", "test")
    }
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(path.stat().st_size > 2000 for path in tmp_path.iterdir())


def test_loss_figures_show_the_logged_losses(tiny_models):
    curves = plot_losses.find_curves(tiny_models)
    assert {kind for kind, _ in curves} == {"vqvae", "prior"} and len(curves) == 6
    rows = curves["prior", "LASS: bass"]
    points = plot_losses.losses({"x": rows}, "validation")["x"]
    logged = [r for r in rows if r.metric == "loss" and r.split == "validation"]
    assert points == [(r.epoch, r.value) for r in logged] and len(points) == 2


def test_no_runs_no_figures(tmp_path, capsys):
    said = error_of(capsys, plot_losses.main(["--models", str(tmp_path)]))
    assert "has no metrics.csv" in said


def test_a_batch_is_computed_in_parts_that_fit(tmp_path, tiny_data, monkeypatch):
    """Gradients add up; a run that goes on keeps its parts, whatever fits by then."""

    def run(name, *more):
        flags = codec_flags(tiny_data, tmp_path / name, *more)
        assert train_vqvae.main(flags) == 0
        return load_meta(tmp_path / name)["parts"]

    assert run("roomy", "--batch", "auto", "--train.steps", "1") == 1
    assert run("two", "--batch", "2") == 2
    monkeypatch.setattr(run_module, "crops_that_fit", lambda *_: 3)
    assert run("auto", "--batch", "auto", "--train.steps", "4") == 2
    monkeypatch.setattr(run_module, "crops_that_fit", lambda *_: 100)
    assert run("auto", "--batch", "auto") == 2
    assert same_weights(tmp_path / "two", tmp_path / "auto")
