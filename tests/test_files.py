"""Atomic writing and checksums."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from jukebox_core.files import atomic_folder, atomic_path, sha256, write_json, write_table


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
    for name in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / name).write_text("")
    assert names(target) == ["two"] and names(tmp_path) == ["track"]


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


def test_tables_of_equal_content_have_equal_bytes_and_safetensors_reads_them(tmp_path):
    tensors = {"b": torch.arange(7.0), "a": torch.ones(2, 3, dtype=torch.int32).T}
    about = {"kind": "table", "codec": "\u00fc", "rate": "22050", "more": "1"}
    written = set()
    for n in range(8):
        order = list(about.items())[n % 4 :] + list(about.items())[: n % 4]
        write_table(tmp_path / str(n), tensors, dict(order))
        written.add(sha256(tmp_path / str(n)))
    assert len(written) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == about
        for name, expected in tensors.items():
            found = file.get_tensor(name)
            assert torch.equal(found, expected) and found.dtype == expected.dtype
