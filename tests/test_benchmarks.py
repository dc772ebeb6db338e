"""The benchmarks run, print what they promise, and their two paths agree. No time is asserted."""

import json
import math
import re
import shutil

import pytest
import torch

from benchmarks import (
    _common,
    bench_app,
    bench_codec,
    bench_methods,
    bench_partial_sums,
    bench_precision,
    bench_sampling,
    bench_scoring,
    bench_step,
    bench_tables,
)
from benchmarks._plain import PlainDecoder, plain_draw
from jukebox_core.config import PriorConfig
from jukebox_core.prior.kernels import find_kernels
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.separation.likelihood import PairScores
from scripts._methods import METHODS

TINY = ["--preset", "tiny", "--positions", "40", "--repeats", "1", "--threads", "1", "--json"]
needs_museval = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")),
    reason="museval imports only where ffmpeg and ffprobe are installed",
)


@pytest.fixture(autouse=True)
def same_threads():
    """The benchmarks set the number of threads of the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(main, capsys, *flags):
    assert main([*TINY, *flags]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    rows = json.loads(lines[-1])
    for row in rows:
        assert set(_common.KEYS) <= set(row)
        assert row["ratio"] == pytest.approx(row["plain_ms_per_position"] / row["ms_per_position"])
        assert row["ms_per_position"] == pytest.approx(row["ms"] / row["positions"])
        assert row["peak_mb"] > 10
        assert any(line.startswith(row["method"]) for line in lines[:-1])
    return {(row["method"], row["candidates"]): row for row in rows}


def test_codec(capsys):
    rows = run(bench_codec.main, capsys, "--candidates", "1", "5")
    assert list(rows) == [("encode", 1), ("decode", 1), ("decode", 5), ("code_sums", 1)]
    assert rows["encode", 1]["max_difference"] < 1e-5
    assert rows["decode", 1]["max_difference"] < 1e-5
    assert rows["decode", 5]["max_difference"] < 1e-5
    assert rows["code_sums", 1]["max_difference"] == 0
    assert rows["code_sums", 1]["positions"] == 32


@needs_museval
def test_scoring(capsys):
    rows = run(bench_scoring.main, capsys, "--candidates", "3", "--positions", "3000")
    assert list(rows) == [("framewise_sdr", 3), ("sdr", 3), ("si_sdr", 3)]
    assert all(row["max_difference"] < 1e-6 for row in rows.values())


def test_sampling_of_more_sources(capsys):
    command = ["--preset", "tiny", "--positions", "4", "--candidates", "3", "--sources", "3", "4"]
    assert bench_sampling.main([*command, "--pairs", "20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(r["sources"], r["method"]) for r in rows] == [
        (sources, method) for sources in (3, 4) for method in ("lqvae", "lass", "hybrid")
    ]
    assert all(row["ms_per_position"] > 0 for row in rows)


@pytest.mark.parametrize("flags", [(), ("--published",)])
def test_sampling(capsys, flags):
    command = ["--preset", "tiny", "--positions", "16", "--candidates", "1", "3", "--plain", "2"]
    assert bench_sampling.main([*command, "--pairs", "20", "--json", *flags]) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(r["method"], r["candidates"]) for r in rows] == [
        (method, n) for method in ("lqvae", "lass", "hybrid") for n in (1, 3)
    ]
    for row in rows:
        assert set(_common.KEYS) <= set(row)
        assert row["ratio"] == pytest.approx(row["plain_ms_per_position"] / row["ms_per_position"])


def test_partial_sums(capsys):
    rows = run(bench_partial_sums.main, capsys, "--candidates", "2", "5")
    assert list(rows) == [(name, count) for count in (2, 5) for name in ("mass", "draw")]
    assert all(row["max_difference"] < 1e-12 for row in rows.values())


def test_tables(capsys):
    assert bench_tables.main([*TINY, "--pairs", "20"]) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(r["method"], r["memory"]) for r in rows] == [
        (method, memory) for method in ("lqvae", "lass", "hybrid") for memory in ("reused", "fresh")
    ]
    for row in rows:
        assert set(_common.KEYS) <= set(row) and row["copy_ms"] > 0
        assert row["ratio"] == pytest.approx(row["plain_ms_per_position"] / row["ms_per_position"])
        assert row["max_difference"] < 1e-4


@pytest.mark.parametrize("order", (0, 2))
def test_the_plain_decoder_is_the_prior(order):
    torch.manual_seed(0)
    config = PriorConfig(n_ctx=24, l_bins=7, width=16, depth=6, blocks=4, attn_order=order)
    prior = AutoregressivePrior(config, torch.randn(7, config.emb_width)).eval()
    for p in prior.parameters():
        torch.nn.init.normal_(p, std=0.4)
    codes = torch.randint(0, 7, (3, 24))
    plain = PlainDecoder(prior, 3, 24)
    found = [plain.step(codes[:, t - 1] if t else None, t) for t in range(24)]
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(found, 1), prior(codes), rtol=1e-4, atol=1e-4)


def test_the_plain_draw_takes_possible_pairs_alone():
    log_p = torch.log_softmax(torch.randn(2, 5, 4), -1)
    table = torch.full((4, 4), -torch.inf)
    table[1, 2] = table[3, 0] = 0.0
    for scores in (
        PairScores(table.flatten()),
        PairScores(torch.zeros(2), torch.tensor([[1, 3], [2, 0]])),
    ):
        first, second = plain_draw(log_p[0], log_p[1], scores)
        assert set(zip(first.tolist(), second.tolist(), strict=True)) <= {(1, 2), (3, 0)}


def test_one_method_alone(capsys):
    assert list(run(bench_scoring.main, capsys, "--methods", "si_sdr")) == [("si_sdr", 64)]


def test_without_ffmpeg_scoring_says_so(capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert bench_scoring.main(TINY) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "ffmpeg and ffprobe" in said


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--methods", "encode", "sing"], "methods is 'sing', expected encode or"),
        (["--candidates", "0"], "candidates is 0"),
        (["--threads", "0"], "threads is 0"),
    ],
)
def test_bad_flags_are_one_line(capsys, flags, message):
    assert bench_codec.main([*TINY, *flags]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said


def test_the_plain_path_is_scaled_and_results_are_kept():
    calls = []
    timed = _common.compare(
        lambda: calls.append("ours") or 1,
        lambda: calls.append("plain") or 2,
        repeats=3,
        plain_repeats=2,
        plain_part=0.5,
    )
    assert calls == ["plain", "ours"] * 3 + ["ours"]
    assert (timed.result, timed.plain_result) == (1, 2)


@pytest.mark.parametrize("trained", (False, True))
def test_precision(capsys, tiny_models, trained):
    prior = ["--prior", str(tiny_models / "linearisation/prior_bass")] if trained else []
    assert bench_precision.main([*TINY, *prior]) == 0
    exact, *rounded = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    integers = ["int8"] if find_kernels().integer_limit else []
    assert [row["precision"] for row in (exact, *rounded)] == ["float32", "bfloat16", *integers]
    assert exact["largest"] < 1e-5
    for row, most in zip(rounded, (0.01, 0.1), strict=False):
        assert row["mean"] <= row["rms"] <= row["largest"]
        assert exact["rms"] < row["rms"] < most


def test_methods(capsys, tiny_models, tiny_data):
    flags = ["--models", str(tiny_models), "--data", str(tiny_data), "--chunks", "2"]
    flags += ["--candidates", "4", "--chunk-codes", "64", "--threads", "1", "--json"]
    assert bench_methods.main([*flags, "--repeats", "3"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    rows = {row["method"]: row for row in json.loads(lines[-1])}
    assert list(rows) == ["lqvae", "lass", "hybrid"]
    for method, row in rows.items():
        assert len(row["turns"]) == 3 and row["positions"] == 64 and row["chunks"] == 2
        assert row["seconds"]["mean"] == pytest.approx(sum(row["turns"]) / 3)
        assert row["seconds"]["mean"] == pytest.approx(sum(row["parts"].values()))
        if method == "hybrid":
            assert row["ratio"] is None
        else:  # paired: the mean of the turns' own ratios
            pairs = zip(rows["hybrid"]["turns"], row["turns"], strict=True)
            logs = [math.log(a / b) for a, b in pairs]
            assert row["ratio"]["mean"] == pytest.approx(math.exp(sum(logs) / 3))
            assert row["ratio"]["low"] <= row["ratio"]["mean"] <= row["ratio"]["high"]
        assert any(line.startswith(method) for line in lines[:-1])
    assert bench_methods.main([*flags, "--repeats", "1"]) == 1
    assert "repeats is 1, expected an integer at least 2" in capsys.readouterr().err


def test_methods_take_turns_and_the_first_does_not_count():
    calls = []

    def run(name):
        return lambda turn: calls.append((turn, name)) or {"mask": len(calls)}

    found = bench_methods.take_turns({name: run(name) for name in "abc"}, range(3))
    assert [turn for turn, _ in calls] == [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3
    orders = ["".join(name for turn, name in calls if turn == t) for t in range(3)]
    assert orders == ["abc", "bca", "cab"]
    assert {name: [took["mask"] for took in each] for name, each in found.items()} == {
        "a": [4, 9, 11],
        "b": [5, 7, 12],
        "c": [6, 8, 10],
    }


def test_the_parts_of_a_step_are_all_of_it(capsys):
    flags = ["--preset", "tiny", "--positions", "40", "--candidates", "1", "3", "--size", "64"]
    assert bench_step.main([*flags, "--threads", "1", "--precision", "float32", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    for n in (1, 3):
        whole, *parts = (row for row in rows if row["candidates"] == n)
        assert whole["method"] == "all" and min(row["ms_per_position"] for row in parts) > 0
        for name in ("ms_per_position", "share", "mbyte", "gflop"):
            assert sum(row[name] for row in parts) == pytest.approx(whole[name])
        prior = AutoregressivePrior(bench_step.PRESETS["tiny"].prior)
        args = bench_sampling.Args(positions=40, precision="float32")
        least = bench_sampling.floor({"bass": prior, "drums": prior}, n, args)
        # Norms' weights and biases, which the floor counts, are in the products.
        assert whole["mbyte"] / 1e3 == pytest.approx(least["gbyte_per_position"], rel=0.1)
        assert whole["gflop"] == pytest.approx(least["gflop_per_position"], rel=0.1)


def test_the_first_sound_comes_before_the_whole_song(capsys, monkeypatch, tiny_models):
    separator = METHODS["lass"].load_separator(tiny_models, candidates=1)
    monkeypatch.setattr(bench_app, "load_song_separator", lambda: separator)
    assert bench_app.main(["--seconds", "6", "--repeats", "2", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    times = [[float(x) for x in re.findall(r"after ([\d.]+) s", line)] for line in lines]
    assert len(times) == 2 and all(first < whole for first, whole in times)
