"""Which of the models that ship are used: by sources, by method, and on the app's page."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import hybrid
from hybrid.hub import HubModels
from jukebox_core import audio
from jukebox_core.evaluation.results import load_results
from jukebox_core.presets import PRESETS
from jukebox_core.separation.export import export_models
from jukebox_core.separation.settings import QUALITIES, Settings
from scripts import evaluate, separate
from scripts._methods import complete_methods, default_methods, method_of, shipped_models
from scripts.app.program import offers
from scripts.pretrain import default_package

TABLES = ("counts.safetensors", "sums.safetensors")


@pytest.fixture(scope="module")
def neural_only(tiny_neural_models, tmp_path_factory):
    """Models with a neural likelihood, but neither tables of pairs nor priors."""
    folder = tmp_path_factory.mktemp("only") / "models"
    shutil.copytree(tiny_neural_models / "linearisation", folder / "linearisation")
    for table in TABLES:
        (folder / "linearisation" / table).unlink()
    for source in ("bass", "drums"):
        shutil.rmtree(folder / "linearisation" / f"prior_{source}")
    (folder / "tuned").mkdir()
    (folder / "tuned" / "neural.json").write_text(json.dumps({"options": {"prior": "unigram"}}))
    return folder


def test_every_folder_is_complete_and_of_its_sources():
    for sources, folder in hybrid.SHIPPED.items():
        assert hybrid.neural_method(folder).check(folder) == sources
        assert hybrid.models_of(reversed(sources)) == folder
    files = [p for folder in hybrid.SHIPPED.values() for p in folder.rglob("*") if p.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    with pytest.raises(ValueError, match="sources are bass vocals: .* bass drums other or bass dr"):
        hybrid.models_of(["vocals", "bass"])


def test_a_whole_song_is_the_default_and_a_method_finds_its_models():
    assert shipped_models("auto") == shipped_models("neural") == hybrid.SONG
    for method in ("hybrid-neural", "hybrid", "lqvae"):
        assert shipped_models(method) == hybrid.PRETRAINED
    assert shipped_models("neural", ("drums", "bass")) == hybrid.PRETRAINED
    learned = Settings(prior="autoregressive")
    assert shipped_models("neural", settings=learned) == hybrid.PRETRAINED
    with pytest.raises(FileNotFoundError, match="reconstruction is missing"):
        shipped_models("lass")


def test_models_that_ship_are_replaced_only_by_their_own_kind():
    assert default_package(("drums", "bass"), "hybrid-neural") == hybrid.PRETRAINED
    assert default_package(("bass", "drums", "other"), "neural") == hybrid.SONG
    swapped = {("bass", "drums"): "neural", ("bass", "drums", "other"): "hybrid-neural"}
    for sources, method in swapped.items():
        with pytest.raises(ValueError, match="give --package a folder"):
            default_package(sources, method)


def test_models_without_tables_and_priors_are_for_the_neural_likelihood_only(
    neural_only, tiny_neural_models, tmp_path
):
    assert method_of("auto", neural_only) == "neural"
    assert method_of("auto", tiny_neural_models) == "hybrid-neural"
    assert hybrid.neural_method(str(tiny_neural_models)) is hybrid.NEURAL
    assert default_methods(neural_only) == ("neural",)
    assert list(complete_methods(neural_only)[0]) == ["neural"]
    HubModels(neural_only).save_pretrained(tmp_path / "copy")
    copy = HubModels.from_pretrained(str(tmp_path / "copy"))
    assert copy.load_separator(device="cpu", candidates=2).likelihood is None


def test_a_complete_lass_is_scored_beside_the_neural_likelihood(
    neural_only, tiny_models, tiny_data, tmp_path
):
    models = shutil.copytree(neural_only, tmp_path / "models")
    shutil.copytree(tiny_models / "reconstruction", models / "reconstruction")
    flags = ["--models", models, "--data", tiny_data, "--output", tmp_path / "results.json"]
    flags += ["--chunks", 1, "--candidates", 2, "--chunk-codes", 64, "--baselines", "mixture"]
    assert evaluate.main([*map(str, flags)]) == 0
    described = load_results(tmp_path / "results.json")["meta"]["models"]
    assert [*described] == ["lass", "neural"]
    assert [*described["neural"]["steps"]] == ["vqvae"]
    assert {"prior_bass", "prior_drums"} < {*described["lass"]["steps"]}


def test_code_frequencies_need_no_trained_priors(neural_only, tiny_neural_models, tmp_path):
    untuned = shutil.copytree(neural_only, tmp_path / "untuned")
    shutil.rmtree(untuned / "tuned")
    with pytest.raises(FileNotFoundError, match="lacks a prior_SOURCE folder per source"):
        hybrid.load_song_separator(untuned)
    assert hybrid.NEURAL_ONLY.check(neural_only) == ("bass", "drums")
    options = {"device": "cpu", "candidates": 4}
    separator = hybrid.load_song_separator(neural_only, **options)
    mixture = 0.1 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    stems = separator(mixture, 22_050)
    unigram = Settings(prior="unigram")
    same = hybrid.load_song_separator(tiny_neural_models, unigram, **options)(mixture, 22_050)
    assert all(torch.equal(stem, same[name]) for name, stem in stems.items())
    files = export_models(hybrid.NEURAL_ONLY, neural_only, tmp_path / "copy")
    runs = {file.parent.name for file in files if file.suffix == ".safetensors"}
    assert runs == {"vqvae", "neural_likelihood"}
    assert hybrid.load_song_separator(tmp_path / "copy", **options).sources == ("bass", "drums")


def test_a_half_counted_family_is_still_the_hybrids(tiny_neural_models, tmp_path):
    models = shutil.copytree(tiny_neural_models, tmp_path / "models")
    (models / "linearisation" / TABLES[0]).unlink()
    assert method_of("auto", models) == "hybrid-neural"  # which says what is missing


def test_the_page_offers_a_method_with_the_first_models_that_have_it(
    neural_only, tiny_neural_models, tiny_models
):
    found = offers([neural_only, tiny_neural_models], Settings())
    assert next(iter(found.ready)) == "neural" and found.homes["neural"] == neural_only
    assert {*found.ready} == {*found.homes} >= {"hybrid-neural", "hybrid", "lqvae", "lass"}
    assert found.homes["hybrid"] == tiny_neural_models and not found.missing
    first = [next(iter(offers([m], Settings()).ready)) for m in (tiny_neural_models, tiny_models)]
    assert first == ["hybrid-neural", "hybrid"]
    missing = offers([neural_only], Settings()).missing
    assert {"lqvae", "hybrid", "hybrid-neural"} <= {*missing}
    every = offers([neural_only, tiny_neural_models], Settings(prior="autoregressive"))
    assert every.homes["neural"] == tiny_neural_models  # the other has no priors
    with pytest.raises(FileNotFoundError, match="which has the parts of no method"):
        offers([tiny_models / "linearisation"], Settings())


def test_separate_takes_sources_or_models(tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    audio.save("song.wav", 0.1 * torch.randn(2, 8_000), 44_100)
    both = ["song.wav", "--models", str(tiny_models), "--sources", "bass", "drums"]
    for flags in (both, ["song.wav", "--sources", "bass", "vocals"]):
        assert separate.main(flags) == 1
        assert capsys.readouterr().err.startswith("error: sources ")
    for flags, stems in (
        ((), {"bass", "drums", "other"}),
        (("--sources", "bass", "drums"), {"bass", "drums"}),
    ):
        assert (
            separate.main(["song.wav", "--output", str(len(stems)), "--candidates", "2", *flags])
            == 0
        )
        assert {path.stem for path in Path(str(len(stems)), "song").glob("*.wav")} == stems


def test_quality_sets_candidates_and_shifts_that_are_not_given(neural_only):
    def sizes(settings=None, **options):
        separator = hybrid.load_song_separator(neural_only, settings, "cpu", **options)
        return separator.n_candidates, separator.shifts

    assert sizes() == sizes(quality="default")
    for quality in ("fast", "best"):
        assert sizes(quality=quality) == QUALITIES[quality]
    assert sizes(quality="best", candidates=6) == (6, 2)
    assert sizes(Settings(shifts=2), quality="best") == (QUALITIES["best"].candidates, 2)
    with pytest.raises(ValueError, match="quality is 'slow', expected fast or default or best"):
        sizes(quality="slow")
    assert QUALITIES["fast"].candidates < PRESETS["demo"].candidates < QUALITIES["best"].candidates
