"""The native format: what is written is read back, and what is damaged is named."""

import dataclasses
import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from jukebox_core import checkpoints
from jukebox_core.checkpoints import (
    fingerprint,
    load_codec,
    load_meta,
    load_prior,
    load_state,
    open_run,
    provenance,
    save_meta,
    save_model,
    save_state,
)
from jukebox_core.presets import PRESETS
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.vqvae.model import VQVAE

TINY = PRESETS["tiny"]


def codec_run(folder):
    torch.manual_seed(0)
    codec = VQVAE(TINY.vqvae)
    for level in codec.levels:
        codec.bottleneck(level).codebook.normal_()
        codec.bottleneck(level).restore_averages()
    save_model(
        folder, codec, {"kind": "vqvae", "config": dataclasses.asdict(TINY.vqvae), "step": 3}
    )
    return codec


def prior_run(folder, config=TINY.prior, of="abc"):
    torch.manual_seed(1)
    prior = AutoregressivePrior(config, torch.randn(config.l_bins, config.emb_width))
    meta = {"kind": "prior", "config": dataclasses.asdict(config), "vqvae_fingerprint": of}
    save_model(folder, prior, meta)
    return prior


def edit_weights(folder, change):
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_codec_is_read_back_exactly(tmp_path):
    codec = codec_run(tmp_path / "run")
    loaded = load_codec(tmp_path / "run")
    assert loaded.config == codec.config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, tensor in codec.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert load_meta(tmp_path / "run")["step"] == 3
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "meta.json",
        "weights.safetensors",
    ]


@pytest.mark.parametrize("embedding", ("table", "codebook"))
def test_a_prior_is_read_back_exactly(tmp_path, embedding):
    prior = prior_run(tmp_path, dataclasses.replace(TINY.prior, embedding=embedding))
    loaded = load_prior(tmp_path)
    codes = torch.randint(0, 32, (2, 40))
    assert torch.equal(loaded(codes), prior(codes))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    prior_run(tmp_path, dataclasses.replace(TINY.prior, embedding="table"))
    stored = load_file(tmp_path / "weights.safetensors")
    assert len({"embed.weight", "head.weight"} & set(stored)) == 1
    loaded = load_prior(tmp_path)
    assert loaded.embed.weight is loaded.head.weight


def test_a_prior_of_another_codec_is_refused(tmp_path):
    codec_run(tmp_path / "vqvae")
    identity = fingerprint(tmp_path / "vqvae")
    prior_run(tmp_path / "right", of=identity)
    prior_run(tmp_path / "wrong", of="0123456789abcdef")
    load_prior(tmp_path / "right", codec_fingerprint=identity)
    with pytest.raises(ValueError, match="codes of another codec .fingerprint 0123456789ab, this"):
        load_prior(tmp_path / "wrong", codec_fingerprint=identity)
    load_prior(tmp_path / "wrong")


def test_the_fingerprint_follows_the_weights_alone(tmp_path):
    codec = codec_run(tmp_path / "a")
    before = fingerprint(tmp_path / "a")
    meta = load_meta(tmp_path / "a")
    save_model(tmp_path / "b", codec, meta | {"step": 9, "seed": 4})
    assert fingerprint(tmp_path / "b") == before
    with torch.no_grad():
        next(codec.parameters())[0, 0, 0] += 1e-3
    save_model(tmp_path / "b", codec, meta)
    assert fingerprint(tmp_path / "b") != before


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no run folder .*nowhere"):
        load_codec(tmp_path / "nowhere")
    codec_run(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights.safetensors"):
        load_codec(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no meta.json"):
        load_codec(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no state.pt"):
        load_state(tmp_path)


@pytest.mark.parametrize("keep", (0, 5, 100, -1000))
def test_truncated_weights_are_refused(tmp_path, keep):
    codec_run(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="weights.safetensors is damaged or truncated") as error:
        load_codec(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="damaged or truncated"):
        fingerprint(tmp_path)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    codec_run(tmp_path)
    path = tmp_path / "weights.safetensors"
    whole = path.read_bytes()
    edit_weights(tmp_path, lambda t: t.pop("bottlenecks.1.codebook"))
    with pytest.raises(ValueError, match="misses the tensor bottlenecks.1.codebook; it"):
        load_codec(tmp_path)
    path.write_bytes(whole)
    edit_weights(tmp_path, lambda t: t.update({"zz": torch.zeros(1), "aa": torch.zeros(1)}))
    with pytest.raises(ValueError, match="has the unknown tensor aa and 1 more"):
        load_codec(tmp_path)
    path.write_bytes(whole)
    edit_weights(tmp_path, lambda t: t.update({"bottlenecks.1.codebook": torch.zeros(7, 16)}))
    message = r"tensor bottlenecks.1.codebook is \(7, 16\), expected \(32, 16\)"
    with pytest.raises(ValueError, match=message):
        load_codec(tmp_path)


def test_meta_data_that_do_not_fit_are_named(tmp_path):
    codec_run(tmp_path)
    with pytest.raises(ValueError, match="is a run of kind 'vqvae', expected 'prior'"):
        load_prior(tmp_path)
    meta = load_meta(tmp_path)
    save_meta(tmp_path, meta | {"config": meta["config"] | {"colour": 1}})
    with pytest.raises(ValueError, match="VQVAEConfig has no field colour"):
        load_codec(tmp_path)
    save_meta(tmp_path, {"kind": "vqvae"})
    with pytest.raises(ValueError, match="no usable configuration .no 'config'"):
        load_codec(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"format": 2}))
    with pytest.raises(ValueError, match="has format 2, this version reads format 1"):
        load_meta(tmp_path)
    for text in ("{", "[]", "null", '{"kind": "vqvae"}'):
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(ValueError, match="meta.json is damaged"):
            load_meta(tmp_path)


@pytest.mark.parametrize("text", ("[" * 100_000 + "]" * 100_000, '{"format": ' + "9" * 5000 + "}"))
def test_meta_data_that_no_parser_takes_are_damaged(tmp_path, text):
    codec_run(tmp_path)
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(ValueError, match="meta.json is damaged"):
        load_meta(tmp_path)


@pytest.mark.parametrize("kind", (torch.complex64, torch.float8_e4m3fn))
def test_tensors_of_types_that_no_run_has_are_refused(tmp_path, kind):
    codec_run(tmp_path)
    name = "bottlenecks.1.codebook"
    edit_weights(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(kind)}))
    with pytest.raises(ValueError, match=rf"tensor {name} is .*, expected one of F64, F32"):
        load_codec(tmp_path)


def test_integers_are_no_weights(tmp_path):
    codec_run(tmp_path)
    name = "bottlenecks.1.codebook"
    edit_weights(tmp_path, lambda tensors: tensors.update({name: tensors[name].long()}))
    with pytest.raises(ValueError, match=f"{name} is torch.int64, expected torch.float32"):
        load_codec(tmp_path)


def test_names_of_fields_and_tensors_are_told_in_one_line(tmp_path):
    codec_run(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({"a\nb\x1b[31m": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"unknown tensor a b\\x1b\[31m; it"):
        load_codec(tmp_path)
    meta = load_meta(tmp_path)
    save_meta(tmp_path, meta | {"config": meta["config"] | {"a\nb": 1}})
    with pytest.raises(ValueError, match="VQVAEConfig has no field a b"):
        load_codec(tmp_path)


@pytest.mark.parametrize("state", (1, [], torch.zeros(3), None))
def test_a_state_is_a_dictionary(tmp_path, state):
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="state.pt is damaged"):
        load_state(tmp_path)


def test_state_is_plain_data_only(tmp_path):
    state = {"step": 4, "tensors": {"a": torch.arange(3)}, "rng": [(3, (1, 2), None), "x", 0.5]}
    save_state(tmp_path, state)
    read = load_state(tmp_path)
    assert torch.equal(read["tensors"]["a"], torch.arange(3))
    assert read["rng"] == state["rng"] and read["step"] == 4
    whole = (tmp_path / "state.pt").read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"x" * 200):
        (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match="state.pt is damaged"):
            load_state(tmp_path)
    torch.save({"model": VQVAE(TINY.vqvae)}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="state.pt is damaged"):
        load_state(tmp_path)


def test_a_failed_write_leaves_the_old_weights(tmp_path, monkeypatch):
    codec = codec_run(tmp_path)
    before = fingerprint(tmp_path)

    def fail(path, tensors):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints, "save_tensors", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(tmp_path, codec, {})
    assert fingerprint(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_provenance_names_the_versions():
    assert checkpoints.provenance()["versions"].keys() >= {"python", "torch", "numpy"}


def test_a_run_from_before_there_was_an_option_goes_on_without_it(tmp_path):
    save_meta(tmp_path, {"step": 3, "elapsed": 1.0, "loss": {"commit": 1.0}})
    wanted = {"loss": {"commit": 1.0, "relative_spectral": False}}
    assert open_run(tmp_path, wanted, steps=3) == "finished"
    with pytest.raises(ValueError, match="loss.relative_spectral is None there, now True"):
        open_run(tmp_path, {"loss": {"commit": 1.0, "relative_spectral": True}}, steps=3)


def test_the_commit_is_of_the_code_not_of_the_repository_around_it(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "another project"], check=True)
    monkeypatch.setattr("jukebox_core.checkpoints.__file__", str(tmp_path / "checkpoints.py"))
    (tmp_path / "checkpoints.py").touch()
    assert provenance()["git_commit"] is None
