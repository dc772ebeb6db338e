"""Tuning and ablation on tiny models: their scores are those of the separator's own candidates."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from jukebox_core.evaluation import metrics
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.rejection import pair_posterior
from jukebox_core.separation.selection import SpectralFit
from lass.counts import load_counts
from lass.likelihood import WEIGHT, CountLikelihood
from lqvae.likelihood import SIGMA
from scripts import _sweep as _study
from scripts import ablate, separate, tune
from scripts._models import FAMILY, METHODS, build_separator
from scripts._settings import BUILT_IN, Settings, load_tuned, resolve, tuned_path
from scripts._sweep import Draw, Oracle, Picked, Refined, Single, Study, run_draws

MASK = RatioMask(BUILT_IN["mask_power"], 4096, 1024)
WAYS = {
    "oracle": Oracle(),
    "single": Single(),
    "fit": Picked(SpectralFit()),
    "mask": Refined(RatioMask(3.0, 1024, 256, 0.5)),
}


@pytest.fixture
def models(tiny_models, tmp_path):
    """The models, in a folder that tuning may write to."""
    for family in ("linearisation", "reconstruction"):
        (tmp_path / family).symlink_to(tiny_models / family)
    return tmp_path


def test_scores_equal_those_of_the_estimates_made_by_hand(models, tiny_data, tmp_path):
    study = Study(models, tiny_data, "test", 2, chunk_codes=128)
    draw = Draw.of("hybrid", 3, candidates=4, shifts=2)
    found = run_draws(study, {draw: WAYS}, tmp_path / "parts", 1)[draw]
    separator = build_separator("hybrid", models, candidates=4, shifts=2)
    generator = torch.Generator().manual_seed(3)
    for i, chunk in enumerate(study.load(128 * separator.codec.config.hop)):
        candidates = separator.candidates(chunk.mixture[None], generator)
        fit = int(SpectralFit()(chunk.mixture[None], candidates, separator.alpha).argmax())
        equal = torch.full((1, 4), 0.25)
        masked = WAYS["mask"].mask(chunk.mixture[None], candidates.audio, equal, separator.alpha)
        for name, truth in chunk.sources.items():
            raw = metrics.sdr(truth, candidates.audio[name][0])
            expected = {
                "oracle": raw.max(),
                "single": raw[0],
                "fit": raw[fit],
                "mask": metrics.sdr(truth, masked[name][0]),
            }
            for way, score in expected.items():
                assert found.values[way][name][i] == pytest.approx(float(score), abs=1e-4)
    again = run_draws(study, {draw: WAYS}, tmp_path / "parts", 1)[draw]
    assert again == found  # from the disk, the seconds included


def test_tuning_keeps_what_wins_and_the_others_read_it(models, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setitem(tune.GRIDS, "hybrid", {"temperature": (1.0, 0.5), "weight": (1.0, 4.0)})
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
    assert all(stored["options"].get(k, BUILT_IN[k]) == v for k, v in best["setting"].items())
    separator = build_separator("hybrid", models)
    assert separator.refinement.power == best["setting"]["mask_power"]
    assert build_separator("hybrid", models, mask_power=7.0).refinement.power == 7.0
    assert resolve(Settings(mask_power=7.0), models, "hybrid")["mask_power"] == 7.0
    assert load_tuned(models, "lass") == {}


def test_scores_are_kept_by_the_settings_that_made_them(models, tiny_data, tmp_path):
    study, ways = Study(models, tiny_data, "test", 2, chunk_codes=64), {"oracle": Oracle()}
    draw = Draw.of("lqvae", candidates=4)

    def scores(folder, draw=draw):
        return run_draws(study, {draw: ways}, tmp_path / folder, 1)[draw].values

    before = scores("parts")
    tuned_path(models, "lqvae").parent.mkdir()
    tuned_path(models, "lqvae").write_text('{"options": {"sigma": 0.01, "temperature": 0.3}}')
    after = scores("parts")
    assert after != before and after == scores("elsewhere")
    plain = replace(study, tuned=False)
    assert run_draws(plain, {draw: ways}, tmp_path / "parts", 1)[draw].values == before
    files = set((tmp_path / "parts").iterdir())
    explicit = Draw.of("lqvae", candidates=4, sigma=0.01, temperature=0.3)
    assert scores("parts", explicit) == after
    tuned_path(models, "lqvae").write_text(
        '{"options": {"sigma": 0.01, "temperature": 0.3, "mask_power": 3.0}}'
    )
    assert scores("parts") == after  # the mask is no part of the candidates
    assert set((tmp_path / "parts").iterdir()) == files


def test_draws_that_come_to_the_same_are_made_once(models, tiny_data, tmp_path):
    study = Study(models, tiny_data, "test", 2, chunk_codes=64)
    short, long = Draw.of("lass", candidates=2), Draw.of("lass", candidates=2, temperature=1.0)
    wanted = {short: {"oracle": Oracle()}, long: {"single": Single()}}
    found = run_draws(study, wanted, tmp_path, 1)
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert all(set(wanted[draw]) <= set(scores.values) for draw, scores in found.items())
    assert found == run_draws(study, wanted, tmp_path, 1)


def test_scores_are_kept_by_the_code_and_not_by_its_remarks(monkeypatch, tmp_path):
    plain = "def f(x):\n    return x + 1\n"
    told = '"""Module."""\n\ndef f(x):\n    """Add."""\n    return (x + 1)  # one more\n'
    monkeypatch.setattr(_study, "_CODE", ("made_up",))
    monkeypatch.setattr(_study, "__file__", str(tmp_path / "scripts" / "_study.py"))
    digests = []
    for text in (plain, told, plain.replace("+ 1", "+ 2")):
        (tmp_path / "made_up").mkdir(exist_ok=True)
        (tmp_path / "made_up" / "f.py").write_text(text)
        digests.append(_study.code_digest.__wrapped__())
    assert digests[0] == digests[1] != digests[2]


def test_all_code_that_scores_depend_on_is_identified():
    root = Path(_study.__file__).parent.parent
    assert all((root / part).exists() for part in _study._CODE)
    assert any(part.endswith("separation") for part in _study._CODE)


def test_tuning_starts_from_what_is_built_in(models, tiny_data, monkeypatch):
    """Tuned once or again, from the same scores or new ones, it finds the same."""
    monkeypatch.setitem(tune.GRIDS, "lqvae", {"sigma": (0.4, 0.05, 3.0, 1.0)})
    monkeypatch.setattr(tune, "MASKS", {name: values[:1] for name, values in tune.MASKS.items()})
    flags = ["--models", str(models), "--data", str(tiny_data), "--chunks", "2", "--jobs", "1"]
    flags += ["--method", "lqvae", "--candidates", "4", "--chunk-codes", "64", "--budget", "4"]
    path, found = tuned_path(models, "lqvae"), []
    options = {"sigma": 3.0, "sampler": "greedy", "shifts": 1}
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
    assert found[0][0]  # something is better than the built-in value here, so that this tests


@pytest.mark.parametrize("method", tune.GRIDS)
def test_a_budget_of_eight_reaches_what_matters(method):
    built_in = {"sigma": SIGMA, "weight": WEIGHT if method == "lass" else 1.0}
    left = 8 - 1
    reached = {}
    for name, values in tune.GRIDS[method].items():
        assert values[0] == (BUILT_IN[name] if BUILT_IN[name] is not None else built_in[name])
        reached[name] = values[1 : 1 + max(0, left)]
        left -= len(values) - 1
    for name in {"sigma", "weight", "temperature"} & set(tune.GRIDS[method]):
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
    study = Study(models, tiny_data, "validation", 2, 0, 128)
    draw = Draw.of("lqvae", candidates=2)
    expected = run_draws(study, {draw: {"mask": Refined(MASK)}}, models / "parts", 1)[draw]
    assert size["sdr"] == pytest.approx(sum(expected.mean("mask")) / 2)
    assert "s / chunk" in capsys.readouterr().out


def test_tuning_never_sees_test_songs(models, tiny_data, capsys):
    flags = ["--models", str(models), "--data", str(tiny_data), "--split", "test"]
    assert tune.main(flags) == 1
    assert "chosen on validation songs alone" in capsys.readouterr().err


@pytest.mark.parametrize("text", ("{", '{"options": {"colour": 1}}', "[]"))
def test_damaged_settings_are_refused(models, text, tmp_path, capsys):
    tuned_path(models, "hybrid").parent.mkdir()
    tuned_path(models, "hybrid").write_text(text)
    (tmp_path / "x.wav").write_bytes(b"")
    flags = [str(tmp_path / "x.wav"), "--models", str(models), "--output", str(tmp_path / "out")]
    assert separate.main(flags) == 1
    assert "tune" in capsys.readouterr().err


def published(method, models):
    """Those of the published settings that the method uses."""
    used = resolve(Settings(**ablate.PUBLISHED), models, method, strict=False)
    return {name: used[name] for name in ablate.PUBLISHED}


@pytest.mark.parametrize("method", METHODS)
def test_the_published_rejection_row_is_the_published_choice(models, tiny_data, tmp_path, method):
    """Of all pairs the most probable, beside the mixture as the method's codec gives it back."""
    args = ablate.Args(models, tiny_data, tmp_path, candidates=4)
    (row,) = (
        row for row in ablate.plan(args) if row.name == f"{method}, published: rejection, raw"
    )
    study = Study(models, tiny_data, "test", 2, chunk_codes=64)
    ways = {row.way: ablate.ways(args)[row.way]}
    found = run_draws(study, {row.draw: ways}, tmp_path / "parts", 1)[row.draw].values[row.way]
    separator = build_separator(method, models, candidates=4, **published(method, models))
    codec, generator = separator.codec, torch.Generator().manual_seed(0)
    for c, chunk in enumerate(study.load(64 * codec.config.hop)):
        audio, drawn = separator.candidates(chunk.mixture[None], generator)
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
            assert found[name][c] == pytest.approx(float(score), abs=1e-4)
    assert not any(str(models) in repr(way) for way in ways.values())  # kept wherever models lie


def test_the_published_settings_make_the_published_likelihoods(models):
    for method in ("lass", "hybrid"):
        settings = published(method, models)
        likelihood = build_separator(method, models, **settings).likelihood
        family = models / FAMILY[method]
        counts = load_counts(family / "counts.safetensors")[0]
        ordered = build_separator(method, models, **{**settings, "symmetric": False}).likelihood
        for code in range(counts.n_codes):
            for symmetric, found in ((True, likelihood), (False, ordered)):
                wanted = CountLikelihood(counts, symmetric=symmetric).scores(code)
                assert all(
                    a is b or torch.equal(a, b)
                    for a, b in zip(found.scores(code), wanted, strict=True)
                )


def test_every_change_is_a_step_of_its_own(models):
    steps = [
        row for row in ablate.plan(ablate.Args(models, models, models)) if "parts:" in row.name
    ]
    changed = []
    for before, after in pairwise(steps):
        old, new = (
            {**resolve(Settings(), models, "hybrid"), **dict(row.draw.options)}
            for row in (before, after)
        )
        changed.append({name for name in new if new[name] != old.get(name)})
    assert changed[0] == {"symmetric"} and changed[1] == {"backoff"}
    assert {"kernel", "weight"} == changed[2]


def test_ablation_on_tiny_models(models, tiny_data, tmp_path, capsys):
    out = tmp_path / "ablation"
    flags = ["--models", str(models), "--data", str(tiny_data), "--output", str(out)]
    flags += ["--chunks", "2", "--candidates", "4", "--seeds", "2", "--chunk-codes", "128"]
    assert ablate.main([*flags, "--jobs", "1"]) == 0
    found = json.loads((out / "ablation.json").read_text())
    rows = {row["row"]: row for row in found["rows"]}
    for method in ("lqvae", "lass", "hybrid"):
        oracle, picked = (
            rows[f"{method}, published: {name}"]["chunks"]
            for name in ("oracle, raw", "rejection, raw")
        )
        assert rows[f"{method}, published: rejection, raw"]["way"].startswith("rejection, publ")
        for source in ("bass", "drums"):  # a mean over seeds of maxima over the same candidates
            assert all(a >= b - 1e-9 for a, b in zip(oracle[source], picked[source], strict=True))
    for item in found["comparisons"]:
        first, second = (rows[item[key]]["sdr"]["mean"]["mean"] for key in ("first", "second"))
        assert item["difference"]["mean"]["mean"] == pytest.approx(first - second, abs=1e-9)
    asked = {(item["first"], item["second"]) for item in found["comparisons"]}
    parts = [row for row in rows if row.startswith("parts:")]
    assert {(after, before) for before, after in pairwise(parts)} <= asked and len(parts) == 9
    for method in ("lqvae", "lass", "hybrid"):
        assert (f"{method}, default: refined", f"{method}, published: refined") in asked
    for method in ("lqvae", "lass"):
        assert ("hybrid, default: selected, raw", f"{method}, default: selected, raw") in asked
    text = (out / "ablation.md").read_text()
    assert all(row.partition(",")[2] in text for row in rows)
    assert (out / "ablation.png").stat().st_size and (out / "sdr_scatter.png").stat().st_size


def test_every_part_builds_on_the_one_before_and_the_last_is_the_default(models):
    args = ablate.Args(models=models, data=models, output=models)
    rows = list(ablate.plan(args))
    parts = [row for row in rows if row.name.startswith("parts:")]
    chosen = resolve(Settings(), models, "hybrid")
    for before, after in pairwise(parts):
        old, new = ({**chosen, **dict(row.draw.options)} for row in (before, after))
        assert new != old or after.way != before.way
        for name, value in old.items():  # what is as it will be stays so
            assert value != chosen.get(name) or new[name] == value, (after.name, name)
    (default,) = (row for row in rows if row.name == "hybrid, default: refined")
    assert (parts[-1].draw, parts[-1].way) == (default.draw, default.way)
