"""Three sources from the data to the stems, with tiny models."""

import json

import numpy as np
import pytest
import torch
from upstream_files import refused

import hybrid
import lass
import lqvae
from hybrid.likelihood import PooledLikelihood
from jukebox_core import audio
from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.chunks import choose_chunks
from jukebox_core.evaluation.scores import score, sdr
from jukebox_core.separation.chain import Chain
from jukebox_core.separation.partial_sums import steps_of, tables_of
from jukebox_core.separation.settings import Settings
from jukebox_core.separation.uncertainty import Uncertainty
from lass.counts import load_counts
from lass.likelihood import SmoothedLikelihood
from lass.link import CountLink
from lass.triples import PairCounting
from lqvae.likelihood import LatentGaussianLikelihood
from lqvae.link import SumLink
from lqvae.sums import code_sums, load_sums
from scripts import ablate, count_sums, precompute_sums, separate
from scripts._methods import METHODS, complete_methods
from scripts.ablate.tables import Table, row_cells
from scripts.app.jobs import JobQueue, Limits
from scripts.app.page import results
from tests.conftest import write_data_set

NAMES = ("bass", "drums", "other")
LOADERS = {
    "lqvae": (lqvae.load_separator, "linearisation", SumLink, LatentGaussianLikelihood),
    "lass": (lass.load_separator, "reconstruction", CountLink, SmoothedLikelihood),
    "hybrid": (hybrid.load_separator, "linearisation", CountLink, PooledLikelihood),
    "neural": (hybrid.load_neural_separator, "linearisation", CountLink, PooledLikelihood),
}


def mixture(data):
    song, rate = audio.load(load_manifest(data).split("test")[0].mixture)
    return song[:, : rate // 2], rate


def test_steps_add_up_to_the_mixture():
    alpha = {"piano": 0.4, "bass": 0.1, "drums": 0.2, "guitar": 0.3}
    names, waves = (
        sorted(alpha),
        dict(zip(alpha, np.random.default_rng(0).random((4, 9)), strict=True)),
    )
    steps = steps_of(alpha)
    assert [step.names for step in steps] == [
        ("bass", "drums"),
        ("bass+drums", "guitar"),
        ("bass+drums+guitar", "piano"),
    ]
    sums = [waves[names[0]]]
    for step in steps:
        inside = sum(weight * waves[name] for name, weight in step.first.items())
        np.testing.assert_allclose(inside, sums[-1])
        assert sum(step.first.values()) == pytest.approx(1)
        sums.append(step.weights[0] * inside + step.weights[1] * waves[step.second])
    np.testing.assert_allclose(sums[-1], sum(alpha[name] * waves[name] for name in alpha))
    assert all(sum(step.weights) == pytest.approx(1) for step in steps[:-1])
    assert tables_of("counts.safetensors", 4) == (
        "counts_2.safetensors",
        "counts_3.safetensors",
        "counts.safetensors",
    )
    assert tables_of("counts.safetensors", 2) == ("counts.safetensors",)
    three = steps_of({"piano": 0.2, "drums": 0.3, "bass": 0.5})
    assert [step.names for step in three] == [("bass", "drums"), ("bass+drums", "piano")]
    two = steps_of({"drums": 0.7, "bass": 0.4})
    assert [(s.names, s.weights, s.first) for s in two] == [
        (("drums", "bass"), (0.7, 0.4), {"drums": 1.0})
    ]


def test_code_sums_of_every_step(three_source_models):
    family = three_source_models / "linearisation"
    codec = load_codec(family / "vqvae")
    for size, weights in ((2, (0.5, 0.5)), (3, (2 / 3, 1 / 3))):
        table = load_sums(family / tables_of("sums.safetensors", 3)[size - 2], place=f"{size} of 3")
        assert torch.equal(table, code_sums(codec.codebook, weights))


def test_counts_of_every_step_are_of_sums_of_songs(three_source_models, three_sources):
    """The first source of the second table is the sum of two sources, encoded."""
    family = three_source_models / "linearisation"
    codec, manifest = load_codec(family / "vqvae"), load_manifest(three_sources)
    tracks = manifest.split("train")
    for step, table in zip(
        steps_of(manifest.alpha), tables_of("counts.safetensors", 3), strict=True
    ):
        counts, _ = load_counts(family / table, fingerprint(family / "vqvae"), step.names)
        assert counts.counts.sum() == 20 * 8 * 1024
    plan = PairCounting(pairs=2, crop=64, pairing="song", shifts=1)
    weights = dict(zip(step.names, step.weights, strict=True))
    triples = next(plan.iterate(codec, tracks, weights, parts={step.names[0]: step.first}))
    whole = [
        codec.encode(torch.stack([sum(0.5 * x[name] for name in NAMES[:2]), x["other"], x["all"]]))
        for x in (songs_of(track) for track in tracks)
    ]
    for row in zip(*triples, strict=True):
        places = [
            (codes.unfold(1, 64, 1) == torch.from_numpy(np.stack(row)).unsqueeze(1)).float()
            for codes in whole
        ]
        assert max(float(found.mean((0, 2)).max()) for found in places) > 0.97


def songs_of(track):
    """{source: [T]}, T a multiple of the hop; all: the mixture."""
    files = {**track.sources, "all": track.mixture}
    loaded = {name: audio.load(path)[0][0] for name, path in files.items()}
    return {name: x[: len(x) // 64 * 64] for name, x in loaded.items()}


@pytest.mark.parametrize("name", LOADERS)
def test_stems_of_every_method_sum_to_the_mixture(three_source_models, three_sources, name):
    load, family, link, last = LOADERS[name]
    separator = load(three_source_models, device="cpu", candidates=4)
    assert separator.sources == NAMES and isinstance(separator.likelihood, Chain)
    assert [type(each) for each in separator.likelihood.links] == [link]
    assert isinstance(separator.likelihood.last, last)
    song, rate = mixture(three_sources)
    stems = separator(song, rate, uncertainty=Uncertainty())
    assert tuple(stems) == NAMES
    torch.testing.assert_close(sum(stems.values()), song, rtol=0, atol=2e-6)
    assert all(stem.abs().max() > 0.01 for stem in stems.values())
    again = separator(song, rate, batch=2)
    assert all(torch.equal(stems[source], again[source]) for source in NAMES)
    raw = separator(song, rate, refine=False)
    assert tuple(raw) == NAMES and all(x.shape == song.shape for x in raw.values())


def test_counts_without_smoothing_are_refused(three_source_models):
    with pytest.raises(ValueError, match="smoothing is 0.*more than two sources"):
        lass.load_separator(three_source_models, Settings(smoothing=0.0), device="cpu")


def test_tables_of_another_number_of_sources_are_refused(three_source_models, tmp_path):
    family = tmp_path / "linearisation"
    family.mkdir()
    here = three_source_models / "linearisation"
    for part in ("vqvae", "prior_bass", "prior_drums", "sums.safetensors", "counts.safetensors"):
        (family / part).symlink_to(here / part)
    with pytest.raises(ValueError, match="sums.safetensors is the table of sum 3 of 3 sources"):
        lqvae.load_separator(tmp_path, device="cpu")
    with pytest.raises(ValueError, match=r"counts bass\+drums and other, expected bass and drums"):
        hybrid.load_separator(tmp_path, device="cpu")
    (family / "prior_other").symlink_to(here / "prior_other")
    flags = ["--vqvae", str(here / "vqvae"), "--output", str(tmp_path / "x/sums.safetensors")]
    assert precompute_sums.main([*flags, "--alpha", "0.6", "0.2", "0.2"]) == 0
    wrong = tmp_path / "x/sums_2.safetensors"
    with pytest.raises(ValueError, match="sums_2.safetensors has the weights 0.7.* 0.5 0.5"):
        load_sums(wrong, place="2 of 3", weights=(0.5, 0.5))
    (family / "sums_2.safetensors").symlink_to(wrong)
    with pytest.raises(ValueError, match="compute the code sums with the gains of all sources"):
        lqvae.load_separator(tmp_path, device="cpu")
    (family / "sums_2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="sums_2.safetensors is missing"):
        lqvae.load_separator(tmp_path, device="cpu")
    with pytest.raises(FileNotFoundError, match="counts_2.safetensors is missing"):
        hybrid.load_separator(tmp_path, device="cpu")


def test_the_prior_of_another_source_is_refused(three_source_models, tmp_path):
    models = tmp_path / "models" / "linearisation"
    models.mkdir(parents=True)
    for part in (three_source_models / "linearisation").iterdir():
        (models / part.name).symlink_to(part)
    (models / "prior_other").unlink()
    (models / "prior_other").symlink_to(three_source_models / "linearisation" / "prior_bass")
    for refuse in (METHODS["lqvae"].check, METHODS["lqvae"].load_separator):
        with pytest.raises(ValueError, match="prior_other is the prior of bass, not of other"):
            refuse(models.parent)


def test_separate_writes_a_stem_per_source(three_source_models, three_sources, tmp_path):
    song = load_manifest(three_sources).split("test")[0].mixture
    flags = ["--models", str(three_source_models), "--output", str(tmp_path / "stems")]
    assert separate.main([*flags, "--device", "cpu", "--candidates", "4", str(song)]) == 0
    (folder,) = [path for path in (tmp_path / "stems").iterdir() if path.is_dir()]
    stems = {path.stem: audio.load(path)[0] for path in folder.glob("*.wav")}
    assert set(NAMES) <= set(stems)
    total = sum(stems[name] for name in NAMES)
    torch.testing.assert_close(total, audio.load(song)[0], rtol=0, atol=1e-4)


def test_counts_of_parts_are_merged_for_every_sum(three_source_models, three_sources, tmp_path):
    family = three_source_models / "linearisation"
    flags = ["--vqvae", str(family / "vqvae"), "--data", str(three_sources), "--device", "cpu"]
    flags += ["--iterations", "2", "--pairs", "2", "--crop", "64"]
    for seed in ("1", "2"):
        output = str(tmp_path / f"part{seed}.safetensors")
        assert count_sums.main([*flags, "--seed", seed, "--output", output]) == 0
    parts = [str(tmp_path / f"part{seed}.safetensors") for seed in (1, 2)]
    whole = tmp_path / "part2.safetensors"
    whole.rename(tmp_path / "away")
    assert count_sums.main(["--merge", *parts, "--output", str(tmp_path / "all.safetensors")]) == 1
    assert not list(tmp_path.glob("all*"))
    (tmp_path / "away").rename(whole)
    assert count_sums.main(["--merge", *parts, "--output", str(tmp_path / "all.safetensors")]) == 0
    for suffix, names in (("_2", NAMES[:2]), ("", ("bass+drums", "other"))):
        merged, _ = load_counts(tmp_path / f"all{suffix}.safetensors", sources=names)
        assert merged.counts.sum() == 2 * 2 * 2 * 64


def test_weights_that_make_no_mixture_are_refused(capsys, three_source_models, tmp_path):
    run = str(three_source_models / "linearisation" / "vqvae")
    for alpha in (["1"], ["0", "0", "1"], ["0.5", "-0.5"]):
        flags = ["--vqvae", run, "--output", str(tmp_path / "sums"), "--alpha", *alpha]
        assert precompute_sums.main(flags) != 0
        assert "alpha" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_nearly_silent_source_has_no_score(three_source_models, three_sources, tmp_path):
    """The tail of a reverb is no part: it would be scored -50 dB."""
    manifest = load_manifest(three_sources)
    songs = {}
    for number, track in enumerate(manifest.split("test") + manifest.split("train"), start=1):
        sources = {name: audio.load(path)[0][0] for name, path in track.sources.items()}
        sources["other"] *= 1e-5 if number == 1 else 1.0
        songs[f"Track{number:05d}"] = ("test", sources)
    data = write_data_set(tmp_path / "data", dict([*songs.items()][:2]))
    chunks, _ = choose_chunks(load_manifest(data), "test", 2, 8_000, 0, audio.is_silent)
    assert [chunk.silent for chunk in chunks] == [{"other"}, set()]
    quiet, loud = chunks
    stems = {name: wave + 0.1 for name, wave in quiet.sources.items()}
    scores = score(quiet, stems)
    assert {*scores["other"].values()} == {None} and sdr(quiet, "other", stems["other"]) is None
    assert None not in scores["bass"].values()
    assert sdr(quiet, "bass", stems["bass"]) == scores["bass"]["sdr"]
    assert sdr(loud, "other", loud.sources["other"] / 2) == pytest.approx(20 * np.log10(2))

    out = tmp_path / "ablation"
    flags = ["--models", str(three_source_models), "--data", str(data), "--output", str(out)]
    flags += ["--no-parts", "--chunks-per-song", "1", "--chunk-codes", "64", "--candidates", "2"]
    flags += ["--seeds", "1", "--jobs", "1", "--methods", "hybrid"]
    assert ablate.main(flags) == 0
    table = json.loads((out / "ablation.json").read_text())
    rows = {row["row"]: row for row in table["rows"]}
    for row in rows.values():
        (_, bass), (_, drums), (silent, other) = (row["chunks"][name] for name in NAMES)
        assert silent is None and row["sdr"]["other"]["n"] == 1
        assert row["sdr"]["other"]["mean"] == pytest.approx(other)
        first = (row["chunks"]["bass"][0] + row["chunks"]["drums"][0]) / 2
        expected = (first + (bass + drums + other) / 3) / 2
        assert row["sdr"]["mean"]["mean"] == pytest.approx(expected)
    for item in table["comparisons"]:
        first, second = (rows[item[key]]["sdr"] for key in ("first", "second"))
        for name in (*NAMES, "mean"):
            gap = first[name]["mean"] - second[name]["mean"]
            assert item["difference"][name]["mean"] == pytest.approx(gap)


def test_a_source_that_is_always_silent_has_no_interval():
    table = Table([], {}, 1, NAMES, ["a", "b"])
    table.add("a", {"bass": [1.0, 2.0], "drums": [3.0, 6.0], "other": [None, None]})
    line = table.line("a")
    assert line["sdr"]["other"]["mean"] is None and line["sdr"]["mean"]["mean"] == 3.0
    assert row_cells(line)[3] == "-" and json.dumps(line, allow_nan=False)


def test_the_app_shows_every_stem(three_source_models, three_sources, tmp_path):
    ready, _ = complete_methods(three_source_models)
    assert ready["hybrid"] == NAMES
    song = load_manifest(three_sources).split("test")[0].mixture
    queue = JobQueue(
        tmp_path / "results",
        lambda method: METHODS[method].load_separator(three_source_models, candidates=2),
        Limits(),
    )
    try:
        page = results(queue.submit(song, "hybrid-neural").result())
    finally:
        queue.close()
    for name in NAMES:
        assert f'data-track="{name}"' in page
    assert "two of the bass, the drums and the other are equally likely" in page


@pytest.mark.parametrize("table", ("counts", "sums", "sums_2"))
def test_upstreams_formats_have_two_sources(capsys, three_source_models, tmp_path, table):
    path = three_source_models / "linearisation" / f"{table}.safetensors"
    said = refused(capsys, table.split("_")[0], path, tmp_path / "out", "--back")
    assert str(path) in said and "3" in said
