"""Upstream files that are damaged, wrong or malicious: one line, and nothing written."""

import os
from collections import OrderedDict
from dataclasses import asdict

import numpy as np
import pytest
import torch
from upstream_files import (
    CODEC_HPS,
    PRIOR_HPS,
    D,
    K,
    codec_tensors,
    convert,
    prior_tensors,
    refused,
    save_checkpoint,
)

from jukebox_core.checkpoints import save_model
from jukebox_core.config import VQVAEConfig
from jukebox_core.vqvae.model import VQVAE
from lass.counts import count_triples, save_counts, symmetrise


class Payload:
    """Pickles to a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["codec", "prior", "sums"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["hps", "model", "opt", "top"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys, kind, legacy, where):
    mark = tmp_path / "mark"
    content = {"hps": dict(CODEC_HPS), "model": codec_tensors(), "opt": {}, "step": 1}
    if where == "top":
        content = Payload(mark)
    else:
        content[where]["x"] = Payload(mark)
    path = tmp_path / "bad.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    out = tmp_path / "out" / "run"
    out.parent.mkdir()
    said = refused(capsys, kind, path, out)
    assert "was refused" in said and "system" in said
    assert not mark.exists()


def test_counts_with_pickled_objects_are_refused(tmp_path, capsys):
    mark = tmp_path / "mark"
    bad = np.array([Payload(mark)], dtype=object)
    np.savez(tmp_path / "bad.npz", data=bad, coords=bad, shape=bad, fill_value=bad)
    said = refused(capsys, "counts", tmp_path / "bad.npz", tmp_path / "c.safetensors")
    assert "bad.npz holds pickled Python objects" in said and "allow_pickle" not in said
    (tmp_path / "bad.npz").write_bytes(b"text")
    said = refused(capsys, "counts", tmp_path / "bad.npz", tmp_path / "c.safetensors")
    assert "damaged or not a file of counts" in said and "allow_pickle" not in said
    assert not mark.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [0, 3, 0.3, 0.9, -1])
def test_truncated_checkpoints_are_refused(tmp_path, capsys, legacy, keep):
    path = save_checkpoint(tmp_path / "c.pth.tar", codec_tensors(), CODEC_HPS, legacy=legacy)
    content = path.read_bytes()
    size = int(keep * len(content)) if 0 < keep < 1 else keep
    path.write_bytes(content[:size])
    said = refused(capsys, "codec", path, tmp_path / "run")
    assert "damaged" in said


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_truncated_tables_are_refused(tmp_path, capsys, keep):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, K, (3, 50))
    counts = symmetrise(count_triples(K, *codes))
    save_counts(tmp_path / "c.safetensors", counts, {})
    assert convert("counts", tmp_path / "c.safetensors", tmp_path / "c.npz", "--back") == 0
    torch.save(torch.zeros(1, K * K, dtype=torch.int64), tmp_path / "s.pt")
    for kind, name in (("counts", "c.npz"), ("sums", "s.pt")):
        content = (tmp_path / name).read_bytes()
        size = int(keep * len(content)) if 0 < keep < 1 else keep
        (tmp_path / name).write_bytes(content[:size])
        assert "damaged" in refused(capsys, kind, tmp_path / name, tmp_path / "out.safetensors")


def change(tensors, name, value):
    changed = OrderedDict(tensors)
    if value is None:
        del changed[name]
    else:
        changed[name] = value
    return changed


CODE = "bottleneck.level_blocks.0.k"
CONV = "encoders.0.level_blocks.0.model.0.0.weight"
NORM = "prior.transformer._attn_mods.1.ln_0.bias"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (CODE, None, f"the tensor {CODE} is missing"),
        (CODE, torch.zeros(K, D + 1), f"the tensor {CODE} is (12, 7), expected (12, 6)"),
        (CONV, torch.zeros(8, 1, 2), f"the tensor {CONV} is (8, 1, 2), expected (8, 1, 4)"),
        ("encoders.9.x", torch.zeros(1), "the tensor encoders.9.x is unknown"),
        (CONV, torch.full((8, 1, 4), torch.nan), f"the tensor {CONV} holds NaN"),
        (CONV, torch.zeros(8, 1, 4, dtype=torch.int32), f"the tensor {CONV} is torch.int32"),
    ],
)
def test_wrong_codec_tensors_are_named(tmp_path, capsys, name, value, message):
    tensors = change(codec_tensors(), name, value)
    path = save_checkpoint(tmp_path / "c.pth.tar", tensors, CODEC_HPS)
    assert message in refused(capsys, "codec", path, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (NORM, None, "the tensor transformer._attn_mods.1.ln_0.bias is missing"),
        (NORM, torch.zeros(9), "transformer._attn_mods.1.ln_0.bias is (9,), expected (8,)"),
        ("prior.what", torch.zeros(1), "the tensor what is unknown"),
        ("prior.y_emb.bow_genre_emb.weight", torch.zeros(1), "label conditioning is not impl"),
        ("prior.prime_prior.x", torch.zeros(1), "lyrics (a primed encoder) is not implemented"),
        ("prior.conditioner_blocks.0.x", torch.zeros(1), "another level's codes is not impl"),
        (
            "prior.transformer._attn_mods.1.attn.c_enc_kv.w",
            torch.zeros(1),
            "attention to an encoder (lyrics) is not implemented",
        ),
        ("prior.start_token", None, "label conditioning (y_cond) is not implemented"),
        ("prior.x_out.weight", torch.ones(K, 8), "x_out.weight differs from x_emb.weight"),
    ],
)
def test_wrong_prior_tensors_are_named(tmp_path, capsys, name, value, message):
    tensors = change(prior_tensors(table=True), name, value)
    path = save_checkpoint(tmp_path / "p.pth.tar", tensors, PRIOR_HPS)
    assert message in refused(capsys, "prior", path, tmp_path / "run")


def test_contradicting_or_unknown_hps_are_refused(tmp_path, capsys):
    path = save_checkpoint(
        tmp_path / "a", prior_tensors(table=True), PRIOR_HPS | {"prior_depth": 4}
    )
    assert "_attn_mods.3" in refused(capsys, "prior", path, tmp_path / "run")
    path = save_checkpoint(
        tmp_path / "b", prior_tensors(table=True), PRIOR_HPS | {"attn_order": 12}
    )
    assert "attn_order 12 is not implemented" in refused(capsys, "prior", path, tmp_path / "run")
    path = save_checkpoint(tmp_path / "c", codec_tensors(), CODEC_HPS | {"downs_t": (2, 1, 1)})
    assert "downs_t has 3 entries, levels is 2" in refused(capsys, "codec", path, tmp_path / "run")


@pytest.mark.parametrize(
    ("hps", "message"),
    [
        ({"width": "wide"}, "width is 'wide', expected an integer"),
        ({"downs_t": 2}, "downs_t is 2, expected a list"),
        ({"l_bins": 12.5}, "l_bins is 12.5, expected an integer"),
    ],
)
def test_unusable_hps_are_refused(tmp_path, capsys, hps, message):
    path = save_checkpoint(tmp_path / "c", codec_tensors(), CODEC_HPS | hps)
    assert message in refused(capsys, "codec", path, tmp_path / "run")


@pytest.mark.parametrize(
    "native",
    [
        5,
        {"meta": 5, "tensors": {}},
        {"meta": "no", "tensors": {}},
        {"meta": "[]", "tensors": {}},
        {"meta": '{"kind": "vqvae"}', "tensors": 5},
        {"meta": '{"kind": "vqvae"}', "tensors": {"a": 5}},
        {"meta": '{"kind": "vqvae"}', "tensors": {"a": torch.zeros(1)}},
        {"meta": '{"kind": "prior"}', "tensors": {}},
    ],
)
def test_a_damaged_native_part_is_refused(tmp_path, capsys, native):
    content = {"hps": CODEC_HPS, "model": codec_tensors(), "native": native}
    torch.save(content, tmp_path / "c")
    refused(capsys, "codec", tmp_path / "c", tmp_path / "run")


def test_files_of_another_kind_are_refused(tmp_path, capsys):
    codec = save_checkpoint(tmp_path / "c", codec_tensors(), CODEC_HPS)
    prior = save_checkpoint(tmp_path / "p", prior_tensors(table=True), PRIOR_HPS)
    torch.save(torch.zeros(1, K * K, dtype=torch.int64), tmp_path / "s")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other")
    torch.save({"model": {"a": 1}}, tmp_path / "numbers")
    out = tmp_path / "run"
    assert "holds a model of kind prior, expected vqvae" in refused(capsys, "codec", prior, out)
    assert "holds a model of kind vqvae, expected prior" in refused(capsys, "prior", codec, out)
    assert "kind unknown" in refused(capsys, "prior", tmp_path / "other", out)
    assert "has int under a, expected a tensor" in refused(
        capsys, "prior", tmp_path / "numbers", out
    )
    assert "is not a checkpoint" in refused(capsys, "codec", tmp_path / "s", out)
    assert "holds dict, expected an int64 tensor" in refused(capsys, "sums", codec, out)
    assert "is not a counts file" in refused(capsys, "counts", tmp_path / "s", out)
    (tmp_path / "text").write_text("hello world")
    for kind in ("codec", "prior", "sums", "counts"):
        assert "damaged" in refused(capsys, kind, tmp_path / "text", out)
        assert "there is no file" in refused(capsys, kind, tmp_path / "nothing", out)
    assert "exists" in refused(capsys, "codec", codec, tmp_path / "text")


def bad_counts(**changed):
    good = {
        "data": np.array([1, 2]),
        "coords": np.array([[0, 1], [1, 0], [2, 2]]),
        "shape": np.array([3, 3, 3]),
        "fill_value": np.array(0),
    }
    return {name: value for name, value in (good | changed).items() if value is not None}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": None}, "lacks data, expected"),
        ({"shape": np.array([3, 3])}, "has shape [3, 3]"),
        ({"shape": np.array([3, 3, 4])}, "has shape [3, 3, 4]"),
        ({"coords": np.zeros((2, 2), int)}, "coords (2, 2)"),
        ({"coords": np.array([[0, 1], [1, 0], [2, 3]])}, "codes outside 0..2"),
        ({"data": np.array([0, 1])}, "counts under 1"),
        ({"data": np.array([0.5, 1])}, "holds float64 counts"),
        ({"coords": np.zeros((3, 2), int)}, "counts a triple twice"),
        ({"shape": np.full(3, 2**40)}, "1099511627776 codes, expected 1 to 2,097,151"),
        ({"shape": np.full(3, 3.5)}, "3.5 codes, expected"),
        ({"data": np.array([1, 2**64 - 1], np.uint64)}, "a count of 18446744073709551615"),
    ],
)
def test_wrong_counts_are_refused(tmp_path, capsys, changed, message):
    np.savez(tmp_path / "c.npz", **bad_counts(**changed))
    assert message in refused(capsys, "counts", tmp_path / "c.npz", tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"first": None}, "native_first is missing"),
        ({"first": np.array([0])}, "expected the same"),
        ({"second": np.array([[1, 0]])}, "expected vectors"),
        ({"mixture": np.array([2, 9])}, "codes span [2, 9]"),
        ({"mixture": np.array([2, 1])}, "once and in order"),
        ({"counts": np.array([1, 0])}, "expected a positive count"),
        ({"counts": np.array([1])}, "expected a positive count"),
        ({"counts": np.array([1.5, 2])}, "expected vectors of integers"),
        ({"counts": np.array([print, print])}, "holds pickled Python objects"),
        ({"metadata": np.array("{")}, "damaged arrays native_*"),
        ({"metadata": np.array("[" * 50_000)}, "damaged arrays native_*"),
        ({"metadata": np.array("[1]")}, "expected metadata of texts"),
        ({"metadata": np.array('{"codec": 1}')}, "expected metadata of texts"),
    ],
)
def test_a_damaged_native_part_of_counts_is_refused(tmp_path, capsys, changed, message):
    parts = {"first": [0, 1], "second": [1, 0], "mixture": [2, 2], "counts": [1, 2]}
    native = {name: np.array(value) for name, value in parts.items()}
    native = native | {"metadata": np.array("{}")} | changed
    arrays = {f"native_{name}": value for name, value in native.items() if value is not None}
    np.savez(tmp_path / "c.npz", **bad_counts(), **arrays)
    assert message in refused(capsys, "counts", tmp_path / "c.npz", tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.zeros(K * K, dtype=torch.int64), "expected (1, K * K)"),
        (torch.zeros(1, 7, dtype=torch.int64), "expected (1, K * K)"),
        (torch.zeros(1, 9), "holds torch.float32"),
        (torch.full((1, 9), 9), "codes outside 0..2"),
    ],
)
def test_wrong_sums_are_refused(tmp_path, capsys, table, message):
    torch.save(table, tmp_path / "s.pt")
    assert message in refused(capsys, "sums", tmp_path / "s.pt", tmp_path / "out")


def test_top_level_codecs_have_no_upstream_form(tmp_path, capsys):
    config = VQVAEConfig(
        levels=1, downs_t=(1,), strides_t=(2,), l_bins=K, width=4, depth=1, multipliers=(1,),
        top_only=True,
    )  # fmt: skip
    save_model(tmp_path / "run", VQVAE(config), {"kind": "vqvae", "config": asdict(config)})
    said = refused(capsys, "codec", tmp_path / "run", tmp_path / "c.pth.tar", "--back")
    assert "only the top level" in said
