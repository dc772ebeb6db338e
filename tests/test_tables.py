"""Files of tensors: what safetensors itself writes, with one tensor in memory at a time."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jukebox_core.files import check_replaceable, sha256
from jukebox_core.tables import read_table, save_tensors, table_of, write_table

TENSORS = {
    "b": torch.arange(7.0),
    "a": torch.ones(2, 3, dtype=torch.int64).T,
    "flag": torch.tensor(True),
    "half": torch.randn(3, 5).to(torch.bfloat16)[:, ::2],
    "nothing": torch.zeros(0, 4),
    "\u00fc": torch.randn(4, 4, requires_grad=True).T,
    "double": torch.randn(2).double(),
    "tiny": torch.arange(3, dtype=torch.uint8),
}


def test_the_library_reads_what_is_written(tmp_path):
    save_tensors(tmp_path / "ours", TENSORS)
    found = load_file(tmp_path / "ours")
    assert found.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert torch.equal(found[name], expected) and found[name].dtype == expected.dtype


def test_the_bytes_are_the_librarys(tmp_path):
    save_tensors(tmp_path / "ours", {"b": torch.arange(7.0), "a": torch.ones(3, 2)}, {"k": "v"})
    save_file({"b": torch.arange(7.0), "a": torch.ones(3, 2)}, tmp_path / "theirs", {"k": "v"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_begin_at_multiples_of_their_items(tmp_path):
    save_tensors(tmp_path / "ours", TENSORS, {"kind": "test"})
    with safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == {"kind": "test"}
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            assert tensor.data_ptr() % tensor.element_size() == 0


def test_tables_are_replaced_by_tables_of_their_kind(tmp_path):
    path = tmp_path / "table"
    write_table(path, {"x": torch.zeros(2)}, {"kind": "sums"})
    check_replaceable(path, table_of("sums"), "a table of sums")
    for content in (path.read_bytes(), b"mine", path.read_bytes()[:-1]):
        path.write_bytes(content)
        with pytest.raises(FileExistsError, match="not a table of counts"):
            check_replaceable(path, table_of("counts"), "a table of counts")


def test_tables_of_equal_content_have_equal_bytes_and_safetensors_reads_them(tmp_path):
    tensors = {"b": torch.arange(7.0), "a": torch.ones(2, 3, dtype=torch.int32).T}
    about = {"kind": "table", "codec": "\u00fc", "rate": "22050", "more": "1"}
    written = set()
    for n in range(8):
        order = list(about.items())[n % 4 :] + list(about.items())[: n % 4]
        write_table(tmp_path / str(n), tensors, dict(order))
        written.add(sha256(tmp_path / str(n)))
    assert len(written) == 1


def test_tables_are_read_if_kind_and_codec_fit(tmp_path):
    path = tmp_path / "table"
    write_table(path, {"x": torch.ones(2)}, {"kind": "code_sums", "codec": "abc"})
    for codec in ("abc", None):
        tensors, metadata = read_table(path, "code_sums", codec)
        assert tensors["x"].tolist() == [1, 1] and metadata["codec"] == "abc"
    for name, kind, codec, words in (
        ("table", "code_sums", "abd", "another codec"),
        ("table", "counts", "abc", "code_sums data, expected counts"),
    ):
        with pytest.raises(ValueError, match=f"{path}.*{words}"):
            read_table(tmp_path / name, kind, codec)
    with pytest.raises(FileNotFoundError, match="none is missing: compute the code sums"):
        read_table(tmp_path / "none", "code_sums")
    for content in (b"not safetensors", b"", path.read_bytes()[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is not a readable table of code sums"):
            read_table(path, "code_sums")
