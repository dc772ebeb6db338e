"""scripts.count_sums and scripts.precompute_sums from end to end."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import bench_counting
from jukebox_core.checkpoints import fingerprint, load_codec, save_model
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.locks import sole_writer
from jukebox_core.presets import PRESETS
from jukebox_core.vqvae.model import VQVAE
from lass import load_counts
from lass.counter import TripleCounter
from lass.triples import PairCounting
from lqvae.sums import code_sums, load_sums
from scripts import count_sums, precompute_sums

K = PRESETS["tiny"].vqvae.l_bins
SMALL = ("--device", "cpu", "--pairs", "2", "--crop", "64")


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """A run folder of an untrained codec whose codes all occur."""
    torch.manual_seed(1)
    model = VQVAE(PRESETS["tiny"].vqvae).eval()
    for level in model.levels:
        latents = model.latents(0.2 * torch.randn(4, 4096), level).detach()
        flat = latents.transpose(1, 2).flatten(0, 1)
        model.bottleneck(level).codebook = flat[torch.randperm(len(flat))[:K]].clone()
    folder = tmp_path_factory.mktemp("run") / "vqvae"
    save_model(folder, model, {"kind": "vqvae", "config": asdict(model.config)})
    return folder


def flags(codec, data, output, *more):
    return ["--vqvae", str(codec), "--data", str(data), "--output", str(output), *SMALL, *more]


def as_dict(path):
    counts, _ = load_counts(path)
    rows = zip(counts.first, counts.second, counts.mixture, counts.counts, strict=True)
    return {(int(i), int(j), int(m)): int(c) for i, j, m, c in rows}


def test_counts_are_those_of_the_iterations(codec, tiny_data, tmp_path, capsys):
    output = tmp_path / "models" / "counts.safetensors"
    assert count_sums.main(flags(codec, tiny_data, output, "--iterations", "6")) == 0
    said = capsys.readouterr().out.strip()
    assert said.startswith(f"{output}: 768 triples, ") and "triples/s" in said
    assert len(said.splitlines()) == 1
    counts, metadata = load_counts(output, fingerprint(codec), ("bass", "drums"))
    manifest = load_manifest(tiny_data)
    plan = PairCounting(pairs=2, crop=64)
    dense = np.zeros((K, K, K), int)
    for triples in plan.iterate(load_codec(codec), manifest.split("train"), manifest.alpha, 0, 6):
        np.add.at(dense, tuple(triples), 1)
    assert counts.counts.sum() == dense.sum() == 768
    np.testing.assert_array_equal(dense[counts.first, counts.second, counts.mixture], counts.counts)
    assert metadata["iterations"] == "6" and metadata["alpha"] == "0.5 0.5"
    assert not output.with_name("counts.safetensors.spool").exists()

    before = output.stat().st_mtime_ns
    assert count_sums.main(flags(codec, tiny_data, output, "--iterations", "6")) == 0
    assert "already counted" in capsys.readouterr().out
    assert output.stat().st_mtime_ns == before


def test_an_interrupted_counting_goes_on(codec, tiny_data, tmp_path, monkeypatch, capsys):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert count_sums.main(flags(codec, tiny_data, straight, "--iterations", "9")) == 0
    add = TripleCounter.add

    def interrupted(self, *codes):
        if self.iterations == 4:
            raise KeyboardInterrupt
        add(self, *codes)

    monkeypatch.setattr(TripleCounter, "add", interrupted)
    often = ("--buffer", "100", "--flush-seconds", "0")
    command = flags(codec, tiny_data, broken, "--iterations", "9", *often)
    assert count_sums.main(command) == 130
    assert not broken.exists() and (tmp_path / "broken.spool" / "state.json").is_file()
    added = []
    monkeypatch.setattr(TripleCounter, "add", lambda s, *c: (added.append(1), add(s, *c))[1])
    capsys.readouterr()
    other = flags(codec, tiny_data, broken, "--iterations", "9", "--pairing", "song")
    assert count_sums.main(other) == 1
    assert "was begun with counting" in capsys.readouterr().err
    assert count_sums.main(command) == 0
    assert len(added) == 5
    assert broken.read_bytes() == straight.read_bytes()
    assert not (tmp_path / "broken.spool").exists()


def test_more_iterations_and_more_time_go_on_from_the_file(codec, tiny_data, tmp_path, capsys):
    straight, grown = tmp_path / "straight", tmp_path / "grown"
    assert count_sums.main(flags(codec, tiny_data, straight, "--iterations", "7")) == 0
    in_no_time = ("--iterations", "7", "--max-seconds", "0")
    assert count_sums.main(flags(codec, tiny_data, grown, *in_no_time)) == 0
    assert load_counts(grown)[1]["iterations"] == "1"
    assert count_sums.main(flags(codec, tiny_data, grown, "--iterations", "4")) == 0
    assert count_sums.main(flags(codec, tiny_data, grown, "--iterations", "7")) == 0
    assert grown.read_bytes() == straight.read_bytes()
    capsys.readouterr()
    assert count_sums.main(flags(codec, tiny_data, grown, "--iterations", "3")) == 1
    assert "7 iterations are already counted" in capsys.readouterr().err


def test_one_process_at_a_time_counts(codec, tiny_data, tmp_path, capsys):
    output = tmp_path / "counts"
    command = flags(codec, tiny_data, output, "--iterations", "2")
    with sole_writer(output):
        assert count_sums.main(command) == 1
        assert f"another process is writing {output}: wait until" in capsys.readouterr().err
    assert count_sums.main(command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["counts"]


def test_what_a_killed_process_left_beside_its_finished_file_is_removed(
    codec, tiny_data, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "counts"
    command = flags(codec, tiny_data, output, "--iterations", "2")
    with monkeypatch.context() as patch:
        patch.setattr(TripleCounter, "close", lambda self: None)
        assert count_sums.main(command) == 0
    assert count_sums.spool_of(output).exists()
    assert count_sums.main(command) == 0
    assert "already counted" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["counts"]


def test_parts_are_merged(codec, tiny_data, tmp_path, capsys):
    parts = [tmp_path / f"part{seed}" for seed in range(2)]
    for seed, part in enumerate(parts):
        more = ("--iterations", "3", "--seed", str(seed))
        assert count_sums.main(flags(codec, tiny_data, part, *more)) == 0
    merge = ["--merge", *map(str, parts), "--output", str(tmp_path / "all")]
    capsys.readouterr()
    assert count_sums.main(merge) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'all'}: 768 triples of 2 files\n"
    total = as_dict(parts[0])
    for key, count in as_dict(parts[1]).items():
        total[key] = total.get(key, 0) + count
    assert as_dict(tmp_path / "all") == total
    assert load_counts(tmp_path / "all", fingerprint(codec))[1]["iterations"] == "6"
    same = ["--merge", str(parts[0]), str(parts[0]), "--output", str(tmp_path / "twice")]
    assert count_sums.main(same) == 1
    assert "the same draws" in capsys.readouterr().err


def edited(tiny_data, folder, **changes):
    """A copy of a data set whose manifest says something else."""
    shutil.copytree(tiny_data, folder)
    manifest = json.loads((tiny_data / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_only_training_songs_of_the_right_kind_are_counted(codec, tiny_data, tmp_path, capsys):
    output = tmp_path / "counts"

    def error(data, *more):
        assert count_sums.main(flags(codec, data, output, *more)) in (1, 2)
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and not output.exists()
        return said

    rate = edited(tiny_data, tmp_path / "rate", sample_rate=44_100)
    assert "is at 44100 Hz, the codec at 22050" in error(rate)
    one = edited(tiny_data, tmp_path / "one", sources=["bass"], alpha={"bass": 1.0})
    assert "has only the source bass" in error(one)
    tracks = json.loads((rate / "manifest.json").read_text())["tracks"]
    tests = edited(
        tiny_data, tmp_path / "tests", tracks=[t for t in tracks if t["split"] == "test"]
    )
    assert "has no songs in its train split" in error(tests)
    assert "choose a shorter crop" in error(tiny_data, "--crop", "5000")
    assert "iterations is 0" in error(tiny_data, "--iterations", "0")
    assert "kept is -1" in error(tiny_data, "--kept", "-1")
    assert "buffer is 0" in error(tiny_data, "--buffer", "0")
    assert "there is no run folder" in error(tiny_data, "--vqvae", str(tmp_path / "none"))
    assert count_sums.main(["--output", str(output)]) == 1
    assert "--vqvae and --data are needed" in capsys.readouterr().err
    assert count_sums.main(["--merge", str(output), "--output", str(output)]) == 1
    assert "counts is missing" in capsys.readouterr().err


def test_the_benchmark_counts_what_it_simulates(capsys):
    sizes = ["--iterations", "50", "--triples", "300", "--codes", "20", "--buffer", "1000"]
    assert bench_counting.main([*sizes, "--rows", "4", "--json"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    said = json.loads(lines[-1])
    args = bench_counting.Args(iterations=50, triples=300, codes=20)
    drawn = np.array(list(bench_counting.simulated(args)))
    assert drawn.shape == (50, 3, 300)
    distinct = len(np.unique(drawn.swapaxes(1, 2).reshape(-1, 3), axis=0))
    assert [row["distinct"] for row in said["rows"]] == [None] * 4 + [distinct]
    assert [row["iterations"] for row in said["rows"]] == [12, 25, 37, 50, 50]
    assert said["rows"][-1]["spool_mb"] == 16 * distinct / (1 << 20)
    assert len(lines) == 1 + 5 + 3  # heads, rows, a gap, the summary, JSON
    assert bench_counting.main(["--triples", "0"]) == 1
    assert "triples is 0, expected an integer at least 1" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_triples(capsys):
    sizes = ["--iterations", "40", "--triples", "100000", "--buffer", "65536"]
    assert bench_counting.main([*sizes, "--noise", "1", "--skew", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert said["rows"][-1]["spool_mb"] > 55  # mapped or read whole it would show
    assert said["largest_peak_mb"] - said["smallest_mb"] < 30


def test_precomputed_sums_are_those_of_the_codebook(codec, tmp_path, capsys):
    output = tmp_path / "sums.safetensors"
    assert precompute_sums.main(["--vqvae", str(codec), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{output}: 32 x 32 sums, ") and len(said.splitlines()) == 1
    book = load_codec(codec).codebook
    assert torch.equal(load_sums(output, fingerprint(codec)), code_sums(book))
    uneven = ["--vqvae", str(codec), "--output", str(output), "--alpha", "0.7", "0.3"]
    assert precompute_sums.main(uneven) == 0
    assert torch.equal(load_sums(output, fingerprint(codec)), code_sums(book, (0.7, 0.3)))
    assert precompute_sums.main(["--vqvae", str(tmp_path), "--output", str(output)]) == 1
    assert "has no meta.json" in capsys.readouterr().err
