"""Parts of the counted likelihood, switched by flags: the scores equal explicit tables."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import hybrid
from jukebox_core import audio
from jukebox_core.checkpoints import fingerprint
from jukebox_core.separation.likelihood import PairScores
from jukebox_core.separation.settings import Settings, tuned_path
from lass.counts import count_triples, load_counts, save_counts
from scripts import count_sums, evaluate, score_likelihood, separate
from scripts._methods import METHODS


def music(seconds=0.7):
    g = torch.Generator().manual_seed(0)
    time = torch.arange(int(seconds * 22_050)) / 22_050
    tone = 0.3 * torch.sin(2 * torch.pi * 110 * time)
    return (tone + 0.1 * torch.randn(1, len(time), generator=g)).clamp(-1, 1)


class Table:
    """Scores [K, K, K], m last, of all pairs."""

    def __init__(self, scores):
        self.n_codes = len(scores)
        self._scores = torch.from_numpy(scores).float()

    def scores(self, mixture_code):
        return PairScores(self._scores[:, :, mixture_code].flatten())


def smoothed_table(counts, concentration, exponent, symmetric):
    """Scores of counts smoothed with p(m), in float64."""
    k = counts.n_codes
    table = np.zeros((k, k, k))
    for i, j, m, n in zip(*counts[1:5], strict=True):
        table[i, j, m] += n
        if symmetric:
            table[j, i, m] += n
    overall = table.sum((0, 1)) + 0.5
    p = table + concentration * overall / overall.sum()
    return exponent * np.log(p / (table.sum(2, keepdims=True) + concentration))


@pytest.mark.parametrize("method", ("lass", "hybrid"))
@pytest.mark.parametrize("symmetric", (True, False))
def test_scores_and_stems_equal_an_explicit_table(tiny_models, method, symmetric):
    options = {"gaussian": False} if method == "hybrid" else {}
    settings = Settings(
        smoothing=2.0, smoothing_base="overall", exponent=1.5, symmetric=symmetric, **options
    )
    separator = METHODS[method].load_separator(tiny_models, settings, candidates=4)
    family = METHODS[method].folder(tiny_models)
    counts, _ = load_counts(family / "counts.safetensors", sources=separator.sources)
    table = Table(smoothed_table(counts, 2.0, 1.5, symmetric))
    for m in range(counts.n_codes):
        torch.testing.assert_close(
            separator.likelihood.scores(m).values, table.scores(m).values, rtol=1e-5, atol=1e-5
        )
    found = separator(music(), 22_050, seed=3)
    separator.likelihood = table
    for source, stem in separator(music(), 22_050, seed=3).items():
        torch.testing.assert_close(found[source], stem, rtol=0, atol=1e-5)


def test_the_gaussian_base_belongs_to_the_hybrid(tiny_models, tmp_path, capsys):
    audio.save(tmp_path / "mix.wav", music(), 22_050)
    common = [str(tmp_path / "mix.wav"), "--models", str(tiny_models), "--candidates", "2"]
    common += ["--device", "cpu", "--smoothing-base", "gaussian", "--output"]
    for gaussian in ("True", "False"):
        out = tmp_path / gaussian
        flags = [*common, str(out), "--gaussian", gaussian, "--symmetric", "True"]
        assert separate.main(flags) == 0
        settings = json.loads((out / "mix" / "separation.json").read_text())["identity"]["settings"]
        chosen = settings["settings"]
        assert (chosen["smoothing_base"], chosen["symmetric"]) == ("gaussian", True)
        stems = [audio.load(path)[0] for path in (out / "mix").glob("*.wav")]
        torch.testing.assert_close(sum(stems), music(), rtol=0, atol=1e-4)
    capsys.readouterr()
    assert separate.main([*common, str(tmp_path / "lass"), "--method", "lass"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not (tmp_path / "lass").exists()
    assert "smoothing_base is gaussian" in said and "marginals or overall" in said


@pytest.mark.parametrize("names", [("smoothing_base", "gaussian"), ("back_off_to", "kernel")])
def test_tuned_bases_are_used_under_new_and_former_names(tiny_models, tmp_path, names):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    path = tuned_path(models, "hybrid")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"options": dict([names], symmetric=True)}))
    counted = hybrid.load_separator(models).likelihood.counted
    assert type(counted.base).__name__ == "GaussianBase" and counted.symmetric
    explicit = Settings(smoothing_base="overall", symmetric=False)
    counted = hybrid.load_separator(models, explicit).likelihood.counted
    assert type(counted.base).__name__ == "Overall" and not counted.symmetric
    (models / "linearisation" / "sums.safetensors").unlink()
    published = hybrid.load_separator(models, Settings(smoothing=0.0, gaussian=False))
    assert type(published.likelihood).__name__ == "CountLikelihood"


def test_an_evaluation_tells_them_apart(tiny_models, tiny_data, tmp_path):
    common = ["--models", str(tiny_models), "--data", str(tiny_data), "--chunks", "1"]
    common += ["--output", str(tmp_path / "results.json"), "--candidates", "2", "--device", "cpu"]
    common += ["--chunk-codes", "128", "--methods", "hybrid", "--baselines", "mixture"]
    common += ["--gaussian", "False"]
    seen = set()
    for more in (
        [],
        ["--symmetric", "True"],
        ["--smoothing-base", "gaussian"],
        ["--smoothing-base", "gaussian", "--sigma", "0.6"],
    ):
        assert evaluate.main([*common, *more]) == 0
        described = json.loads((tmp_path / "results.json").read_text())["meta"]["models"]["hybrid"]
        seen.add(tuple(described.get(name) for name in ("smoothing_base", "symmetric", "sigma")))
    assert seen == {
        ("marginals", False, None),
        ("marginals", True, None),
        ("gaussian", False, 0.4),
        ("gaussian", False, 0.6),
    }


def score(models, data, *more):
    flags = ["--models", str(models), "--data", str(data), "--iterations", "1", "--smoothings", "3"]
    flags += ["--sigmas", "0.4", "--exponents", "1", "--compared", "64"]
    return score_likelihood.main([*flags, *map(str, more)])


def test_further_counts_are_rows_beside_the_family_s_own(tiny_models, tiny_data, tmp_path, capsys):
    gains = tmp_path / "gains.safetensors"
    codec = tiny_models / "linearisation" / "vqvae"
    flags = ["--vqvae", str(codec), "--data", str(tiny_data), "--output", str(gains)]
    flags += ["--iterations", "4", "--device", "cpu", "--gains-db", "-6", "0", "6"]
    assert count_sums.main(flags) == 0
    same = shutil.copy(tiny_models / "linearisation" / "counts.safetensors", tmp_path / "same")
    capsys.readouterr()
    tables = []
    for more in ((), ("--counts", gains, same)):
        assert score(tiny_models, tiny_data, *more) == 0
        said = capsys.readouterr().out
        families = said.partition("linearisation: ")
        lines = families[2].splitlines()[4:-2]  # below the header, above the last sentence
        rows = [re.split(r"  +", line) for line in lines]
        tables.append((families[0], {row[0]: row[1:] for row in rows}))
    (before, own), (again, found) = tables
    assert again == before  # the other family's
    assert {name: found[name] for name in own} == own
    counted = {name: row for name, row in own.items() if not name.startswith("Gaussian")}
    names = [f"{stem}: {name}" for stem in ("gains", "same") for name in counted]
    assert list(found) == [*own, *names] and len(counted) == 7
    assert {name: found[f"same: {name}"] for name in counted} == counted
    assert found["gains: to p(m), 3"] != own["to p(m), 3"]
    assert "inf" not in found["to Gaussian 0.4, 3"] + found["gains: to Gaussian 0.4, 3"]


def test_counts_of_no_family_or_of_one_name_are_refused(tiny_models, tiny_data, tmp_path, capsys):
    other = tmp_path / "counts.safetensors"
    save_counts(other, count_triples(3, *[np.arange(3)] * 3), {"codec": "x"})
    assert score(tiny_models, tiny_data, "--counts", other) == 1
    assert "counted with another codec than reconstruction or" in capsys.readouterr().err
    own = tiny_models / "linearisation" / "counts.safetensors"
    assert score(tiny_models, tiny_data, "--counts", own, own) == 1
    assert "several --counts of linearisation are called counts" in capsys.readouterr().err
    assert score(tiny_models, tiny_data, "--counts", tmp_path / "none") == 1
    assert "none" in capsys.readouterr().err
    found = score_likelihood.further_counts([own], dict.fromkeys("ab", fingerprint_of(own)))
    assert found == {"a": {"counts: ": own}, "b": {"counts: ": own}}  # one codec may serve both


def fingerprint_of(counts):
    return fingerprint(counts.parent / "vqvae")
