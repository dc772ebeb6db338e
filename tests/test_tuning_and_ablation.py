"""Tuning and ablation on tiny models score the separator's own candidates."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from jukebox_core.checkpoints import load_codec
from jukebox_core.evaluation import metrics
from jukebox_core.evaluation.estimates import First, Masked, Oracle, Selected
from jukebox_core.kept import code_digest, key_of
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.rejection import pair_posterior
from jukebox_core.separation.selection import SpectralFit
from jukebox_core.separation.settings import DEFAULTS, Settings, load_tuned, tuned_path
from lass.counts import load_counts
from lass.likelihood import CountLikelihood
from scripts import ablate, separate, tune
from scripts._methods import METHODS, PUBLISHED_METHODS
from scripts._sweep import Draw, Sweep, run_draws
from scripts.ablate.rows import PUBLISHED, estimators, rows
from scripts.ablate.tables import Table

ESTIMATORS = {
    "oracle": Oracle(),
    "single": First(),
    "fit": Selected.by(SpectralFit()),
    "mask": Masked(RatioMask(3.0, 1024, 256, 0.5)),
}


@pytest.fixture
def models(tiny_models, tmp_path):
    """The models, in a folder that tuning may write to."""
    for family in ("linearisation", "reconstruction"):
        (tmp_path / family).symlink_to(tiny_models / family)
    return tmp_path


def test_scores_equal_estimates_made_by_hand(models, tiny_data, tmp_path):
    sweep = Sweep(models, tiny_data, "test", 2, chunk_codes=128)
    draw = Draw("hybrid", Settings(shifts=2), candidates=4, seed=3)
    found = run_draws(sweep, {draw: ESTIMATORS}, tmp_path / "parts", 1)[draw]
    separator = METHODS["hybrid"].load_separator(models, Settings(shifts=2), candidates=4)
    generator = torch.Generator().manual_seed(3)
    for i, chunk in enumerate(sweep.load(128 * separator.codec.config.hop)):
        mixture = chunk.mixture[None]
        candidates = separator.candidates(mixture, generator)
        fit = int(SpectralFit()(mixture, candidates).argmax())
        masked = ESTIMATORS["mask"].mask(mixture, candidates, torch.full((1, 4), 0.25))
        for name, truth in chunk.sources.items():
            raw = metrics.sdr(truth, candidates.audio[name][0])
            expected = {
                "oracle": raw.max(),
                "single": raw[0],
                "fit": raw[fit],
                "mask": metrics.sdr(truth, masked[name][0]),
            }
            for estimator, score in expected.items():
                assert found.values[estimator][name][i] == pytest.approx(float(score), abs=1e-4)
    again = run_draws(sweep, {draw: ESTIMATORS}, tmp_path / "parts", 1)[draw]
    assert again == found  # from the disk, the seconds included


def test_tuning_keeps_what_wins_and_the_others_read_it(models, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setitem(tune.GRIDS, "hybrid", {"temperature": (1.0, 0.5), "exponent": (1.0, 4.0)})
    flags = ["--models", str(models), "--data", str(tiny_data), "--chunks", "2", "--jobs", "1"]
    flags += ["--candidates", "3", "--chunk-codes", "128", "--budget", "2"]
    assert tune.main(flags) == 0
    stored = json.loads(tuned_path(models, "hybrid").read_text())
    masks = [t for t in stored["tried"] if "mask_power" in t["setting"]]
    base, *draws = [t for t in stored["tried"] if "mask_power" not in t["setting"]]
    assert base["setting"] == {} and base["gain"] == 0
    assert len(draws) == 1  # the first draw of the budget is the default's
    assert all(t["sdr"] == pytest.approx(sum(t["chunks"]) / 2) for t in stored["tried"])
    assert ("temperature" in stored["options"]) == (draws[0]["gain"] > 0)
    best = max(masks, key=lambda t: t["sdr"])
    chosen = vars(DEFAULTS) | stored["options"]
    assert chosen | best["setting"] == chosen
    method = METHODS["hybrid"]
    load = method.load_separator
    assert load(models).mask.power == best["setting"]["mask_power"]
    assert load(models, Settings(mask_power=7.0)).mask.power == 7.0
    assert method.resolve(Settings(mask_power=7.0), models).mask_power == 7.0
    assert load_tuned(models, "lass") == Settings()


def test_scores_are_kept_by_the_settings_that_made_them(models, tiny_data, tmp_path):
    sweep, oracle = Sweep(models, tiny_data, "test", 2, chunk_codes=64), {"oracle": Oracle()}
    draw = Draw("lqvae", candidates=4)

    def scores(folder, draw=draw):
        return run_draws(sweep, {draw: oracle}, tmp_path / folder, 1)[draw].values

    before = scores("parts")
    tuned_path(models, "lqvae").parent.mkdir()
    tuned_path(models, "lqvae").write_text('{"options": {"sigma": 0.01, "temperature": 0.3}}')
    after = scores("parts")
    assert after != before and after == scores("elsewhere")
    plain = replace(sweep, tuned=False)
    assert run_draws(plain, {draw: oracle}, tmp_path / "parts", 1)[draw].values == before
    files = set((tmp_path / "parts").iterdir())
    explicit = draw._replace(settings=Settings(sigma=0.01, temperature=0.3))
    assert scores("parts", explicit) == after
    tuned_path(models, "lqvae").write_text(
        '{"options": {"sigma": 0.01, "temperature": 0.3, "mask_power": 3.0}}'
    )
    assert scores("parts") == after  # the mask is no part of the candidates
    assert set((tmp_path / "parts").iterdir()) == files


def test_draws_that_come_to_the_same_are_made_once(models, tiny_data, tmp_path):
    sweep = Sweep(models, tiny_data, "test", 2, chunk_codes=64)
    short = Draw("lass", candidates=2)
    long = short._replace(settings=Settings(temperature=1.0))
    wanted = {short: {"oracle": Oracle()}, long: {"single": First()}}
    found = run_draws(sweep, wanted, tmp_path, 1)
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert all(set(wanted[draw]) <= set(scores.values) for draw, scores in found.items())
    assert found == run_draws(sweep, wanted, tmp_path, 1)


def test_the_digest_of_the_code_covers_every_file_but_no_comments(tmp_path):
    root = Path(__file__).parent.parent
    digest = code_digest.__wrapped__
    for package in ("jukebox_core", "lqvae", "lass", "hybrid", "scripts"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / package, tmp_path / package, ignore=skip)
        assert digest(package, tmp_path) == digest(package)
        for path in [p for p in (root / package).rglob("*") if p.suffix in (".py", ".c")]:
            alone = tmp_path / "alone" / path.relative_to(root)  # to parse no other file again
            alone.parent.mkdir(parents=True)
            alone.write_text(path.read_text())
            before = digest(package, tmp_path / "alone")
            with alone.open("a") as file:
                file.write("\nADDED = 1\n" if path.suffix == ".py" else "\nint a;\n")
            assert digest(package, tmp_path / "alone") != before, path
            shutil.rmtree(tmp_path / "alone")
    losses = tmp_path / "jukebox_core/vqvae/losses.py"
    before = digest("jukebox_core", tmp_path)
    losses.write_text(losses.read_text().replace('"""', '"""Other words. ', 1) + "# a comment\n")
    assert digest("jukebox_core", tmp_path) == before


def test_the_key_of_scores_depends_on_the_code_of_all_packages(monkeypatch):
    monkeypatch.setattr("jukebox_core.kept.code_digest", lambda package: package)
    keys = [key_of({}, *users) for users in ((), (Sweep,), (Sweep, type(METHODS["lass"])))]
    assert len(set(keys)) == 3


def test_tuning_starts_from_the_defaults(models, tiny_data, monkeypatch):
    """Tuned once or again, from the same scores or new ones, it finds the same."""
    monkeypatch.setitem(tune.GRIDS, "lqvae", {"sigma": (0.4, 0.05, 3.0, 1.0)})
    monkeypatch.setattr(tune, "MASKS", {name: values[:1] for name, values in tune.MASKS.items()})
    flags = ["--models", str(models), "--data", str(tiny_data), "--chunks", "2", "--jobs", "1"]
    flags += ["--method", "lqvae", "--candidates", "4", "--chunk-codes", "64", "--budget", "4"]
    path, found = tuned_path(models, "lqvae"), []
    options = {"sigma": 3.0, "sampler": "beam", "shifts": 1}
    for stored in (None, None, {"options": options, "tried": [], "study": {}}):
        if stored is not None:
            path.write_text(json.dumps(stored))
            shutil.rmtree(path.with_suffix(".parts"))
        assert tune.main(flags) == 0
        new = json.loads(path.read_text())
        for tried in new["tried"]:
            tried.pop("seconds", None)
        found.append((new["options"], new["tried"]))
    assert found[0] == found[1] == found[2]
    assert found[0][0]  # something is better than the default here, so that this tests


@pytest.mark.parametrize("method", tune.GRIDS)
def test_a_budget_of_eight_reaches_what_matters(method):
    defaults = METHODS[method].resolve(Settings())
    left = 8 - 1
    reached = {}
    for name, values in tune.GRIDS[method].items():
        assert values[0] == getattr(defaults, name)
        reached[name] = values[1 : 1 + max(0, left)]
        left -= len(values) - 1
    for name in {"sigma", "exponent", "temperature"} & set(tune.GRIDS[method]):
        assert reached[name] == tune.GRIDS[method][name][1:]


def test_tuning_tells_what_other_numbers_of_candidates_are_worth(
    models, tiny_data, monkeypatch, capsys
):
    monkeypatch.setitem(tune.GRIDS, "lqvae", {})
    flags = ["--models", str(models), "--data", str(tiny_data), "--chunks", "2", "--jobs", "1"]
    flags += ["--method", "lqvae", "--candidates", "3", "--chunk-codes", "128", "--budget", "2"]
    assert tune.main([*flags, "--sizes", "2", "5"]) == 0
    stored = json.loads(tuned_path(models, "lqvae").read_text())
    (size,) = (t for t in stored["tried"] if "candidates" in t["setting"])  # the budget is spent
    assert size["setting"] == {"candidates": 2} and "candidates" not in stored["options"]
    sweep = Sweep(models, tiny_data, "validation", 2, 0, 128)
    draw, mask = Draw("lqvae", candidates=2), {"mask": Masked(DEFAULTS.make_mask())}
    expected = run_draws(sweep, {draw: mask}, models / "parts", 1)[draw]
    assert size["sdr"] == pytest.approx(sum(expected.mean("mask")) / 2)
    assert "s / chunk" in capsys.readouterr().out


@pytest.mark.parametrize("text", ("{", '{"options": {"colour": 1}}', "[]"))
def test_damaged_settings_are_refused(models, text, tmp_path, capsys):
    tuned_path(models, "hybrid").parent.mkdir()
    tuned_path(models, "hybrid").write_text(text)
    (tmp_path / "x.wav").write_bytes(b"")
    flags = [str(tmp_path / "x.wav"), "--models", str(models), "--output", str(tmp_path / "out")]
    assert separate.main(flags) == 1
    assert "tune" in capsys.readouterr().err


@pytest.mark.parametrize("method", PUBLISHED_METHODS)
def test_the_published_rejection_is_the_published_selection(models, tiny_data, tmp_path, method):
    """The most probable of all pairs, compared with the codec's round trip of the mixture."""
    name = f"{method}, published: rejection, raw"
    (row,) = (row for row in rows(models, 4, True) if row.name == name)
    sweep = Sweep(models, tiny_data, "test", 2, chunk_codes=64)
    estimator = estimators(models)[row.estimator]
    assert str(models) not in repr(estimator)  # scores are kept wherever the models are
    scores = run_draws(sweep, {row.draw: {"pair": estimator}}, tmp_path / "parts", 1)[row.draw]
    separator = METHODS[method].load_separator(models, published(method), candidates=4)
    codec, generator = separator.codec, torch.Generator().manual_seed(0)
    for c, chunk in enumerate(sweep.load(64 * codec.config.hop)):
        audio, _, drawn = separator.candidates(chunk.mixture[None], generator)
        with torch.no_grad():
            target = codec.decode(codec.encode(chunk.mixture[None]))[0]
        table = pair_posterior(
            tuple(drawn.log_prior[name][0] for name in separator.sources),
            tuple(audio[name][0] for name in separator.sources),
            target,
            tuple(separator.alpha.values()),
            64,
        ).posterior
        best = max((float(table[i, j]), (i, j)) for i in range(4) for j in range(4))[1]
        for name, n in zip(separator.sources, best, strict=True):
            score = metrics.sdr(chunk.sources[name], audio[name][0, n])
            assert scores.values["pair"][name][c] == pytest.approx(float(score), abs=1e-4)


def published(method):
    """The published settings that the method uses."""
    used = METHODS[method].resolve(PUBLISHED, strict=False)
    return Settings(**{name: getattr(used, name) for name in PUBLISHED.explicit()})


def test_the_published_settings_make_the_published_likelihoods(models):
    for name in ("lass", "hybrid"):
        method = METHODS[name]
        counts = load_counts(method.folder(models) / "counts.safetensors")[0]
        for symmetric in (True, False):
            settings = replace(published(name), symmetric=symmetric)
            likelihood = method.load_separator(models, settings).likelihood
            wanted = CountLikelihood(counts, symmetric=symmetric)
            for code in range(counts.n_codes):
                pairs = zip(likelihood.scores(code), wanted.scores(code), strict=True)
                assert all(a is b or torch.equal(a, b) for a, b in pairs)


def test_every_part_is_a_step_towards_the_default(models):
    tuned_path(models, "hybrid").parent.mkdir()
    tuned_path(models, "hybrid").write_text('{"options": {"sigma": 0.2, "mask_power": 3.0}}')
    every = list(rows(models, 16, True))
    parts = [row for row in every if row.name.startswith("parts:")]
    full = vars(METHODS["hybrid"].resolve(Settings(), models))
    changes = []
    for before, after in pairwise(parts):
        old, new = (full | row.draw.settings.explicit() for row in (before, after))
        changes.append({name for name in new if new[name] != old[name]})
        assert changes[-1] or after.estimator != before.estimator
        for name, value in old.items():  # a value of the default stays
            assert value != full[name] or new[name] == value, (after.name, name)
    assert changes[:3] == [{"symmetric"}, {"smoothing"}, {"gaussian", "exponent"}]
    (default,) = (row for row in every if row.name == "hybrid, default: refined")
    assert (parts[-1].draw, parts[-1].estimator) == (default.draw, default.estimator)


def test_ablation_on_tiny_models(models, tiny_data, tmp_path, capsys):
    out = tmp_path / "ablation"
    flags = ["--models", str(models), "--data", str(tiny_data), "--output", str(out)]
    flags += ["--chunks", "2", "--candidates", "4", "--seeds", "2", "--chunk-codes", "128"]
    assert ablate.main([*flags, "--jobs", "1"]) == 0
    found = json.loads((out / "ablation.json").read_text())
    lines = {row["row"]: row for row in found["rows"]}
    for method in ("lqvae", "lass", "hybrid"):
        oracle, picked = (
            lines[f"{method}, published: {name}"]["chunks"]
            for name in ("oracle, raw", "rejection, raw")
        )
        for source in ("bass", "drums"):  # a mean over seeds of maxima over the same candidates
            assert all(a >= b - 1e-9 for a, b in zip(oracle[source], picked[source], strict=True))
    for item in found["comparisons"]:
        first, second = (lines[item[key]]["sdr"]["mean"]["mean"] for key in ("first", "second"))
        assert item["difference"]["mean"]["mean"] == pytest.approx(first - second, abs=1e-9)
    asked = {(item["first"], item["second"]) for item in found["comparisons"]}
    parts = [row for row in lines if row.startswith("parts:")]
    assert {(after, before) for before, after in pairwise(parts)} <= asked and len(parts) == 9
    for method in ("lqvae", "lass", "hybrid"):
        assert (f"{method}, default: refined", f"{method}, published: refined") in asked
    for method in ("lqvae", "lass"):
        assert ("hybrid, default: selected, raw", f"{method}, default: selected, raw") in asked
    text = (out / "ablation.md").read_text()
    assert all(row.partition(",")[2] in text for row in lines)
    assert (out / "ablation.png").stat().st_size and (out / "sdr_scatter.png").stat().st_size


def test_a_method_may_lie_in_a_single_file():
    user = type("Method", (), {"__module__": "argparse"})  # argparse.py is no package
    assert key_of({}, user) == key_of({}, user) != key_of({})


def test_all_chunks_of_every_song_without_the_models_of_lass(models, tiny_data, tmp_path, capsys):
    (models / "reconstruction").unlink()
    out = tmp_path / "ablation"
    flags = ["--models", str(models), "--data", str(tiny_data), "--output", str(out), "--no-parts"]
    flags += ["--chunks-per-song", "2", "--chunk-codes", "128", "--candidates", "2", "--seeds", "1"]
    assert ablate.main([*flags, "--jobs", "1"]) == 0
    table = json.loads((out / "ablation.json").read_text())
    assert "LASS" not in capsys.readouterr().out
    assert ablate.main([*flags, "--jobs", "1", "--methods", "lass"]) == 1
    assert "reconstruction is missing" in capsys.readouterr().err
    names = {row["row"].split(",")[0] for row in table["rows"]}
    assert {"hybrid", "lqvae"} < names and "lass" not in names
    sweep = Sweep(models, tiny_data, "test", 0, chunks_per_song=2)
    chunks = sweep.load(128 * load_codec(models / "linearisation" / "vqvae").config.hop)
    songs = [chunk.track for chunk in chunks]
    assert max(songs.count(song) for song in songs) == 2
    (row,) = (row for row in table["rows"] if row["row"] == "baseline: mixture")
    for source, scores in row["chunks"].items():
        expected = [float(metrics.sdr(c.sources[source], c.mixture)) for c in chunks]
        assert scores == pytest.approx(expected)
    assert row["songs"] == songs


def test_intervals_of_a_single_song_are_over_its_chunks():
    def line(songs):
        table = Table([], {}, 1, ("bass", "drums"), songs)
        table.add("some", {"bass": [1.0, 2.0, 4.0, 8.0], "drums": [0.0, 3.0, 1.0, 2.0]})
        return table.line("some")

    single, many = line(["a"] * 4), line(["a", "b", "c", "d"])
    assert single["sdr"] == many["sdr"] and "songs" not in single
    assert single["sdr"]["bass"]["low"] < single["sdr"]["bass"]["high"]
    assert line(["a", "a", "b", "b"])["songs"] == ["a", "a", "b", "b"]
