"""Parts of the counted likelihood, switched by flags: the stems are those of the table meant."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from scripts._models import build_separator
from scripts._settings import tuned_path

from jukebox_core import audio
from jukebox_core.checkpoints import fingerprint
from jukebox_core.separation.likelihood import PairScores
from lass.counts import count_triples, load_counts, save_counts
from scripts import count_sums, evaluate, score_likelihood, separate


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


def smoothed_table(counts, strength, weight, symmetric):
    """Counts backed off to p(m), in float64."""
    k = counts.n_codes
    table = np.zeros((k, k, k))
    for i, j, m, n in zip(*counts[1:5], strict=True):
        table[i, j, m] += n
        if symmetric:
            table[j, i, m] += n
    overall = table.sum((0, 1)) + 0.5
    p = table + strength * overall / overall.sum()
    return weight * np.log(p / (table.sum(2, keepdims=True) + strength))


@pytest.mark.parametrize("method", ("lass", "hybrid"))
@pytest.mark.parametrize("symmetric", (True, False))
def test_scores_and_stems_are_those_of_the_table_written_out(tiny_models, method, symmetric):
    options = {"backoff": 2.0, "back_off_to": "overall", "weight": 1.5}
    options |= {"kernel": False} if method == "hybrid" else {}
    separator = build_separator(method, tiny_models, candidates=4, symmetric=symmetric, **options)
    family = tiny_models / {"lass": "reconstruction", "hybrid": "linearisation"}[method]
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


def test_the_kernel_is_a_flag_of_the_hybrid_alone(tiny_models, tmp_path, capsys):
    audio.save(tmp_path / "mix.wav", music(), 22_050)
    common = [str(tmp_path / "mix.wav"), "--models", str(tiny_models), "--candidates", "2"]
    common += ["--device", "cpu", "--back-off-to", "kernel", "--output"]
    for kernel in ("True", "False"):
        out = tmp_path / kernel
        flags = [*common, str(out), "--kernel", kernel, "--symmetric", "True"]
        assert separate.main(flags) == 0
        settings = json.loads((out / "mix" / "separation.json").read_text())["identity"]["settings"]
        chosen = settings["settings"]
        assert (chosen["back_off_to"], chosen["symmetric"]) == ("kernel", True)
        stems = [audio.load(path)[0] for path in (out / "mix").glob("*.wav")]
        torch.testing.assert_close(sum(stems), music(), rtol=0, atol=1e-4)
    capsys.readouterr()
    assert separate.main([*common, str(tmp_path / "lass"), "--method", "lass"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not (tmp_path / "lass").exists()
    assert "back_off_to is kernel, expected marginals or overall for lass" in said


def test_tuned_back_offs_are_taken_and_those_unknown_refused(tiny_models, tmp_path):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    path = tuned_path(models, "hybrid")
    path.parent.mkdir(exist_ok=True)
    for value in ("blue", "kernel"):
        path.write_text(json.dumps({"options": {"back_off_to": value, "symmetric": True}}))
        if value == "blue":
            with pytest.raises(ValueError, match="hybrid.json: back_off_to is 'blue'"):
                build_separator("hybrid", models)
        else:
            counted = build_separator("hybrid", models).likelihood.counted
            assert type(counted.backoff).__name__ == "GaussianBase" and counted.symmetric
            given = build_separator("hybrid", models, back_off_to="overall", symmetric=False)
            assert type(given.likelihood.counted.backoff).__name__ == "Overall"
            assert not given.likelihood.counted.symmetric
            (models / "linearisation" / "sums.safetensors").unlink()
            published = build_separator("hybrid", models, backoff=0.0, kernel=False)
            assert type(published.likelihood).__name__ == "CountLikelihood"


def test_an_evaluation_tells_them_apart(tiny_models, tiny_data, tmp_path):
    common = ["--models", str(tiny_models), "--data", str(tiny_data), "--chunks", "1"]
    common += ["--output", str(tmp_path / "results.json"), "--candidates", "2", "--device", "cpu"]
    common += ["--chunk-codes", "128", "--methods", "hybrid", "--baselines", "mixture"]
    common += ["--kernel", "False"]
    seen = set()
    for more in (
        [],
        ["--symmetric", "True"],
        ["--back-off-to", "kernel"],
        ["--back-off-to", "kernel", "--sigma", "0.6"],
    ):
        assert evaluate.main([*common, *more]) == 0
        described = json.loads((tmp_path / "results.json").read_text())["meta"]["models"]["hybrid"]
        seen.add(tuple(described[name] for name in ("back_off_to", "symmetric", "sigma")))
    assert seen == {
        ("marginals", False, None),
        ("marginals", True, None),
        ("kernel", False, 0.4),
        ("kernel", False, 0.6),
    }


def score(models, data, *more):
    flags = ["--models", str(models), "--data", str(data), "--iterations", "1", "--strengths", "3"]
    flags += ["--sigmas", "0.4", "--weights", "1", "--compared", "64"]
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
        assert "normalised over the mixture's codes" in said
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
    assert "inf" not in found["to kernel 0.4, 3"] + found["gains: to kernel 0.4, 3"]


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
