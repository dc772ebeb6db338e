"""The models that ship: what the card says of them, and how they separate."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import hybrid
import lqvae
from data.slakh import prepare
from data.synthetic import make_synthetic
from jukebox_core import Settings, audio
from jukebox_core.checkpoints import load_meta
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation import metrics
from scripts import separate

ROOT = Path(__file__).parents[1]
CARDS = {
    folder: (folder / "README.md").read_text(encoding="utf-8") for folder in hybrid.SHIPPED.values()
}
SHARED = Path(os.environ.get("LATENT_SEPARATION_SHARED", ROOT.parent / "shared"))
LENGTH = 65_536


def separated(separator, track, start):
    """The mean SDR in dB of a track's stretch, as `ablate` scores it."""
    mixture = audio.load_segment(track.mixture, start, LENGTH)[0]
    stems = separator(mixture, track.sample_rate, seed=0)
    scores = []
    for name, path in track.sources.items():
        source = audio.load_segment(path, start, LENGTH)[0]
        scores.append(float(metrics.sdr(source, stems[name] / separator.alpha[name])))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("folder", CARDS)
def test_the_folder_has_what_its_method_needs(folder):
    method = hybrid.neural_method(folder)
    assert method.runs_beside(folder, Settings())  # the mask network
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    record = json.loads((folder / "export.json").read_text())
    assert record["method"] == method.name
    assert files == {*record["files"], "export.json", "README.md"}
    for run in folder.glob("*/*/meta.json"):
        meta = load_meta(run.parent)
        assert meta["finished"] and re.fullmatch("[0-9a-f]{40}", meta["git_commit"])
        assert not any(word.startswith("/") for word in meta["command"].split())


def test_models_of_pairs_serve_three_methods():
    for method in (lqvae.METHOD, hybrid.METHOD, hybrid.NEURAL):
        assert method.check(hybrid.PRETRAINED) == ("bass", "drums")


@pytest.mark.parametrize("folder", CARDS)
def test_the_card_has_what_the_hub_asks_for(folder):
    data = ModelCard(CARDS[folder]).data
    assert data.license == "mit" and data.library_name == "latent-separation"
    assert data.pipeline_tag == "audio-to-audio" and data.tags


@pytest.mark.parametrize("sources", hybrid.SHIPPED)
def test_a_generated_song_is_separated_as_the_card_says(tmp_path, sources):
    make_synthetic(
        tmp_path / "songs",
        tracks=1,
        seconds=12,
        seed=3,
        split=(0, 0, 1),
        style="wide",
        programs="all",
        production=("all",),
        level="loudness",
        **({} if "other" in sources else {"parts": sources}),
    )
    prepare(slakh=tmp_path / "songs", output=tmp_path / "data", sources=sources)
    (track,) = load_manifest(tmp_path / "data").split("test")
    folder = hybrid.models_of(sources)
    said = float(re.search(r"mean SDR of about ([0-9.]+) dB", CARDS[folder], re.DOTALL)[1])
    method = hybrid.neural_method(folder)
    separator = method.load_separator(folder, device="cpu", candidates=8)
    assert separated(separator, track, 0) == pytest.approx(said, abs=0.3)


def test_a_real_excerpt_is_separated_as_the_results_say(tmp_path):
    excerpts = SHARED / "data" / "slakh_excerpts"
    if not excerpts.is_dir():
        pytest.skip("the excerpts of Slakh2100 are not here")
    kept = json.loads((ROOT / "docs" / "data" / "pretrained_real.json").read_text())
    (row,) = (r for r in kept["rows"] if r["row"] == "hybrid-neural, default: mask network")
    said = [sum(scores) / 2 for scores in zip(*row["chunks"].values(), strict=True)]
    prepare(slakh=excerpts, output=tmp_path / "data", limit=1)
    (track,) = load_manifest(tmp_path / "data").split("test")
    separator = hybrid.load_neural_separator(device="cpu", candidates=32)
    assert separated(separator, track, 0) == pytest.approx(said[0], abs=0.3)


def test_separate_needs_no_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    mixture = 0.1 * torch.randn(2, 22_050, generator=generator)
    audio.save("song.wav", mixture, 44_100)
    assert separate.main(["song.wav", "--candidates", "2"]) == 0
    stems = [
        audio.load(Path("stems") / "song" / f"{name}.wav") for name in ("bass", "drums", "other")
    ]
    assert all(rate == 44_100 for _, rate in stems)
    assert torch.allclose(sum(stem for stem, _ in stems), mixture, atol=1e-5)
