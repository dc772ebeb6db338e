"""benchmarks.cost: the fit, the amounts and the memory of a step, and what the page says."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bench_sampling, bench_throughput, cost
from jukebox_core.presets import PRESETS
from jukebox_core.prior.joint import accelerate
from jukebox_core.prior.model import AutoregressivePrior
from scripts.training_memory import build

DOCS = Path(__file__).parents[1] / "docs"
POINTS = DOCS / "data" / "cost_model.json"
TRUE = {"step": 2e-3, "layer": 1e-4, "gbyte": 0.1, "gflop": 0.02, "table": 1e-9, "pair": 5e-10}


@pytest.fixture(scope="module")
def record():
    return json.loads(POINTS.read_text(encoding="utf-8"))


def test_the_fit_finds_what_made_the_points():
    rows = [cost.work(point) for point in cost.POINTS if point.fit]
    for row in rows:
        row["seconds"] = sum(row[name] * TRUE[name] for name in cost.TERMS)
    assert cost.fit(rows) == pytest.approx(TRUE, rel=1e-6)
    two = [row for row in rows if not row["pair"]]  # nothing says what a pair costs
    assert cost.fit(two) == pytest.approx(TRUE | {"pair": 0}, rel=1e-6)


def test_memory_is_that_of_the_models():
    point = cost.Point("tiny", 6, 2, 5, 40, True)
    names = ("bass", "drums")
    priors = {name: AutoregressivePrior(point.size().prior).eval() for name in names}
    weights, caches = cost.memory_of(point)
    held = sum(p.numel() for prior in priors.values() for p in prior.parameters())
    assert weights == pytest.approx(2 * held / 1e9)
    fast = accelerate(priors, "float32")
    assert caches == pytest.approx(fast.new_cache(5, 40).nbytes() / 2 / 1e9)


def test_flop_of_a_codec_are_those_of_the_whole_crop():
    objective, item = build(PRESETS["demo"], "linearisation")
    whole = bench_throughput.flop_of(objective, item, torch.device("cpu"), "32") / len(item)
    assert cost.tflop_of("demo", "linearisation") == pytest.approx(whole / 1e12)


def test_flop_of_a_prior_are_those_of_its_products_and_attention():
    preset = PRESETS["demo"]
    prior = AutoregressivePrior(preset.prior)
    products = sum(p.numel() for p in prior.blocks.parameters() if p.dim() == 2)
    products += prior.head.weight.numel()
    codes = preset.prior_train.crop // preset.vqvae.hop
    tables = (
        preset.prior.block_length + 2 * preset.prior.blocks
    )  # scores and sums, per kind of layer
    attended = preset.prior.depth * preset.prior.attn_width * 2 * tables
    found = 1e12 * cost.tflop_of("demo", "prior")
    assert 6 * codes * products < found < 6 * codes * (products + attended)
    again = 1e12 * cost.tflop_of("demo", "prior, checkpointed")
    assert again == pytest.approx(4 / 3 * found)


def test_least_is_what_a_benchmark_of_sampling_says(record):
    model, small = cost.Model(record), cost.Device("small", 100, 1e9, 6)  # GB: for one window
    prior = AutoregressivePrior(PRESETS["paper"].prior)
    args = bench_sampling.Args(precision="bfloat16")
    step = bench_sampling.floor({"bass": prior, "drums": prior}, 64, args)
    row = model.test_set(small, 64)
    windows = 225 * -(-(145 * 3600 / 2100) // (960 * 64 / 22_050))
    assert row["windows"] == 1
    assert row["least"] == pytest.approx(windows * 1024 * step["gbyte_per_position"] / 100 / 3600)
    # Two windows read the weights once, and their caches each.
    two = model.test_set(small._replace(memory=9.5), 64)
    twice = bench_sampling.floor({"bass": prior, "drums": prior}, 128, args)
    assert two["windows"] == 2
    assert two["least"] == pytest.approx(
        row["least"] * twice["gbyte_per_position"] / step["gbyte_per_position"] / 2
    )
    fast = model.test_set(small._replace(bandwidth=1e12, speed=1e-3), 64)
    flop = step["gflop_per_position"] + 2 * 64 * 2048**2 / 1e9
    assert fast["least"] == pytest.approx(windows * 1024 * flop / 1 / 3600)
    eight = model.test_set(small._replace(number=8), 64)
    assert eight["likely"] == pytest.approx(row["likely"] / 8)


def test_the_page_has_what_the_command_prints(capsys):
    assert cost.main(["--points", str(POINTS)]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed in (DOCS / "performance.md").read_text(encoding="utf-8")


def test_it_measures_once(tmp_path, capsys):
    flags = ["--points", str(tmp_path / "new.json"), "--tiny", "--threads", "1"]
    assert cost.main(flags) == 0
    measured = (tmp_path / "new.json").read_bytes()
    first = capsys.readouterr().out
    assert cost.main(flags) == 0
    assert capsys.readouterr().out == first and (tmp_path / "new.json").read_bytes() == measured
    rows = json.loads(measured)["points"]
    assert [row["sources"] for row in rows] == [2, 3, 2] and all(r["seconds"] > 0 for r in rows)
    assert cost.main([*flags, "--candidates", "0"]) == 1
    assert "candidates is 0" in capsys.readouterr().err
    (tmp_path / "new.json").write_text("[]", encoding="utf-8")
    assert cost.main(flags) == 1
    assert "not a record of measured points" in capsys.readouterr().err
