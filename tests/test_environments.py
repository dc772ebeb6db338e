"""The programs where they meet odd names, locales and terminals, other users and containers."""

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from test_flags import PROGRAMS
from test_prepare_slakh import write_track
from test_separate_script import FAST, music, separate

from jukebox_core import audio
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.separation.jobs import RECORD, Job, assign
from jukebox_core.upstream.tables import read_torch
from scripts import prepare_slakh
from scripts.separate import progress_bar

ROOT = Path(__file__).resolve().parent.parent
RATE = 22_050
NAMES = {
    "emoji": "Gitarre äöü 🎸",
    "line break": "line\nbreak",
    "leading dash": "-rf",
    "255 bytes": "x" * 251,
    "not UTF-8": "caf\udce9",
    "trailing space": "space ",
    "dots": "..x",
    "control characters": "\x1b]0;title\x07",
}
# Runs programs one after another; the words of their commands are UTF-8, whatever the locale.
DRIVER = """
import importlib, json, os, sys
for name, *words in json.load(open(sys.argv[1], encoding="ascii")):
    flags = [os.fsdecode(word.encode("utf-8", "surrogateescape")) for word in words]
    status = importlib.import_module("scripts." + name).main(flags)
    assert status == 0, (name, status)
"""
SEPARATE = ("separate", "--method", "hybrid-neural", *FAST, "--models", "models", "--output")
SONG = "Gitarre ü 🎸.wav"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")


@pytest.fixture
def place(tiny_neural_models):
    """A folder that every user may write, with models and a song."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in ("linearisation", "mask_estimator"):
            shutil.copytree(tiny_neural_models / part, folder / "models" / part)
        audio.save(folder / SONG, music(1, RATE, 1), RATE)
        (folder / "tmp").mkdir()
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777)
        yield folder


def run(folder, commands, inside=(), **environment):
    """Run programs in a process that `inside` starts; its stderr."""
    (folder / "commands.json").write_text(json.dumps(commands))
    inherited = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    inherited |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    inherited |= {"TMPDIR": str(folder / "tmp"), "WANDB_MODE": "disabled"} | environment
    done = subprocess.run(
        [*inside, sys.executable, "-c", DRIVER, "commands.json"],
        cwd=folder,
        env={name: value for name, value in inherited.items() if value is not None},
        capture_output=True,
        timeout=300,
        check=False,
    )
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 0, done.stdout.decode(errors="replace") + said
    return said


def require(*command):
    """Skip where a command is missing or fails."""
    with contextlib.suppress(OSError):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return
    pytest.skip(f"cannot run {' '.join(command[:2])} here")


def stems_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != RECORD)


# Names


@on_linux
def test_names_of_inputs(tiny_models, tmp_path, monkeypatch, capsys):
    songs, out = tmp_path / "songs", tmp_path / "out"
    for number, name in enumerate(NAMES.values()):
        audio.save(songs / f"{name}.wav", music(0.5, RATE, 1, number), RATE)
    monkeypatch.chdir(songs)
    files = [f"{name}.wav" for name in NAMES.values()]
    assert separate(tiny_models, out, *files, method="lass", flags=("--",)) == 0
    assert sorted(os.listdir(out)) == sorted(NAMES.values())
    assert all(stems_in(out / name) == ["bass.wav", "drums.wav"] for name in NAMES.values())
    said = capsys.readouterr().out
    assert "line\\nbreak.wav" in said and "\x1b" not in said and len(said.splitlines()) == 16
    assert separate(tiny_models, out, ".", method="lass") == 0  # of the folder, by themselves
    assert capsys.readouterr().out.count(": finished in ") == len(NAMES) - 1  # ..x is hidden
    shares = assign([Job(path, out) for path in sorted(songs.iterdir())], 2)
    assert {len(share) for share in shares} == {len(NAMES) // 2}


@on_linux
def test_an_error_about_a_name_is_one_line(tiny_models, tmp_path, capsys):
    for name in NAMES.values():
        (tmp_path / f"{name}.wav").write_text("no audio")
    files = sorted(tmp_path.iterdir())
    assert separate(tiny_models, tmp_path / "out", *files, method="lass") == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert [line[:7] for line in said.splitlines()] == ["error: "] * len(NAMES)


@on_linux
def test_names_of_outputs_and_data_sets(tiny_models, tmp_path, monkeypatch):
    audio.save(tmp_path / "a.wav", music(0.5, RATE, 1), RATE)
    for number in (1, 2):
        write_track(tmp_path / f"Track{number}", "Bass", "Drums", seed=number)
    monkeypatch.chdir(tmp_path)
    for name in NAMES.values():
        (tmp_path / name).mkdir()
        for number in (1, 2):
            shutil.copytree(f"Track{number}", tmp_path / name / "slakh" / f"Track{number}")
        (tmp_path / name / "slakh" / name).mkdir()  # no track
        slakh = f"{name}/slakh"
        flags = [f"--slakh={slakh}", f"--output={name}/data", "--split", "1", "0", "0"]
        assert prepare_slakh.main([*flags, "--workers", "1"]) == 0
        assert len(load_manifest(Path(name) / "data").tracks) == 2
    for name in ("-rf", "caf\udce9"):
        flags = (f"--output={name}/stems",)
        assert separate(tiny_models, "unused", "a.wav", method="lass", flags=flags) == 0
        assert stems_in(tmp_path / name / "stems" / "a") == ["bass.wav", "drums.wav"]


@on_linux
def test_an_upstream_checkpoint_whose_name_is_not_utf8(tmp_path):
    path = tmp_path / "caf\udce9.pth.tar"
    torch.save({"step": torch.ones(3)}, path)
    assert read_torch(path)["step"].tolist() == [1, 1, 1]


# Terminals and locales


def test_help_in_20_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    for name in PROGRAMS:
        assert importlib.import_module(f"scripts.{name}").main(["--help"]) == 0
        assert "show this help message" in capsys.readouterr().out, name
    wrong = "--no-such-flag-of-prepare-slakh"
    assert prepare_slakh.main(["--slakh", "a", "--output", "b", wrong]) == 2
    assert wrong in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_progress_bar_in_20_columns(monkeypatch):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    with open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_bar("a name that is too long.wav", 100) as bar:
            bar.update(50)
            bar.refresh()
        monkeypatch.undo()
        drawn = os.read(ours, 10_000).decode()
    os.close(ours)
    lines = [re.sub(r"\x1b\[\w", "", line) for line in re.split(r"[\r\n]", drawn)]
    assert any(line.strip() for line in lines) and max(map(len, lines)) <= 20


@on_linux
def test_an_ascii_locale(place):
    locale = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": None}
    shutil.move(place / "models", place / "Modelle ü")
    out = "Stücke 🎸"
    command = [*SEPARATE, out, "--models", "Modelle ü", SONG]
    run(place, [command, ("make_synthetic", "--help")], **locale)
    assert stems_in(place / out / Path(SONG).stem) == ["bass.wav", "drums.wav"]


# Users and containers


@on_linux
def test_a_user_without_a_home(place):
    """Neither a home nor the installation can be written, as for a user id without an account."""
    if os.getuid() != 0:
        pytest.skip("only root becomes another user")
    user = ("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", "--inh-caps=-all")
    require(*user, sys.executable, "-c", f"open({str(ROOT / 'tests/conftest.py')!r})")
    run(place, [[*SEPARATE, "out", SONG]], user, HOME=None)
    assert stems_in(place / "out" / Path(SONG).stem) == ["bass.wav", "drums.wav"]
    assert (place / "out").stat().st_uid == 54321
    assert not list((place / "tmp").iterdir())


@on_linux
def test_a_container(place, tiny_data):
    """A home that is read-only, no network, and 1 MB of shared memory for two workers."""
    (place / "home").mkdir()
    mounts = "mount -t tmpfs -o ro tmpfs home && mount -t tmpfs -o size=1m tmpfs /dev/shm"
    inside = ("unshare", "--mount", "--net", "--map-root-user", "sh", "-c")
    require(*inside, f"cd {place} && {mounts}")
    train = ["train_vqvae", "--objective", "reconstruction", "--data", str(tiny_data)]
    train += ["--preset", "tiny", "--output", "vqvae", "--train.workers", "2"]
    inside += (f'{mounts} && exec "$@"', "sh")
    run(place, [[*SEPARATE, "out", SONG], train], inside, HOME=str(place / "home"))
    assert stems_in(place / "out" / Path(SONG).stem) == ["bass.wav", "drums.wav"]
    assert (place / "vqvae" / "weights.safetensors").is_file()
    assert not list((place / "tmp").iterdir())
