"""The wheel works without the checkout: its command, its loaders, its data."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jukebox_core import audio

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import sys
from hybrid import load_separator
from jukebox_core import audio
import jukebox_core
mixture, rate = audio.load(sys.argv[2])
stems = load_separator(sys.argv[1], device="cpu")(mixture, rate, seed=0)
for source, stem in stems.items():
    audio.save(f"{source}.wav", stem, rate, subtype="FLOAT")
print(jukebox_core.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed wheel, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = folder / "source"  # a build leaves files beside the sources
    for name in ("jukebox_core", "lqvae", "lass", "hybrid", "scripts", "data"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def run(installed, cwd, *command):
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_and_the_loader_give_the_same_stems(installed, tiny_models, tmp_path):
    song = tmp_path / "song.wav"
    audio.save(song, 0.1 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(0)), 22_050)
    command = [sys.executable, str(installed / "bin" / "latent-separation")]
    listed = run(installed, tmp_path, *command)
    assert "\nseparate " in listed and "\ntrain_vqvae " in listed
    flags = ["--models", str(tiny_models), "--output", "out", "--device", "cpu", "song.wav"]
    run(installed, tmp_path, *command, "separate", *flags)
    path = run(installed, tmp_path, sys.executable, "-c", CODE, str(tiny_models), "song.wav")
    assert Path(path.strip()).is_relative_to(installed)
    for source in ("bass", "drums"):
        one, other = (audio.load(tmp_path / p / f"{source}.wav")[0] for p in ("out/song", "."))
        assert torch.equal(one, other)


@pytest.mark.slow
def test_the_data_programs_find_their_package(installed, tmp_path):
    command = [sys.executable, str(installed / "bin" / "latent-separation"), "make_synthetic"]
    run(installed, tmp_path, *command, "--output", "songs", "--tracks", "1", "--seconds", "2")
    assert len(list((tmp_path / "songs").rglob("mix.flac"))) == 1


def test_every_package_of_the_library_is_in_the_wheel():
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("packages = [")[2]
    for library in ("jukebox_core", "lqvae", "lass", "hybrid"):
        for path in (ROOT / library).rglob("__init__.py"):
            name = ".".join(path.parent.relative_to(ROOT).parts)
            assert f'"{name}",' in listed
