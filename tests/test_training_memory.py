"""What a training step is said to keep, against counts by hand and against real tensors."""

import json

import pytest
import torch
from torch import nn

from jukebox_core.presets import PRESETS
from jukebox_core.training import memory as training_memory
from jukebox_core.training.memory import (
    CODEC_ON_CPU,
    crops_that_fit,
    fake_tensors,
    saved_bytes,
    training_bytes,
)
from jukebox_core.training.run import parts_of_batch
from jukebox_core.vqvae import cpu
from scripts import training_memory as script


class Stack(nn.Module):
    """Two linear layers around a sigmoid: its input, and its output, are kept for the gradient."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch, generator=None):
        self.calls += 1
        hidden = torch.sigmoid(self.one(batch))  # kept once, for its own gradient and for `two`
        return self.two(hidden).square().sum()  # the square keeps its input


def test_bytes_by_hand():
    stack, batch = Stack(), torch.randn(5, 6)
    found = training_bytes(stack, batch)
    weights = 4 * (6 * 8 + 8 + 8 * 3 + 3)
    assert found.parameters == weights + 4 and found.gradients == found.average == weights
    assert found.optimiser == 2 * weights and found.fixed == 5 * weights + 4
    assert found.activations == 4 * (8 + 3)
    assert training_bytes(stack, batch, averaged=False).average == 0
    assert stack.calls == 0


@pytest.mark.parametrize("unit", ("reconstruction", "linearisation", "prior"))
def test_fake_tensors_keep_what_real_ones_keep(unit):
    preset = PRESETS["tiny"]
    with fake_tensors():
        objective, batch = script.build(preset, unit)
        fake = saved_bytes(objective, batch)
    objective, batch = script.build(preset, unit)
    if batch.is_floating_point():
        batch = torch.randn_like(batch)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    state = torch.get_rng_state()
    with cpu.own_forward():
        assert fake == pytest.approx(saved_bytes(objective, batch), rel=0.01)
    real = saved_bytes(objective, batch)
    assert CODEC_ON_CPU * fake < real < 1.01 * fake and real > 1000
    assert saved_bytes(objective, torch.cat([batch, batch])) == pytest.approx(2 * real, rel=0.02)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())
    assert not any(getattr(module, "_ready", False) for module in objective.modules())
    assert objective(batch).loss.isfinite()  # no fake window is left behind


def test_every_further_source_adds_a_sum_to_encode():
    """Of S sources S crops and S - 1 sums: per crop, 1 + (S - 1) / S encodings."""
    preset = PRESETS["tiny"]
    plain, two, three, five = (
        script.measure(preset, unit, "32", sources).activations
        for unit, sources in (
            ("reconstruction", 2),
            ("linearisation", 2),
            ("linearisation", 3),
            ("linearisation", 5),
        )
    )
    assert (three - plain) / (two - plain) == pytest.approx((2 / 3) / (1 / 2), rel=0.02)
    assert (five - plain) / (two - plain) == pytest.approx((4 / 5) / (1 / 2), rel=0.02)


def test_checkpointing_and_16_bits_keep_less():
    preset = PRESETS["paper"]
    kept = {
        (unit, precision): script.measure(preset, unit, precision).activations
        for unit in ("prior", "prior, checkpointed", "linearisation")
        for precision in ("32", "16-mixed")
    }
    assert kept["prior, checkpointed", "32"] < kept["prior", "32"] / 4
    assert kept["linearisation", "16-mixed"] < 0.6 * kept["linearisation", "32"]
    # Of every layer its input [8192, 1024], and the logits: nothing else is left.
    logits, layers = 8192 * 2048 * 4, 48 * 8192 * 1024 * 4
    assert layers < kept["prior, checkpointed", "32"] < layers + 4 * logits


def test_crops_that_fit(monkeypatch):
    stack, item = Stack(), torch.randn(2, 6)
    needed = training_bytes(stack, item)
    per_item = 2 * needed.activations
    rest = needed.fixed - needed.parameters  # the model is there already

    def fits(free, processes=1):
        monkeypatch.setattr(training_memory, "free_bytes", lambda _: free)
        return crops_that_fit(stack, item, torch.device("cpu"), processes)

    share = training_memory.SHARE
    assert fits((rest + 3.5 * per_item) / share) == 6
    assert fits((rest + 3.5 * per_item) / share * 2, processes=2) == 6
    assert fits(0) == 2  # the least there is


def test_parts_of_a_batch():
    for items, rows, crops in ((8, 2, 16), (8, 2, 15), (8, 2, 4), (6, 1, 4), (5, 1, 4), (4, 2, 2)):
        found = parts_of_batch(items, rows, crops)
        options = [n for n in range(1, items + 1) if items % n == 0]
        assert found == min(n for n in options if rows * items / n <= crops)
    with pytest.raises(ValueError, match="batch is 1; an item is 2 crops"):
        parts_of_batch(4, 2, 1)


def test_the_table(capsys):
    assert script.main(["--preset", "tiny", "--memory", "1", "2", "--json"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    rows = json.loads(lines[-1])
    assert [row["unit"] for row in rows][::2] == list(script._UNITS)
    for row, line in zip(rows, lines[3:], strict=False):
        assert line.startswith(row["unit"]) and line.split()[-1] == str(row["crops"]["2"])
        fixed = sum(row[n] for n in ("parameters", "gradients", "optimiser", "average"))
        free = training_memory.SHARE * 1e9 - fixed
        assert row["crops"]["1"] == int(free / row["activations"])


@pytest.mark.parametrize("memory", (["0"], ["-1"], ["nan"], ["inf"], ["1e300"], ["16", "0"], []))
def test_memory_that_no_device_has_is_refused(memory, capsys):
    assert script.main(["--preset", "tiny", "--memory", *memory]) in (1, 2)
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "memory" in said.err and not said.out
