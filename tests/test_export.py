"""Copies of models for inference: what is in them, and that they separate as the originals do."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from contents import contents
from safetensors.torch import load_file, save_file

import hybrid
from hybrid import hub
from hybrid.hub import CARD, HubModels
from jukebox_core.checkpoints import WEIGHTS, fingerprint, load_codec
from jukebox_core.neural.model import load_neural_likelihood
from jukebox_core.separation.export import export_models
from jukebox_core.separation.settings import Settings
from lass.counts import CountsFile, load_counts, save_counts
from lqvae.likelihood import SIGMA
from scripts._methods import METHODS


@pytest.fixture(scope="module")
def copied(tiny_neural_models, tmp_path_factory):
    """(models, copy, files of the copy)"""
    folder = tmp_path_factory.mktemp("copy") / "models"
    return tiny_neural_models, folder, export_models(hybrid.NEURAL, tiny_neural_models, folder)


def test_a_copy_has_what_the_method_needs_and_nothing_else(copied):
    models, folder, files = copied
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    runs = ("vqvae", "prior_bass", "prior_drums", "neural_likelihood")
    tables = ("counts", "sums")
    expected = {f"linearisation/{run}/{name}" for run in runs for name in (WEIGHTS, "meta.json")}
    expected |= {f"linearisation/{name}.safetensors" for name in tables} | {"export.json"}
    assert there == expected == {file.as_posix() for file in files}
    for name in ("lqvae", "hybrid", "hybrid-neural"):
        METHODS[name].check(folder)


def test_the_codec_stays_and_other_weights_become_float16(copied):
    models, folder, _ = copied
    run = "linearisation/vqvae"
    assert fingerprint(folder / run) == fingerprint(models / run)
    for run in ("prior_bass", "prior_drums", "neural_likelihood"):
        before, after = (
            load_file(place / "linearisation" / run / WEIGHTS) for place in (models, folder)
        )
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            expected = tensor.half() if tensor.is_floating_point() else tensor
            assert after[name].dtype == expected.dtype and torch.equal(after[name], expected)


def test_tables_keep_their_numbers_in_fewer_bytes(copied):
    models, folder, _ = copied
    counts, sums = (f"linearisation/{name}.safetensors" for name in ("counts", "sums"))
    before, metadata = load_counts(models / counts)
    after, copied_metadata = load_counts(folder / counts)
    assert metadata == copied_metadata
    for one, other in zip(before[1:], after[1:], strict=True):
        assert one.dtype == other.dtype and (one == other).all()
    keys, numbers = CountsFile(folder / counts).read(1, 9)
    expected_keys, expected = CountsFile(models / counts).read(1, 9)
    assert (keys == expected_keys).all() and (numbers == expected).all()
    assert numbers.dtype == expected.dtype
    assert (folder / counts).stat().st_size < 0.5 * (models / counts).stat().st_size
    wide, narrow = (load_file(place / sums)["sum_codes"] for place in (models, folder))
    assert narrow.dtype == torch.int16 and torch.equal(wide, narrow.int())


def test_large_counts_take_two_bytes_without_a_sign(tiny_neural_models, tmp_path):
    models, table = tmp_path / "models", "linearisation/counts.safetensors"
    shutil.copytree(tiny_neural_models, models)
    counts, metadata = load_counts(models / table)
    counts.counts[0] = 2**16 - 1
    save_counts(models / table, counts, metadata)
    export_models(hybrid.NEURAL, models, tmp_path / "once")
    export_models(hybrid.NEURAL, tmp_path / "once", tmp_path / "twice")
    assert load_file(tmp_path / "once" / table)["counts"].dtype == torch.uint16
    assert (load_counts(tmp_path / "twice" / table)[0].counts == counts.counts).all()
    assert (tmp_path / "twice" / table).read_bytes() == (tmp_path / "once" / table).read_bytes()


def test_a_copy_of_the_copy_is_the_copy(copied, tmp_path):
    _, folder, files = copied
    assert export_models(hybrid.NEURAL, folder, tmp_path / "again") == files
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_the_copy_gives_nearly_the_same_likelihood(copied):
    models, folder, _ = copied
    mixture = 0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    codec = load_codec(folder / "linearisation" / "vqvae")
    latents = codec.latents(mixture)
    networks = [
        load_neural_likelihood(place / "linearisation" / "neural_likelihood")
        for place in (models, folder)
    ]
    exact, rounded = (network(mixture, latents) for network in networks)
    for name, log_q in exact.items():
        assert not torch.equal(log_q, rounded[name])
        assert torch.allclose(log_q, rounded[name], atol=0.02)


def test_tuned_settings_are_copied_and_gone_with_the_next_copy(tiny_neural_models, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(tiny_neural_models, models)
    (models / "tuned").mkdir()
    (models / "tuned" / "hybrid-neural.json").write_text('{"options": {"sigma": 0.7}}')
    export_models(hybrid.NEURAL, models, tmp_path / "copy")
    assert hybrid.NEURAL.resolve(Settings(), tmp_path / "copy").sigma == 0.7
    (tmp_path / "copy" / "README.md").write_text("a card")
    export_models(hybrid.NEURAL, tiny_neural_models, tmp_path / "copy")
    assert hybrid.NEURAL.resolve(Settings(), tmp_path / "copy").sigma == SIGMA
    assert (tmp_path / "copy" / "README.md").read_text() == "a card"


@pytest.mark.parametrize("damage", ("too large", "truncated", "codec"))
def test_an_export_that_fails_changes_nothing(tiny_neural_models, tmp_path, damage):
    models, copy = tmp_path / "models", tmp_path / "copy"
    shutil.copytree(tiny_neural_models, models)
    export_models(hybrid.NEURAL, models, copy)
    before = contents(copy)
    run = "vqvae" if damage == "codec" else "prior_drums"
    weights = models / "linearisation" / run / WEIGHTS
    if damage == "too large":
        tensors = load_file(weights)
        next(iter(tensors.values())).view(-1)[0] = 1e6
        save_file(tensors, weights)
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=str(weights)):
        export_models(hybrid.NEURAL, models, copy)
    assert contents(copy) == before


def test_what_is_no_copy_is_never_replaced(tiny_neural_models, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(tiny_neural_models, models)
    trained = shutil.copytree(models, tmp_path / "trained")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "linearisation").symlink_to(models / "linearisation")
    before = contents(tmp_path)
    for output in (trained, linked, tmp_path):
        with pytest.raises(FileExistsError, match="which no former run recorded"):
            export_models(hybrid.NEURAL, models, output)
    for output in (models, models / "linearisation" / "prior_x"):
        with pytest.raises(ValueError, match="in the folder of the models: choose another"):
            export_models(hybrid.NEURAL, models, output)
    assert contents(tmp_path) == before


def test_the_hub_conventions_hold_for_a_folder(tiny_neural_models, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    HubModels(tiny_neural_models).save_pretrained(first)
    assert json.loads((first / "config.json").read_text()) == {"method": "hybrid-neural"}
    with pytest.raises(ValueError, match="choose another"):
        HubModels(first).save_pretrained(first)
    assert (first / "config.json").is_file()
    assert "library_name: latent-separation" in (first / CARD).read_text()
    (first / CARD).write_text("---\nlicense: mit\n---\nours\n")
    HubModels.from_pretrained(str(first)).save_pretrained(second)
    assert (second / CARD).read_text() == (first / CARD).read_text()  # a card of one's own stays
    files = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    assert files == {path.relative_to(second) for path in second.rglob("*") if path.is_file()}
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes()
    separator = HubModels.from_pretrained(second).load_separator(device="cpu", candidates=2)
    assert separator.sources == ("bass", "drums")


def test_the_hub_takes_no_card_of_others(tiny_neural_models, tmp_path):
    (tmp_path / CARD).write_text("mine")
    with pytest.raises(FileExistsError, match="README.md, which no former run recorded"):
        HubModels(tiny_neural_models).save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="there is no folder runs/demo/models"):
        HubModels.from_pretrained("runs/demo/models")
    with pytest.raises(FileNotFoundError):
        HubModels(tmp_path / "none").save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_methods_without_models_of_their_own_say_so():
    with pytest.raises(ValueError, match="no models of lass ship with the package"):
        METHODS["lass"].load_separator()


def test_the_hub_gets_the_copy_and_gives_it_back(tiny_neural_models, tmp_path, monkeypatch):
    """The Hub is a folder here."""
    there = tmp_path / "hub"

    class Api:
        def __init__(self, token):
            pass

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, **_):
            shutil.copytree(folder_path, there / repo_id)

    def download(repo_id, *, revision, cache_dir, **options):
        assert (revision, options["local_files_only"]) == ("v1", True)
        return str(there / repo_id)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("hybrid.hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **_: None)
    HubModels(tiny_neural_models).push_to_hub("user/name")
    models = HubModels.from_pretrained("user/name", revision="v1", local_files_only=True)
    assert models.models == there / "user" / "name"
    assert hybrid.NEURAL.check(models.models) == ("bass", "drums")
    copy = tmp_path / "mine"
    HubModels(tiny_neural_models).save_pretrained(copy)
    before, real = contents(copy), hub.export_models

    def full(*_):
        raise OSError(28, "No space left on device", str(copy))

    monkeypatch.setattr(hub, "export_models", full)
    with pytest.raises(OSError, match="No space left"):
        HubModels(tiny_neural_models).save_pretrained(copy, push_to_hub=True)
    assert contents(copy) == before
    monkeypatch.setattr(hub, "export_models", real)
    HubModels(tiny_neural_models).save_pretrained(copy, push_to_hub=True, repo_id="user/second")
    assert contents(copy) == before
    uploaded = contents(there / "user/second")
    assert list(uploaded.values()) == list(before.values())
