"""Fixtures that several test modules share: a tiny prepared data set and models trained on it."""

import json
import math
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from browsing import chromium
from filelock import FileLock
from hypothesis import settings

from jukebox_core import audio
from jukebox_core.files import sha256, write_json

# Test processes run side by side, and threads that wait for a busy core spin: with one thread each
# the suite is many times faster than with one per core.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

# Every run tries the same examples; a slow machine is no failure.
settings.register_profile("suite", derandomize=True, deadline=None, database=None)
settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption("--every", type=int, default=1, help="run every Nth test")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Keep every Nth of the tests that the other options leave; start with the slow ones.

    No process then runs a long test alone at the end.
    """
    kept = items[:: config.getoption("--every")]
    items[:] = sorted(kept, key=lambda item: item.get_closest_marker("slow") is None)


RATE = 22_050
SPLITS = ("train",) * 4 + ("validation",) + ("test",) * 2


def tone_and_noise(number: int, samples: int) -> dict[str, torch.Tensor]:
    """Two sources [T] of song `number`: a bass line of decaying tones, and bursts of noise."""
    generator = torch.Generator().manual_seed(number)
    time = torch.arange(samples) / RATE
    beat = 0.25 + 0.05 * number
    phase = (time % beat) / beat
    note = (time / beat).long() % 4
    frequency = (50.0 * (1 + 0.1 * number)) * torch.tensor([1.0, 1.25, 1.5, 2.0])[note]
    bass = 0.6 * torch.sin(2 * math.pi * torch.cumsum(frequency, 0) / RATE) * torch.exp(-2 * phase)
    hits = (time % (beat / 2)) / (beat / 2)
    drums = 0.3 * torch.randn(samples, generator=generator) * torch.exp(-12 * hits)
    return {"bass": bass, "drums": drums.clamp(-0.9, 0.9)}


def write_data_set(folder: Path, songs: dict[str, tuple[str, dict[str, torch.Tensor]]]) -> Path:
    """A prepared data set of {track: (split, sources)}: mixtures are exact means."""
    tracks = []
    for name, (split, sources) in songs.items():
        exact = {k: (v.double() * 2**22).round() / 2**22 for k, v in sources.items()}
        exact["mixture"] = sum(exact.values()) / len(sources)
        files = {}
        for kind, samples in exact.items():
            path = f"{split}/{name}/{kind}.flac"
            audio.save(folder / path, samples, RATE)
            files[kind] = {"path": path, "sha256": sha256(folder / path)}
        entry = {"name": name, "split": split, "samples": len(exact["mixture"]), "files": files}
        tracks.append(entry | {"gain": 1.0, "origin": f"{split}/{name}"})
    names = list(sources)
    manifest = {
        "version": 1,
        "sample_rate": RATE,
        "sources": names,
        "alpha": {source: 1 / len(names) for source in names},
        "tracks": tracks,
        "skipped": [],
        "settings": {},
    }
    write_json(folder / "manifest.json", manifest)
    return folder


def write_tiny_data(folder: Path) -> Path:
    """A prepared data set: 4 training songs, 1 for validation, 2 for the test, 3 s each."""
    songs = {
        f"Track{number:05d}": (split, tone_and_noise(number, 3 * RATE))
        for number, split in enumerate(SPLITS, start=1)
    }
    return write_data_set(folder, songs)


def write_three_sources(folder: Path) -> Path:
    """`write_tiny_data` with a third source, other: chords that fade in."""
    songs = {}
    for number, split in enumerate(SPLITS, start=1):
        sources = tone_and_noise(number, 3 * RATE)
        time = torch.arange(3 * RATE) / RATE
        tones = [torch.sin(2 * math.pi * 300 * step * number * time) for step in (1, 1.25, 1.5)]
        other = 0.15 * torch.stack(tones).sum(0) * (time * 0.8 % 1)
        songs[f"Track{number:05d}"] = (split, sources | {"other": other})
    return write_data_set(folder, songs)


def train_tiny_models(folder: Path, data: Path) -> Path:
    """A models folder: codec, priors and tables of both families, trained for a few steps."""
    from scripts import count_sums, precompute_sums, train_prior, train_vqvae

    alpha = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["alpha"]
    common = ["--data", str(data), "--preset", "tiny", "--device", "cpu", "--wandb", "disabled"]
    for objective in ("reconstruction", "linearisation"):
        codec = folder / objective / "vqvae"
        flags = ["--objective", objective, "--output", str(codec), *common]
        assert train_vqvae.main(flags) == 0
        for source in alpha:
            output = folder / objective / f"prior_{source}"
            flags = ["--vqvae", str(codec), "--source", source, "--output", str(output)]
            assert train_prior.main([*flags, *common]) == 0
        flags = ["--vqvae", str(codec), "--data", str(data), "--device", "cpu"]
        output = folder / objective / "counts.safetensors"
        assert count_sums.main([*flags, "--output", str(output), "--iterations", "20"]) == 0
        if objective == "linearisation":
            output = folder / objective / "sums.safetensors"
            flags = ["--vqvae", str(codec), "--output", str(output), "--alpha"]
            assert precompute_sums.main([*flags, *map(str, alpha.values())]) == 0
    return folder


def train_tiny_networks(models: Path, data: Path, families: tuple[str, ...]) -> None:
    """A neural likelihood for families, and a mask estimator, trained for a few steps."""
    from scripts import train_likelihood, train_mask

    common = ["--data", str(data), "--preset", "tiny", "--device", "cpu", "--wandb", "disabled"]
    for family in families:
        flags = ["--vqvae", str(models / family / "vqvae")]
        flags += ["--output", str(models / family / "neural_likelihood")]
        assert train_likelihood.main([*flags, *common]) == 0
    assert train_mask.main(["--output", str(models / "mask_estimator"), *common]) == 0


def made_once(tmp_path_factory, worker_id: str, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the processes of a test run share, made by the first that needs it."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    with FileLock(base / f"{name}.lock"):
        done = base / f"{name}.json"
        if not done.exists():
            make(base / name)
            done.write_text("true")
    return base / name


@pytest.fixture(scope="session")
def worker_id(request):
    """Name of the pytest-xdist process; `master` without it."""
    return getattr(request.config, "workerinput", {}).get("workerid", "master")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory, worker_id) -> Path:
    """`write_tiny_data`, once for all processes."""
    return made_once(tmp_path_factory, worker_id, "tiny_data", write_tiny_data)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory, worker_id, tiny_data) -> Path:
    """`train_tiny_models`, once for all processes."""
    make = partial(train_tiny_models, data=tiny_data)
    return made_once(tmp_path_factory, worker_id, "tiny_models", make)


@pytest.fixture(scope="session")
def three_sources(tmp_path_factory, worker_id) -> Path:
    """`write_three_sources`, once for all processes."""
    return made_once(tmp_path_factory, worker_id, "three_sources", write_three_sources)


@pytest.fixture(scope="session")
def three_source_models(tmp_path_factory, worker_id, three_sources) -> Path:
    """`train_tiny_models` on three sources, and their networks, once for all processes."""

    def make(folder: Path) -> None:
        train_tiny_models(folder, three_sources)
        train_tiny_networks(folder, three_sources, ("linearisation",))

    return made_once(tmp_path_factory, worker_id, "three_source_models", make)


@pytest.fixture(scope="session")
def tiny_neural_models(tmp_path_factory, worker_id, tiny_data, tiny_models) -> Path:
    """`tiny_models`, a neural likelihood for both families, and a mask estimator, once for all."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_models, folder)
        train_tiny_networks(folder, tiny_data, ("reconstruction", "linearisation"))

    return made_once(tmp_path_factory, worker_id, "tiny_neural_models", make)


@pytest.fixture(scope="module")
def browser():
    """A Chromium for the module's tests."""
    with chromium() as running:
        yield running
