"""benchmarks.gpu: all parts at tiny size on a CPU, and parts that fail or take long."""

import json
import sys

import pytest
import torch

from benchmarks import bench_device, bench_throughput, gpu
from jukebox_core.presets import PRESETS
from jukebox_core.prior.model import AutoregressivePrior
from scripts.training_memory import build


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
    assert gpu.main(["--output", str(tmp_path), "--device", "cpu", "--tiny"]) == 0
    content = json.loads((tmp_path / "gpu.json").read_text())
    page = (tmp_path / "gpu.md").read_text()
    parts = {part["name"]: part for part in content["parts"]}
    assert [*parts] == [
        "device",
        "tests",
        "sampling bfloat16",
        "sampling of more sources",
        "training tiny",
        "small",
    ]
    for name, part in parts.items():
        assert part["status"] == "done" and f"## {name}" in page, part
    (device,) = parts["device"]["rows"]
    assert device["gbyte_per_second"] > 0 and {*device["tflops"]} == {"float32", "bfloat16"}
    rows = parts["sampling bfloat16"]["rows"]
    assert [row["method"] for row in rows] == ["lqvae", "lass", "hybrid"]
    assert {row["sources"] for row in parts["sampling of more sources"]["rows"]} == {3, 4}
    trained = {(row["method"], row["precision"]) for row in parts["training tiny"]["rows"]}
    assert len(trained) == 6
    assert (tmp_path / "small" / "results.json").is_file()


def test_a_part_that_fails_or_takes_long_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def python(name, text, minutes=1.0):
        return gpu.Part(name, (sys.executable, "-c", text), minutes)

    child = "import subprocess as s; s.run(['sleep', '600'])"  # which holds the output open
    every = [
        python("bad", "print('some'); raise SystemExit('no such thing')"),
        python("long", f"print('begun', flush=True); {child}", 0.02),
        python("good", 'print(\'words\'); print(\'[{"method": "x", "ms": 1.23456}]\')'),
    ]
    monkeypatch.setattr(gpu, "parts", lambda _: iter(every))
    flags = ["--output", str(tmp_path / "out"), "--device", "cpu"]
    assert gpu.main(flags) == 1
    assert "failed: bad" in capsys.readouterr().err
    bad, long, good = json.loads((tmp_path / "out/gpu.json").read_text())["parts"]
    assert bad["status"] == "failed" and bad["lines"] == ["some", "no such thing"]
    assert long["status"] == "out of time" and long["lines"] == ["begun"]
    assert long["seconds"] < 300
    assert good["status"] == "done" and good["rows"] == [{"method": "x", "ms": 1.23456}]
    page = (tmp_path / "out/gpu.md").read_text()
    assert "| method | ms |" in page and "| x | 1.235 |" in page and "no such thing" in page
    assert gpu.main([*flags, "--parts", "good"]) == 0
    assert gpu.main([*flags, "--minutes", "0.000001"]) == 0
    parts = json.loads((tmp_path / "out/gpu.json").read_text())["parts"]
    assert parts[-1]["status"] == "no time left"
    assert gpu.main([*flags, "--parts", "better"]) == 1
    assert "parts has better, expected some of bad, long, good" in capsys.readouterr().err


def test_plan_of_a_gpu():
    names = [part.name for part in gpu.parts(gpu.Args(gpu.ROOT))]
    assert names == [
        "device",
        "tests",
        "sampling float16",
        "sampling bfloat16",
        "sampling of more sources",
        "training t4",
        "training paper",
        "torch.compile",
    ]
    (*_, last) = gpu.parts(gpu.Args(gpu.ROOT, minutes=60))
    assert last.name == "small" and last.command[-2:] == ("--preset", "small")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert gpu.main(["--output", str(tmp_path / "out")]) == 1
    assert "PyTorch sees no GPU: try --device cpu" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_flop_of_a_step_of_a_prior():
    """Three times the products of a forward pass: 2 per weight and code, and the attention."""
    objective, codes = build(PRESETS["tiny"], "prior, checkpointed")
    device = torch.device("cpu")
    found = bench_throughput.flop_of(objective, codes, device, "32")
    (prior,) = (x for x in objective.modules() if isinstance(x, AutoregressivePrior))
    assert prior.activation_checkpointing
    matrices = sum(p.numel() for p in prior.blocks.parameters() if p.ndim > 1)
    matrices += prior.head.weight.numel()
    products = 3 * 2 * matrices * codes.numel()
    assert products * 0.9 < found < 1.6 * products  # attention, embeddings
    assert all(p.grad is None for p in objective.parameters())


def test_speeds_of_the_device():
    threads = torch.get_num_threads()
    row = bench_device.measure(bench_device.Args(size=64, megabytes=1, repeats=2))
    assert row["gbyte_per_second"] > 0 and all(speed > 0 for speed in row["tflops"].values())
    assert torch.get_num_threads() == threads
