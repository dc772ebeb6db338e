"""The training loop: its formulas, and that interrupted runs end as uninterrupted ones."""

import dataclasses
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from jukebox_core.checkpoints import (
    Snapshots,
    load_meta,
    load_state,
    open_run,
    save_meta,
    save_state,
)
from jukebox_core.config import OptimConfig, TrainConfig
from jukebox_core.datasets.batches import Batches
from jukebox_core.training.distributed import make_fabric, seed_everything
from jukebox_core.training.optim import Float32Muon, WeightAverage, build_optimizer, learning_rate
from jukebox_core.training.tracking import CsvTracker, Tracker, read_metrics
from jukebox_core.training.trainer import TIMINGS, CollapseWatch, Trainer
from jukebox_core.vqvae.objective import ObjectiveOutput

TRAIN = TrainConfig(
    steps=8,
    batch_size=4,
    crop=16,
    log_every=3,
    validate_every=4,
    validate_batches=2,
    checkpoint_every=5,
)
OPTIM = OptimConfig(lr=1e-2, warmup_steps=4, decay_steps=3, weight_decay=0.1, ema_decay=0.9)


class Noise:
    """Items [1, crop] of noise, by index alone."""

    rows = 1

    def __init__(self, crop=16, scale=1.0):
        self._crop = crop
        self._scale = scale

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return self._scale * torch.randn(1, self._crop, generator=generator)


class Toy(nn.Module):
    """Squared error of a linear map, with dropout, a buffer, and NaN at chosen calls."""

    def __init__(self, nan_at=()):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0
        self.nan_at = nan_at

    def forward(self, batch, generator=None):
        if self.training:
            self.calls += 1
            self.seen += batch.sum() + torch.randn((), generator=generator)
        loss = (self.linear(self.dropout(batch)) - batch).square().mean()
        if self.training and self.calls in self.nan_at:
            loss = loss * math.nan
            self.seen += math.nan
        return ObjectiveOutput(loss, {"twice": 2 * loss.detach()})


class ToyOfMatrices(Toy):
    """A toy that Muon can train."""

    def hidden_matrices(self):
        return [self.linear.weight]


class Recorder(Tracker):
    """Keeps what is logged; sends a signal when the training metrics of a step come."""

    def __init__(self, parts=(), kill_at=None, number=signal.SIGTERM):
        super().__init__(parts)
        self.rows, self.warnings = [], []
        self._kill_at = kill_at
        self._number = number

    def log(self, step, epoch, split, metrics):
        super().log(step, epoch, split, metrics)
        self.rows.append((step, epoch, split, dict(metrics)))
        if (step, split) == (self._kill_at, "train"):
            os.kill(os.getpid(), self._number)

    def warn(self, message):
        self.warnings.append(message)


def toy_run(folder, train=TRAIN, optim=OPTIM, tracker=None, toy=None, **kwargs):
    seed_everything(0)
    toy = toy or Toy()
    trainer = Trainer(
        make_fabric("cpu"), optim, train, folder, meta={"kind": "toy"}, tracker=tracker, **kwargs
    )
    batches = Batches(Noise(), train.batch_size)
    result = trainer.fit(toy, toy, batches, batches, samples_per_epoch=640)
    return toy, result


def assert_same_run(one, two):
    """The same weights, the same training state (but for the time it took), bit by bit."""
    a, b = (load_file(folder / "weights.safetensors") for folder in (one, two))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (load_state(folder) for folder in (one, two))
    for state in (a, b):
        del state["elapsed"]
        for metrics in state["metrics"].values():
            for name in TIMINGS:
                metrics.pop(name, None)
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value == b[name], name


def flat(value, name=""):
    """{path: leaf} of nested containers, tensors as lists."""
    if isinstance(value, dict):
        return {
            k: v for key, inner in value.items() for k, v in flat(inner, f"{name}/{key}").items()
        }
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), name)
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value}


@pytest.mark.parametrize("stop_at", (3, 4, 6))
@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_interrupted_and_resumed_is_bit_identical(tmp_path, stop_at, number, capsys):
    train = dataclasses.replace(TRAIN, log_every=1, checkpoint_every=100)
    toy_run(tmp_path / "whole", train)
    with pytest.raises(SystemExit) as stopped:
        toy_run(tmp_path / "parts", train, tracker=Recorder(kill_at=stop_at, number=number))
    assert stopped.value.code == 128 + number
    message = capsys.readouterr().err
    # the signal comes while the step is logged, so the next step is the last
    assert message.count("\n") == 1 and f"at step {stop_at + 1}" in message
    assert load_meta(tmp_path / "parts")["step"] == stop_at + 1
    assert not load_meta(tmp_path / "parts")["finished"]
    _, result = toy_run(tmp_path / "parts", train)
    assert result.step == 8 and load_meta(tmp_path / "parts")["finished"]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_killed_between_checkpoints_is_bit_identical_with_the_same_log(tmp_path):
    """A kill without warning: what came after the last checkpoint is made again."""

    class Killed(Exception):
        pass

    class Kill(Recorder):
        def log(self, step, epoch, split, metrics):
            super().log(step, epoch, split, metrics)
            if step == 6:
                raise Killed

    train = dataclasses.replace(TRAIN, log_every=2)
    toy_run(tmp_path / "whole", train, tracker=Tracker([CsvTracker(tmp_path / "whole")]))
    with pytest.raises(Killed):
        toy_run(tmp_path / "parts", train, tracker=Kill([CsvTracker(tmp_path / "parts")]))
    assert load_meta(tmp_path / "parts")["step"] == 5
    toy_run(tmp_path / "parts", train, tracker=Tracker([CsvTracker(tmp_path / "parts")]))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    rows = [
        [row for row in read_metrics(tmp_path / run / "metrics.csv") if row[3] not in TIMINGS]
        for run in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


def test_training_equals_a_loop_written_by_hand(tmp_path):
    """AdamW with clipping, schedule, averaging, buffers as they are, validation in eval mode."""
    recorder = Recorder()
    train = dataclasses.replace(TRAIN, log_every=1)
    trained, _ = toy_run(tmp_path, train, tracker=recorder)

    seed_everything(0)
    toy = Toy()
    own = torch.Generator().manual_seed(0)
    groups = [
        {"params": [toy.linear.weight], "weight_decay": 0.1},
        {"params": [toy.linear.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)
    average = [p.detach().clone() for p in toy.parameters()]
    noise = Noise()
    for step in range(8):
        warm = min(1, (step + 1) / 4)
        decay = 0.5 * (1 - math.cos(math.pi * min(1, (8 - step) / 3)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * warm * decay
        batch = torch.cat([noise[index] for index in range(4 * step, 4 * step + 4)])
        loss = toy(batch, own).loss
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(toy.parameters(), 1.0)
        optimizer.step()
        logged = next(r[3] for r in recorder.rows if r[0] == step + 1 and r[2] == "train")
        assert logged["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert logged["twice"] == pytest.approx(2 * loss.item(), rel=1e-6)
        assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
        assert logged["lr"] == pytest.approx(1e-2 * warm * decay, rel=1e-12)
        rate = min(0.9, (1 + step) / (10 + step))
        average = [
            rate * a + (1 - rate) * p.detach()
            for a, p in zip(average, toy.parameters(), strict=True)
        ]
    stored = load_file(tmp_path / "weights.safetensors")
    assert torch.allclose(stored["linear.weight"], average[0], atol=1e-7)
    assert torch.allclose(stored["linear.bias"], average[1], atol=1e-7)
    assert torch.allclose(stored["seen"], toy.seen, rtol=1e-6)
    assert torch.allclose(trained.linear.weight, toy.linear.weight, atol=1e-7)

    with torch.no_grad():
        for parameter, value in zip(toy.parameters(), average, strict=True):
            parameter.copy_(value)
        toy.eval()
        losses = [
            toy(torch.cat([noise[index] for index in range(4 * b, 4 * b + 4)])).loss.item()
            for b in range(2)
        ]
    validated = [r for r in recorder.rows if r[2] == "validation"]
    assert [r[0] for r in validated] == [4, 8]
    assert validated[-1][3]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert validated[-1][1] == pytest.approx(8 * 4 * 16 / 640)


def test_logged_metrics_are_means_since_the_last_log(tmp_path):
    every, thirds = Recorder(), Recorder()
    toy_run(tmp_path / "a", dataclasses.replace(TRAIN, log_every=1), tracker=every)
    toy_run(tmp_path / "b", tracker=thirds)
    losses = [r[3]["loss"] for r in every.rows if r[2] == "train"]
    means = [r[3]["loss"] for r in thirds.rows if r[2] == "train"]
    expected = [np.mean(losses[:3]), np.mean(losses[3:6]), np.mean(losses[6:])]
    assert means == pytest.approx(expected, rel=1e-6)


def test_accumulated_batches_give_the_same_gradient(tmp_path):
    class Plain(Toy):
        def forward(self, batch, generator=None):
            loss = (self.linear(batch) - batch).square().mean()
            return ObjectiveOutput(loss, {})

    weights = []
    for accumulate in (1, 2):
        seed_everything(0)
        toy = Plain()
        trainer = Trainer(make_fabric("cpu"), OPTIM, TRAIN, tmp_path / str(accumulate), meta={})
        batches = Batches(Noise(), 4, accumulate=accumulate)
        trainer.fit(toy, toy, batches, samples_per_epoch=640)
        weights.append(toy.linear.weight.detach())
    assert torch.allclose(*weights, atol=1e-6)
    assert not torch.equal(weights[0], Plain().linear.weight)


@pytest.mark.parametrize("step", (0, 3, 50, 99, 100, 499, 500, 750, 999))
def test_learning_rate_schedule(step):
    config = OptimConfig(lr=2.0, warmup_steps=100, decay_steps=500)
    expected = 2.0 * min(1, (step + 1) / 100)
    if step > 500:
        expected *= (1 + math.cos(math.pi * (step - 500) / 500)) / 2
    assert learning_rate(config, step, 1000) == pytest.approx(expected)
    constant = dataclasses.replace(config, decay_steps=0, warmup_steps=0)
    assert learning_rate(constant, step, 1000) == 2.0


def test_a_time_budget_moves_the_decay_forward():
    config = OptimConfig(lr=1.0, warmup_steps=0, decay_steps=400)
    assert learning_rate(config, 10, 1000, position=500) == 1.0
    assert learning_rate(config, 10, 1000, position=800) == pytest.approx(0.5)
    assert learning_rate(config, 900, 1000, position=800) == learning_rate(config, 900, 1000)
    assert learning_rate(config, 10, 1000, position=1100) == 0.0


def test_a_time_budget_ends_the_run_cleanly(tmp_path, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("jukebox_core.training.trainer.time.monotonic", lambda: float(next(clock)))
    recorder = Recorder()
    _, result = toy_run(tmp_path, tracker=recorder, max_seconds=10.0)
    meta = load_meta(tmp_path)
    assert 0 < result.step < 8 and meta["step"] == result.step
    assert meta["finished"] and meta["elapsed"] >= 10
    assert recorder.rows[-1][2] == "validation" and recorder.rows[-1][0] == result.step
    assert open_run(tmp_path, {"kind": "toy"}, 8, 10.0) == "finished"
    assert open_run(tmp_path, {"kind": "toy"}, 8, 1000.0) == "resume"
    assert open_run(tmp_path, {"kind": "toy"}, 8) == "resume"
    _, result = toy_run(tmp_path)
    assert result.step == 8


def test_steps_that_are_not_finite_change_nothing(tmp_path):
    recorder = Recorder()
    toy, result = toy_run(tmp_path, toy=Toy(nan_at=(3, 4)), tracker=recorder)
    assert result.step == 8
    assert all(torch.isfinite(value).all() for value in toy.state_dict().values())
    assert recorder.warnings == [
        f"step {step} skipped: its loss or gradient is not finite" for step in (3, 4)
    ]
    assert all(math.isfinite(v) for row in recorder.rows for v in row[3].values())


def test_ten_steps_in_a_row_that_are_not_finite_end_the_run(tmp_path):
    train = dataclasses.replace(TRAIN, steps=30)
    with pytest.raises(ValueError, match="not finite for 10 steps in a row, up to step 16"):
        toy_run(tmp_path, train, toy=Toy(nan_at=range(7, 100)))
    assert load_meta(tmp_path)["step"] == 5, "the last whose loss was finite"
    assert torch.isfinite(load_file(tmp_path / "weights.safetensors")["linear.weight"]).all()


def test_the_average_can_be_switched_off_and_on():
    layer = nn.Linear(2, 2)
    off, on = WeightAverage(layer, 0.0), WeightAverage(layer, 0.9)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    after = layer.weight.detach().clone()
    off.update(0)
    with off.applied():
        assert torch.equal(layer.weight, after)
    on.update(0)
    with pytest.raises(RuntimeError), on.applied():
        assert torch.allclose(layer.weight, 0.1 * before + 0.9 * after)
        raise RuntimeError
    assert torch.equal(layer.weight, after)
    on.update(10_000)
    assert torch.allclose(on.values[0], 0.9 * (0.1 * before + 0.9 * after) + 0.1 * after)


def test_frozen_parameters_are_not_optimised():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    groups = build_optimizer(model, OPTIM, fused=False).param_groups
    assert [[p.shape for p in g["params"]] for g in groups] == [[(2, 2)], [(2,)]]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]


def test_a_collapsed_codebook_is_reported_once():
    watch = CollapseWatch(100, patience=3)
    usages = [2, 2, 50, 4, 4, 4, 4, 60, 1, 1, 1]
    said = [watch({"usage": float(usage)}) is not None for usage in usages]
    assert said == [False] * 5 + [True] + [False] * 4 + [True]
    assert watch({"loss": 1.0}) is None and watch.low == 0


def test_a_run_that_differs_is_named(tmp_path):
    train = {"steps": 5, "crop": 16, "log_every": 1}
    identity = {"config": {"l_bins": 512, "downs_t": (2, 2)}, "train": train, "kind": "vqvae"}
    assert open_run(tmp_path, identity, 5) == "new"
    save_meta(tmp_path, identity | {"step": 5, "elapsed": 1.0, "finished": True})
    assert open_run(tmp_path, identity, 5) == "finished"
    assert open_run(tmp_path, identity, 6) == "new", "no state to continue from"
    (tmp_path / "state.pt").touch()
    more = identity | {"train": train | {"steps": 6, "log_every": 9}}
    assert open_run(tmp_path, more, 6) == "resume"
    other = {"config": {"l_bins": 256, "downs_t": (2, 3)}, "train": train | {"crop": 8}}
    with pytest.raises(ValueError) as error:
        open_run(tmp_path, other, 5)
    assert "config.l_bins is 512 there, now 256" in str(error.value)
    assert "config.downs_t is [2, 2] there, now [2, 3]" in str(error.value)
    assert "train.crop is 16 there, now 8" in str(error.value)
    with pytest.raises(ValueError, match="source is None there, now 'bass'"):
        open_run(tmp_path, {"source": "bass"}, 5)


def test_a_state_of_another_model_is_refused(tmp_path):
    toy_run(tmp_path, dataclasses.replace(TRAIN, steps=4))
    with pytest.raises(ValueError, match="state.pt does not fit this run") as error:
        other = Toy()
        other.linear = nn.Linear(16, 16, bias=False)
        toy_run(tmp_path, toy=other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "5"),
        ("step", -1),
        ("count", None),
        ("elapsed", math.nan),
        ("metrics", {"train": {"loss": "x"}}),
        ("metrics", [1]),
        ("sums", {"loss": torch.zeros(3)}),
        ("average", 7),
        ("generators", [{}]),
        ("optimizer", []),
        ("optimizer", {"state": {}, "param_groups": 3}),
    ],
)
def test_a_state_with_other_values_is_refused(tmp_path, name, value):
    toy_run(tmp_path, dataclasses.replace(TRAIN, steps=4))
    save_state(tmp_path, load_state(tmp_path) | {name: value})
    with pytest.raises(ValueError, match="state.pt does not fit this run"):
        toy_run(tmp_path)


def test_an_optimizer_of_other_shapes_is_refused(tmp_path):
    toy_run(tmp_path, dataclasses.replace(TRAIN, steps=4))
    state = load_state(tmp_path)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    save_state(tmp_path, state)
    with pytest.raises(ValueError, match=r"exp_avg is \(3,\) for a parameter \(16, 16\)"):
        toy_run(tmp_path)


@pytest.mark.parametrize("shape", ((6, 4), (3, 8), (1, 5)))
def test_muon_on_a_cpu_is_pytorchs_in_float32(monkeypatch, shape):
    """Six steps; `bfloat16` of PyTorch's own does nothing here."""
    g = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(shape, generator=g), torch.randn(6, *shape, generator=g)
    found, groups = [], []
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    for kind in (torch.optim.Muon, Float32Muon):
        matrix, still = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
        options = {"lr": 0.1, "weight_decay": 0.3, "adjust_lr_fn": "match_rms_adamw"}
        optimizer = kind([matrix, still], **options)
        for gradient in gradients:
            matrix.grad = gradient.clone()
            optimizer.step()
        assert torch.equal(still, start)
        found.append((matrix.detach(), optimizer.state[matrix]))
        groups.append(optimizer.state_dict()["param_groups"])
    torch.testing.assert_close(*found)
    assert groups[0] == groups[1]


@pytest.mark.parametrize("muon", (False, True))
@pytest.mark.parametrize("name", ("betas", "eps", "weight_decay"))
def test_an_optimizer_of_other_options_is_refused(tmp_path, name, muon):
    optim = dataclasses.replace(OPTIM, muon=muon)
    toy = ToyOfMatrices if muon else Toy
    toy_run(tmp_path, dataclasses.replace(TRAIN, steps=4), optim, toy=toy())
    state = load_state(tmp_path)
    groups = state["optimizer"]["adamw"] if muon else state["optimizer"]
    groups["param_groups"][0][name] = 0.25
    save_state(tmp_path, state)
    with pytest.raises(ValueError, match=f"{name} of the optimiser's group .* is '0.25', expected"):
        toy_run(tmp_path, optim=optim, toy=toy())


def test_options_that_the_machine_chooses_are_not_taken_from_the_state(tmp_path):
    toy_run(tmp_path / "parts", dataclasses.replace(TRAIN, steps=4))
    shutil.copytree(tmp_path / "parts", tmp_path / "whole")
    toy_run(tmp_path / "whole")
    state = load_state(tmp_path / "parts")
    for group in state["optimizer"]["param_groups"]:
        group |= {"lr": "x", "fused": False, "foreach": True}
        del group["eps"]
    save_state(tmp_path / "parts", state)
    toy_run(tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_run_killed_before_its_last_state_was_written_is_not_finished(tmp_path):
    toy_run(tmp_path, dataclasses.replace(TRAIN, steps=4))
    before = (tmp_path / "state.pt").read_bytes()
    toy_run(tmp_path)
    last, identity = TRAIN.steps, {"kind": "toy"}
    assert open_run(tmp_path, identity, last) == "finished"
    (tmp_path / "state.pt").write_bytes(before)
    assert open_run(tmp_path, identity, last) == "resume"
    (tmp_path / "state.pt").unlink()
    assert open_run(tmp_path, identity, last) == "finished"


def test_metrics_that_are_not_finite_do_not_break_the_meta_data(tmp_path):
    class Infinite(Toy):
        def forward(self, batch, generator=None):
            output = super().forward(batch, generator)
            return output._replace(metrics={"bad": torch.tensor(math.inf)})

    toy_run(tmp_path, toy=Infinite())
    assert load_meta(tmp_path)["metrics"]["train"]["bad"] is None
    json.loads((tmp_path / "meta.json").read_text())


def test_mixed_precision_keeps_the_targets_exact(tmp_path):
    seen = []

    class Looks(Toy):
        def forward(self, batch, generator=None):
            seen.append((batch.dtype, self.linear(batch).dtype))
            return super().forward(batch, generator)

    seed_everything(0)
    toy = Looks()
    trainer = Trainer(make_fabric("cpu", "bf16-mixed"), OPTIM, TRAIN, tmp_path, meta={})
    trainer.fit(toy, toy, Batches(Noise(), 4), samples_per_epoch=640)
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert toy.linear.weight.dtype == torch.float32


class FullDisk(Recorder):
    """From the log of one step to that of another no file can grow beyond some bytes."""

    def __init__(self, since, until=None, parts=()):
        super().__init__(parts)
        self._since, self._until = since, until
        self._limits = pytest.importorskip("resource", reason="Windows has no such limit")
        self._usual = self._limits.getrlimit(self._limits.RLIMIT_FSIZE)

    def log(self, step, epoch, split, metrics):
        super().log(step, epoch, split, metrics)
        if step == self._since:
            self._limits.setrlimit(self._limits.RLIMIT_FSIZE, (512, self._usual[1]))
        if step == self._until:
            self.close()

    def close(self):
        self._limits.setrlimit(self._limits.RLIMIT_FSIZE, self._usual)


def test_a_full_disk_keeps_the_last_checkpoint_and_training_goes_on(tmp_path):
    train = dataclasses.replace(TRAIN, log_every=1, checkpoint_every=2)
    whole = CsvTracker(tmp_path / "whole")
    toy_run(tmp_path / "whole", train, tracker=whole)
    disk = FullDisk(since=3, until=7, parts=[CsvTracker(tmp_path / "full")])
    toy_run(tmp_path / "full", train, tracker=disk)
    logs = [
        [row for row in read_metrics(tmp_path / run / "metrics.csv") if row.metric not in TIMINGS]
        for run in ("whole", "full")
    ]
    assert logs[0] == logs[1]
    assert [message.split(":")[0] for message in disk.warnings] == [
        "no checkpoint at step 4, the last is from step 2",
        "no checkpoint at step 6, the last is from step 2",
    ]
    assert "could not be written" in disk.warnings[0] and "disk full" in disk.warnings[0]
    assert_same_run(tmp_path / "whole", tmp_path / "full")


def test_a_disk_that_stays_full_ends_the_run_with_what_there_is(tmp_path):
    train = dataclasses.replace(TRAIN, log_every=1, checkpoint_every=2)
    toy_run(tmp_path / "whole", train)
    disk = FullDisk(since=5)
    try:
        with pytest.raises(OSError, match=r"weights.safetensors could not be written.*disk full"):
            toy_run(tmp_path / "full", train, tracker=disk)
    finally:
        disk.close()
    assert load_meta(tmp_path / "full")["step"] == load_state(tmp_path / "full")["step"] == 4
    assert not list((tmp_path / "full").glob(".*"))  # no half-written files
    toy_run(tmp_path / "full", train)
    assert_same_run(tmp_path / "whole", tmp_path / "full")


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    train = dataclasses.replace(TRAIN, checkpoint_every=2, validate_every=1)
    recorder = Recorder()
    toy_run(tmp_path, train, tracker=recorder, snapshots=Snapshots(tmp_path, 2, best=True))
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["00000006", "00000008"]
    losses = {row[0]: row[3]["loss"] for row in recorder.rows if row[2] == "validation"}
    best = load_meta(tmp_path / "best")
    assert best["step"] == min(losses, key=losses.get) and not best["finished"]
    assert best["metrics"]["validation"]["loss"] == min(losses.values())
    # The weights are those that the same training has at that step, averaged.
    toy_run(
        tmp_path / "again",
        dataclasses.replace(train, steps=best["step"]),
        dataclasses.replace(OPTIM, decay_steps=0),
    )
    toy_run(
        tmp_path / "steady",
        train,
        dataclasses.replace(OPTIM, decay_steps=0),
        snapshots=Snapshots(tmp_path / "steady", 8),
    )
    again = load_file(tmp_path / "again/weights.safetensors")
    steady = load_file(tmp_path / f"steady/steps/{best['step']:08}/weights.safetensors")
    assert all(torch.equal(again[name], steady[name]) for name in again)
    with pytest.raises(ValueError, match="keep is -1"):
        Snapshots(tmp_path, -1)


def test_the_best_is_known_after_a_resumption(tmp_path):
    snapshots = Snapshots(tmp_path, best=True)
    assert snapshots.improves(2.0) and not snapshots.improves(2.0) and snapshots.improves(1.0)
    assert not snapshots.improves(math.nan)
    assert not Snapshots(tmp_path).improves(0.0)
    train = dataclasses.replace(TRAIN, log_every=1, validate_every=1, checkpoint_every=100)
    for folder, stops in (("whole", False), ("parts", True)):
        if stops:
            with pytest.raises(SystemExit):
                toy_run(
                    tmp_path / folder,
                    train,
                    tracker=Recorder(kill_at=4),
                    snapshots=Snapshots(tmp_path / folder, best=True),
                )
        toy_run(tmp_path / folder, train, snapshots=Snapshots(tmp_path / folder, best=True))
    metas = [load_meta(tmp_path / folder / "best") for folder in ("whole", "parts")]
    assert metas[0]["step"] == metas[1]["step"]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
