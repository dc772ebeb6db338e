"""Other systems: names of files, encodings of consoles and text, what only Linux has."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jukebox_core import audio
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.prior import kernels
from jukebox_core.vqvae import residual
from scripts import evaluate, make_synthetic, prepare_slakh, report, separate

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jukebox_core", "lqvae", "lass", "hybrid", "data", "scripts", "benchmarks")
ODD = "my music é 音 (1)" + ("\n🎸 caf\udce9" if sys.platform == "linux" else "")
"""A folder as people name them, and one that only Linux allows."""


def calls():
    """(file, call) of the whole project."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from ((path, node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_text_files_have_their_encoding_named():
    """Windows would take that of the machine."""
    wrong = []
    for path, call in calls():
        named = {keyword.arg for keyword in call.keywords}
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
            wrong += [] if "encoding" in named else [f"{path}:{call.lineno}"]
        elif isinstance(call.func, ast.Name) and call.func.id == "open":
            constants = [arg.value for arg in call.args[1:] if isinstance(arg, ast.Constant)]
            binary = any("b" in str(mode) for mode in constants)
            wrong += [] if binary or "encoding" in named else [f"{path}:{call.lineno}"]
    assert not wrong


def test_no_module_needs_what_only_unix_has():
    """Such modules may be imported where their absence is met, never at the top of a file."""
    only_unix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}
    found = []
    for package in (*PACKAGES, "tests"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names = {a.name for a in getattr(node, "names", [])} | {getattr(node, "module", "")}
                found += [f"{path}:{node.lineno}"] if names & only_unix else []
    assert not found


def test_nothing_forks_or_renames_over_files():
    forbidden = {("os", "fork"), ("os", "rename"), ("os", "getpgid"), ("os", "kill")}
    found = [
        f"{path}:{call.lineno}"
        for path, call in calls()
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and (call.func.value.id, call.func.attr) in forbidden
    ]
    assert not found


def test_songs_scores_and_stems_in_a_folder_of_any_name(tiny_models, tmp_path):
    folder, models = tmp_path / ODD, tmp_path / ODD / "models"
    folder.mkdir()
    models.symlink_to(tiny_models)
    flags = ["--tracks", "5", "--seconds", "4", "--parts", "bass", "drums"]
    assert make_synthetic.main(["--output", str(folder / "slakh"), *flags]) == 0
    data = folder / "data"
    flags = ["--slakh", str(folder / "slakh"), "--output", str(data), "--split", "0.4", "0", "0.6"]
    assert prepare_slakh.main(flags) == 0
    text = (data / "manifest.json").read_text(encoding="utf-8")
    assert "\\" not in text and load_manifest(data).split("test")
    results = folder / "results.json"
    flags = ["--models", str(models), "--data", str(data), "--output", str(results)]
    flags += ["--methods", "lqvae", "--chunks", "2", "--candidates", "2", "--chunk-codes", "128"]
    assert evaluate.main([*flags, "--baselines", "mixture", "--examples", "1"]) == 0
    assert report.main(["--runs", str(folder), "--output", str(folder / "seite ü.html")]) == 0
    page = (folder / "seite ü.html").read_text(encoding="utf-8")
    assert "<audio" in page
    song = folder / "mein Lied ü.wav"
    audio.save(song, 0.1 * torch.randn(1, 8000), 22_050)
    flags = ["--models", str(models), "--method", "lqvae", "--candidates", "2"]
    assert separate.main([*flags, "--output", str(folder / "out"), str(song)]) == 0
    assert (folder / "out" / "mein Lied ü" / "bass.wav").is_file()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_lacks_a_sign_shows_another(encoding):
    code = (
        "from dataclasses import dataclass\nimport sys\nfrom scripts._cli import program\n"
        "@dataclass(frozen=True)\nclass Args:\n    '''None.'''\n"
        "@program\ndef main(args: Args) -> None:\n    print('a \\u2212 b \\u97f3')\n"
        "sys.exit(main([]))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, [b"a", b"?", b"b", b"?"])


def test_without_a_compiler_the_models_run_all_the_same(monkeypatch, tiny_models, tmp_path):
    song = tmp_path / "song.wav"
    audio.save(song, 0.1 * torch.randn(1, 8000), 22_050)
    flags = ["--models", str(tiny_models), "--method", "lqvae", "--candidates", "2", str(song)]
    stems = []
    for compiler in ("cc", "no-such-compiler"):
        monkeypatch.setenv("CC", compiler)
        kernels.find_kernels.cache_clear()
        residual._functions.cache_clear()
        assert separate.main([*flags, "--output", str(tmp_path / compiler)]) == 0
        stems.append(audio.load(tmp_path / compiler / "song" / "bass.wav")[0])
    kernels.find_kernels.cache_clear()
    residual._functions.cache_clear()
    assert torch.allclose(*stems, atol=1e-5)
