"""Training killed without warning and started again ends in the bits of one never stopped."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jukebox_core.checkpoints import load_meta, load_state
from jukebox_core.training.tracking import read_metrics
from jukebox_core.training.trainer import TIMINGS

ROOT = Path(__file__).resolve().parent.parent
STEPS = 25  # one more than a multiple of the steps between checkpoints


def command(kind, processes, tiny_data, tiny_models, output):
    flags = ["--data", str(tiny_data), "--output", str(output), "--preset", "tiny"]
    flags += ["--device", "cpu", "--wandb", "disabled", "--threads", "1"]
    flags += ["--train.steps", str(STEPS), "--train.checkpoint-every", "3", "--keep", "2"]
    if kind == "codec":
        script = ["scripts.train_vqvae", "--objective", "linearisation", "--vqvae.top-only"]
    else:
        codec = tiny_models / "linearisation/vqvae"
        script = ["scripts.train_prior", "--vqvae", str(codec), "--source", "bass"]
    return [sys.executable, "-m", *script, *flags, "--devices", str(processes)]


def run_and_kill(args, output, at):
    """Start, and kill all processes at once as soon as step `at` is logged."""
    process = subprocess.Popen(
        args, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    metrics, deadline = output / "metrics.csv", time.monotonic() + 120
    while not (metrics.is_file() and f"\n{at}," in metrics.read_text()):
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def weights(folder):
    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("processes", (1, 2))
@pytest.mark.parametrize("kind", ("codec", "prior"))
def test_killed_at_a_random_step(tmp_path, tiny_data, tiny_models, kind, processes):
    at = random.SystemRandom().randint(4, STEPS - 8)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    run_and_kill(command(kind, processes, tiny_data, tiny_models, parts), parts, at)
    state = load_state(parts)  # whole, whatever was being written
    assert 3 <= state["step"] < STEPS and not load_meta(parts)["finished"], at
    for output in (parts, whole):
        args = command(kind, processes, tiny_data, tiny_models, output)
        result = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stderr
    for folder in ("", "best", f"steps/{STEPS - 1:08}", f"steps/{STEPS:08}"):
        one, two = weights(parts / folder), weights(whole / folder)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), (at, folder)
    assert len(list((whole / "steps").iterdir())) == 2
    curves = [
        [row for row in read_metrics(run / "metrics.csv") if row.metric not in TIMINGS]
        for run in (parts, whole)
    ]
    assert curves[0] == curves[1], at
