"""Promises of docs/reliability.md: no network, no file elsewhere, no input changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contents import contents

from jukebox_core import audio

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = """
make_synthetic --output out/slakh --tracks 3 --seconds 2 --split 0 0 1 --parts bass drums
prepare_slakh --slakh out/slakh --output out/data --workers 1
train_vqvae --objective linearisation --data in/data --output out/vqvae --preset tiny
train_prior --vqvae out/vqvae --data in/data --source bass --output out/p --preset tiny
count_sums --vqvae out/vqvae --data in/data --output out/counts.safetensors --iterations 2
precompute_sums --vqvae out/vqvae --output out/sums.safetensors
separate --models in/models --method hybrid --candidates 2 --output out/stems in/song.wav
evaluate --models in/models --data in/data --methods hybrid --candidates 2 --output out/results.json
report --runs out --output out/report.html
"""
WATCHED = """
import importlib, json, sys
asked = []
def watch(event, values):
    kind, _, action = event.partition(".")
    if kind == "socket" and action.startswith(("connect", "getaddrinfo", "gethostby", "sendto")):
        asked.append([event, repr(values)])
sys.addaudithook(watch)
for line in sys.stdin.read().split("\\n"):
    if line:
        name, *flags = line.split()
        assert importlib.import_module("scripts." + name).main(flags) == 0, line
print(json.dumps(asked), file=open(sys.argv[1], "w"))
"""


@pytest.mark.slow
def test_programs_write_into_their_outputs_alone_and_ask_no_network(
    tiny_models, tiny_data, tmp_path
):
    work, home, temporary, cache = (tmp_path / name for name in ("work", "home", "tmp", "cache"))
    libraries = tmp_path / "libraries"  # numba and matplotlib have caches of their own
    for folder in (work, home, temporary, cache, libraries):
        folder.mkdir()
    shutil.copytree(tiny_models, work / "in" / "models")
    shutil.copytree(tiny_data, work / "in" / "data")
    noise = 0.1 * torch.randn(1, 9000, generator=torch.Generator().manual_seed(0))
    audio.save(work / "in" / "song.wav", noise, 22_050)
    before = contents(work / "in")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "TMPDIR": str(temporary)}
    environment |= {"XDG_CACHE_HOME": str(cache), "NUMBA_CACHE_DIR": str(libraries)}
    environment |= {
        "MPLCONFIGDIR": str(libraries),
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "disabled",
    }
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "asked.json")]
    done = subprocess.run(
        command, input=PROGRAMS, cwd=work, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "asked.json").read_text(encoding="utf-8")) == []
    assert contents(work / "in") == before
    assert sorted(path.name for path in work.iterdir()) == ["in", "out"]
    assert contents(home) == {} and contents(temporary) == {}
    assert {path.split("/")[0] for path in contents(cache)} <= {"jukebox_core"}
