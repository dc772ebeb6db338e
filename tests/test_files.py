"""Atomic writing and checksums."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from jukebox_core import files
from jukebox_core.files import (
    atomic_folder,
    atomic_path,
    check_replaceable,
    json_with,
    remove_owned,
    sha256,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_path_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent and temporary.suffix == ".txt"
            temporary.write_text(text)
    assert target.read_text() == "second"
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_path_keeps_the_old_file_after_an_error(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "track"
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as temporary:
        (temporary / "half").write_text("")
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    for name, owned in (("one", {}), ("two", {"one": None})):
        with atomic_folder(target, owned) as temporary:
            (temporary / name).write_text("")
    assert names(target) == ["two"] and names(tmp_path) == ["track"]


def test_a_folder_with_what_is_not_recorded_is_not_replaced(tmp_path):
    target = tmp_path / "track"
    (target / "inner").mkdir(parents=True)
    (target / "inner" / "ours").write_bytes(b"abc")
    with atomic_folder(target, {"inner/ours": sha256(target / "inner" / "ours")}) as temporary:
        (temporary / "new").write_text("new")
    assert names(target) == ["new"]
    before = target.stat().st_ino
    for owned in ({}, {"old": None}, {"new": sha256(__file__)}):
        with pytest.raises(FileExistsError, match="new"), atomic_folder(target, owned):
            raise AssertionError("nothing is done before the folder is looked at")
        assert not remove_owned(target, owned)
    with pytest.raises(FileExistsError, match="mine"), atomic_folder(target, {"new": None}):
        (target / "mine").write_text("put there meanwhile")
    assert names(target) == ["mine", "new"] and target.stat().st_ino == before
    assert names(tmp_path) == ["track"]
    (target / "mine").unlink()
    (target / ".DS_Store").write_text("of a file manager")
    assert remove_owned(target, {"new": None}) and names(tmp_path) == []


def test_an_old_folder_comes_back_where_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    target = tmp_path / "track"
    target.mkdir()
    (target / "old").write_text("old")
    replace = os.replace

    def refuse(source, goal):
        if ".tmp" in str(source) and (Path(source) / "new").exists():
            raise OSError("gone")
        replace(source, goal)

    monkeypatch.setattr(os, "replace", refuse)
    with (
        pytest.raises(OSError, match="gone"),
        atomic_folder(target, {"old": None}) as temporary,
    ):
        (temporary / "new").write_text("new")
    assert names(target) == ["old"] and names(tmp_path) == ["track"]


def test_links_stay_and_what_they_point_to_is_replaced(tmp_path):
    (tmp_path / "disk" / "folder").mkdir(parents=True)
    (tmp_path / "disk" / "file").write_text("old")
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    write_text(tmp_path / "file", "new")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "new").write_text("")
    assert (tmp_path / "file").is_symlink() and (tmp_path / "folder").is_symlink()
    assert (tmp_path / "disk" / "file").read_text() == "new"
    assert names(tmp_path / "disk" / "folder") == ["new"]
    assert names(tmp_path / "disk") == ["file", "folder"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to a device"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path(os.devnull)
    else:
        path.symlink_to(os.devnull)
    before = path.lstat()
    with pytest.raises(FileExistsError, match="expected a regular file"):
        write_text(path, "text")
    with pytest.raises(FileExistsError, match="expected a regular file"):
        check_replaceable(path, lambda _: True, "a file")
    assert path.lstat().st_mode == before.st_mode and path.lstat().st_ino == before.st_ino


def test_a_file_is_replaceable_where_a_former_run_wrote_it(tmp_path):
    path = tmp_path / "a.json"
    ours = json_with("rows", "meta")
    check_replaceable(path, ours, "a table")
    path.write_text("")
    check_replaceable(path, ours, "a table")
    write_json(path, {"rows": [], "meta": {}, "more": 1})
    check_replaceable(path, ours, "a table")
    for content in (b"text", b"[]", b"1", b'{"rows": 1}', b"\xff\xfe", b'{"rows":'):
        path.write_bytes(content)
        with pytest.raises(FileExistsError, match="a table"):
            check_replaceable(path, ours, "a table")


def test_names_of_any_length_can_be_written(tmp_path):
    for name in ("x" * 255, "\u00fc" * 127, "\U0001f3b5" * 62 + ".wav", "a." + "b" * 253):
        write_text(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name
        (tmp_path / name).unlink()
        with atomic_folder(tmp_path / name) as temporary:
            (temporary / "x").write_text("")
    assert len(names(tmp_path)) == 4


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    script = """
import os, sys
from pathlib import Path
from jukebox_core.files import atomic_folder, atomic_path
with atomic_path(Path(sys.argv[1], "a.txt")) as a, atomic_folder(Path(sys.argv[1], "b")) as b:
    a.write_text("half")
    (b / "inner").write_text("half")
    os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    killed = subprocess.run(command, cwd=Path(__file__).parent.parent, check=False)
    assert killed.returncode == -9
    left = names(tmp_path)
    assert len(left) == 2
    alive = [name.replace(f".{pid_of(name)}-", f".{os.getpid()}-") for name in left]
    host = [re.sub(r"-[0-9a-f]{8}", "-00000000", name) for name in left]
    mine = [".hidden", ".a.1-x.tmp", "b.tmp", ".cache.tmp"]
    for name in (*alive, *host, *mine):
        (tmp_path / name).write_text("kept")
    write_text(tmp_path / "c.txt", "")
    assert names(tmp_path) == sorted([*alive, *host, *mine, "c.txt"])


@pytest.mark.skipif(os.name == "nt", reason="needs processes that are not waited for")
def test_what_a_process_left_that_ended_but_was_not_waited_for_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    left = tmp_path / f".a.{process.pid}-{files._HOST}00000000.tmp"
    left.mkdir()
    write_text(tmp_path / "b.txt", "")
    assert names(tmp_path) == ["b.txt"]
    process.wait()


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="needs namespaces of Linux")
def test_what_lives_in_another_container_of_this_host_is_kept(tmp_path, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr(os, "readlink", lambda _: "pid:[1]")
        host = files._host()
    live = tmp_path / f".song.{2**22 + 1}-{host}00000000.tmp"  # no such process id here
    live.mkdir()
    dead = tmp_path / live.name.replace(host, files._HOST)
    dead.mkdir()
    write_text(tmp_path / "a.txt", "")
    assert names(tmp_path) == [live.name, "a.txt"]


def pid_of(name):
    return re.search(r"\.(\d+)-", name)[1]


def test_sha256_of_known_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_write_json_takes_paths_arrays_and_tensors(tmp_path):
    value = {"path": tmp_path, "numpy": np.float32(0.5), "torch": torch.arange(3), "t": (1, 2)}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "path": str(tmp_path),
        "numpy": 0.5,
        "torch": [0, 1, 2],
        "t": [1, 2],
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_write_json_refuses_what_json_cannot_say(tmp_path, value):
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", {"value": value})
    assert names(tmp_path) == []
