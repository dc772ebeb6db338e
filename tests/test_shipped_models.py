"""Which of the models that ship are used: by sources, by method, and on the app's page."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import hybrid
from hybrid.hub import HubModels
from jukebox_core import audio
from jukebox_core.presets import PRESETS
from jukebox_core.separation.export import export_models
from jukebox_core.separation.settings import QUALITIES, Settings
from scripts import separate
from scripts._methods import complete_methods, default_methods, method_of, shipped_models
from scripts.app.program import offers

TABLES = ("counts.safetensors", "sums.safetensors")


@pytest.fixture(scope="module")
def without_tables(tiny_neural_models, tmp_path_factory):
    """Models with a neural likelihood and no table of pairs."""
    folder = tmp_path_factory.mktemp("without") / "models"
    shutil.copytree(tiny_neural_models / "linearisation", folder / "linearisation")
    for table in TABLES:
        (folder / "linearisation" / table).unlink()
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


def test_models_without_tables_are_for_the_neural_likelihood_alone(
    without_tables, tiny_neural_models, tmp_path
):
    assert method_of("auto", without_tables) == "neural"
    assert method_of("auto", tiny_neural_models) == "hybrid-neural"
    assert default_methods(without_tables) == ("neural",)
    assert list(complete_methods(without_tables)[0]) == ["neural"]
    HubModels(without_tables).save_pretrained(tmp_path / "copy")
    copy = HubModels.from_pretrained(str(tmp_path / "copy"))
    assert copy.load_separator(device="cpu", candidates=2).likelihood is None


def test_code_frequencies_need_no_trained_priors(without_tables, tmp_path):
    models = shutil.copytree(without_tables, tmp_path / "models")
    for source in ("bass", "drums"):
        shutil.rmtree(models / "linearisation" / f"prior_{source}")
    with pytest.raises(FileNotFoundError, match="lacks a prior_SOURCE folder per source"):
        hybrid.load_song_separator(models)
    (models / "tuned").mkdir()
    (models / "tuned" / "neural.json").write_text(json.dumps({"options": {"prior": "unigram"}}))
    assert hybrid.NEURAL_ONLY.check(models) == ("bass", "drums")
    options = {"device": "cpu", "candidates": 4}
    separator = hybrid.load_song_separator(models, **options)
    mixture = 0.1 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    stems = separator(mixture, 22_050)
    unigram = Settings(prior="unigram")
    same = hybrid.load_song_separator(without_tables, unigram, **options)(mixture, 22_050)
    assert all(torch.equal(stem, same[name]) for name, stem in stems.items())
    files = export_models(hybrid.NEURAL_ONLY, models, tmp_path / "copy")
    runs = {file.parent.name for file in files if file.suffix == ".safetensors"}
    assert runs == {"vqvae", "neural_likelihood"}
    assert hybrid.load_song_separator(tmp_path / "copy", **options).sources == ("bass", "drums")


def test_a_half_counted_family_is_still_the_hybrids(tiny_neural_models, tmp_path):
    models = shutil.copytree(tiny_neural_models, tmp_path / "models")
    (models / "linearisation" / TABLES[0]).unlink()
    assert method_of("auto", models) == "hybrid-neural"  # which says what is missing


def test_the_page_offers_a_method_with_the_first_models_that_have_it(
    without_tables, tiny_neural_models, tiny_models
):
    found = offers([without_tables, tiny_neural_models], Settings())
    assert next(iter(found.ready)) == "neural" and found.homes["neural"] == without_tables
    assert {*found.ready} == {*found.homes} >= {"hybrid-neural", "hybrid", "lqvae", "lass"}
    assert found.homes["hybrid"] == tiny_neural_models and not found.missing
    first = [next(iter(offers([m], Settings()).ready)) for m in (tiny_neural_models, tiny_models)]
    assert first == ["hybrid-neural", "hybrid"]
    missing = offers([without_tables], Settings()).missing
    assert {"lqvae", "hybrid", "hybrid-neural"} <= {*missing}


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


def test_quality_sets_candidates_and_shifts_that_are_not_given(without_tables):
    def sizes(settings=None, **options):
        separator = hybrid.load_song_separator(without_tables, settings, "cpu", **options)
        return separator.n_candidates, separator.shifts

    preset = sizes()
    assert preset == sizes(quality="default") and preset[1] == 4
    for quality, (candidates, shifts) in QUALITIES.items():
        assert sizes(quality=quality) == (candidates or preset[0], shifts)
    assert sizes(quality="best", candidates=6) == (6, 2)
    assert sizes(Settings(shifts=2), quality="best") == (QUALITIES["best"].candidates, 2)
    assert QUALITIES["fast"].candidates < PRESETS["demo"].candidates < QUALITIES["best"].candidates
