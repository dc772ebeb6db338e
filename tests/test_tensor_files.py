"""Files of tensors: what safetensors itself writes, with one tensor in memory at a time."""

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jukebox_core.tensor_files import save_tensors

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
