"""Print digests of everything that the programs make at tiny size, to compare two versions.

    python -m tests.digests [FOLDER]

Trains the three methods with the `tiny` preset and seed 0, separates a test song and evaluates.
Each line is a name and a SHA-256 of the values, without file formats, dates and names of metrics.
Digests of two versions of the code are comparable if they come from the same machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import load_file

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
SONGS = ["--tracks", "8", "--seconds", "6", "--parts", "bass", "drums", "--seed", "0"]


def run(program: str, *flags: object) -> None:
    """Run a program of the project; its output appears only if it fails."""
    command = [sys.executable, "-m", f"scripts.{program}", *map(str, flags)]
    result = subprocess.run(command, env=os.environ | THREADS, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


def of_tensors(path: Path) -> str:
    """Digest of the names, shapes and bytes of a safetensors file, without its metadata."""
    digest = hashlib.sha256()
    for name, x in sorted(load_file(path).items()):
        digest.update(f"{name} {x.dtype} {x.shape}".encode())
        digest.update(x.tobytes())
    return digest.hexdigest()


def of_scores(path: Path) -> str:
    """Digest of the values of an evaluation, in the order of the file, without metrics' names."""
    chunks = json.loads(path.read_text(encoding="utf-8"))["chunks"]
    values = [
        [item["method"], item["estimate"], item["refined"], source, list(scores.values())]
        for item in chunks
        for source, scores in item["values"].items()
    ]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def of_files(folder: Path, pattern: str) -> str:
    """Digest of files' names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def make(folder: Path) -> None:
    """Run every program once."""
    slakh, data, models = folder / "slakh", folder / "data", folder / "models"
    run("make_synthetic", "--output", slakh, *SONGS, "--split", 0.5, 0.25, 0.25)
    run("prepare_slakh", "--slakh", slakh, "--output", data)
    training = ("--data", data, "--preset", "tiny", "--device", "cpu", "--threads", 1)
    for objective in ("reconstruction", "linearisation"):
        family = models / objective
        codec = ("--vqvae", family / "vqvae")
        run("train_vqvae", "--objective", objective, "--output", family / "vqvae", *training)
        for source in ("bass", "drums"):
            prior = ("--source", source, "--output", family / f"prior_{source}")
            run("train_prior", *codec, *prior, *training)
        table = ("--data", data, "--output", family / "counts.safetensors", "--iterations", 20)
        run("count_sums", *codec, *table)
        run("calibrate", *codec, "--data", data, "--output", family / "calibration.safetensors")
    linear = models / "linearisation"
    run("precompute_sums", "--vqvae", linear / "vqvae", "--output", linear / "sums.safetensors")
    run("train_mask", "--output", models / "mask_estimator", *training)
    song = sorted(data.glob("test/*/mixture.*"))[0]
    for method in ("lqvae", "lass", "hybrid"):
        to = ("--models", models, "--threads", 1, "--device", "cpu")
        run("separate", "--method", method, *to, "--output", folder / method, song)
    scored = ("--models", models, "--data", data, "--threads", 1, "--chunks", 4)
    run("evaluate", *scored, "--output", folder / "results.json", "--device", "cpu")


def main(folder: Path) -> None:
    """Make everything in `folder` and print the digests."""
    make(folder)
    print("songs", of_files(folder / "slakh", "**/*.flac"))
    print("data", of_files(folder / "data", "**/*.flac"))
    for path in sorted((folder / "models").rglob("*.safetensors")):
        name = path.relative_to(folder / "models").as_posix()
        if "/best/" not in name:
            print(name, of_tensors(path))
    for method in ("lqvae", "lass", "hybrid"):
        for stem in sorted((folder / method).rglob("*.wav")):
            print("stem", method, stem.name, hashlib.sha256(stem.read_bytes()).hexdigest())
    print("scores", of_scores(folder / "results.json"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
