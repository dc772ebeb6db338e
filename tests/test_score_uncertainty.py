"""The yardstick of the uncertainty: errors of masks that are known, correlations that are known."""

import json
from types import SimpleNamespace

import pytest
import torch

from jukebox_core.evaluation.bootstrap import bootstrap_mean
from jukebox_core.evaluation.chunks import Chunk
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.samples import Candidates
from scripts import score_uncertainty

ALPHA = {"bass": 0.5, "drums": 0.5}
MASK = RatioMask(2.0, 256, 64)


@pytest.fixture
def truth():
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(4000, generator=g) for name in ALPHA}


def stand_in(audio, uncertainty=None):
    """A separator whose candidates are {source: [N, T]}, whatever the mixture."""
    candidates = Candidates({n: x[None] for n, x in audio.items()}, ALPHA)
    return SimpleNamespace(
        mask=MASK,
        candidates=lambda mixture, generator, progress: candidates,
        uncertainty=lambda mixture, found: uncertainty,
    )


def test_the_error_is_none_for_the_truth_and_the_shares_distance_for_its_exchange(truth):
    mixture = sum(ALPHA[name] * x for name, x in truth.items())[None]
    exchanged = {"bass": truth["drums"], "drums": truth["bass"]}
    for audio, distance in ((truth, 0.0), (exchanged, None)):
        drawn = {name: x.expand(1, 3, -1) for name, x in audio.items()}
        candidates = Candidates(drawn, ALPHA)
        found = score_uncertainty.mask_error(stand_in(truth), mixture, candidates, truth)
        ones = torch.ones(1, 1)
        true = Candidates({n: x[None, None] for n, x in truth.items()}, ALPHA)
        powers = MASK.mean_powers(true, ones)
        share = MASK.masks(powers)["bass"][0]
        expected = torch.zeros_like(share) if distance == 0 else (2 * share - 1).abs()
        assert torch.allclose(found, expected, atol=1e-4)


def test_loud_bins_are_those_within_so_many_decibels():
    time = torch.arange(8000) / 8000
    loud = torch.sin(2 * torch.pi * 1000 * time)
    soft = 10 ** (-30 / 20) * torch.sin(2 * torch.pi * 2000 * time)
    bins = {n: round(hertz * 256 / 8000) for n, hertz in (("loud", 1000), ("soft", 2000))}
    separator = SimpleNamespace(mask=MASK)
    for within, heard in ((20, False), (40, True)):
        found = score_uncertainty.loud_bins(separator, (loud + soft)[None], within)
        assert found[bins["loud"], 20:100].all()
        assert bool(found[bins["soft"], 20:100].all()) is heard
        assert not found[80:].any()


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, -1.0)])
def test_correlations_of_an_uncertainty_that_knows_its_error(truth, sign, expected, monkeypatch):
    mixture = sum(ALPHA[name] * x for name, x in truth.items())
    wrong = torch.rand(129, 63)
    separator = stand_in({n: x[None] for n, x in truth.items()}, sign * wrong.exp()[None])
    monkeypatch.setattr(score_uncertainty, "mask_error", lambda *_: wrong)
    chunks = [Chunk("song", 0, mixture, truth, ALPHA)] * 2
    found, typical = score_uncertainty.correlations(separator, chunks, 60.0, 0)
    assert found == pytest.approx([expected] * 2)
    assert typical * sign > 1


def test_every_way_of_drawing_is_a_line(tiny_models, tiny_data, tmp_path, capsys):
    flags = ["--models", str(tiny_models), "--data", str(tiny_data), "--chunks", "2"]
    flags += ["--candidates", "4", "--chunk-codes", "128", "--threads", "1"]
    path = tmp_path / "new" / "uncertainty.json"
    assert score_uncertainty.main([*flags, "--output", str(path)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        [sampler, str(shifts)] for sampler, shifts in score_uncertainty.VARIANTS
    ]
    for line in lines[2:]:
        assert -1 <= float(line.split()[2]) <= 1 and 0 <= float(line.split()[-1]) <= 0.5
    stored = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written is left
    for line, variant in zip(lines[2:], stored["variants"], strict=True):
        found = variant["correlation"]
        if found["mean"] is not None:
            known = [x for x in variant["chunks"] if x is not None]
            assert found == pytest.approx(bootstrap_mean(known)._asdict())
            shown = f"{found['mean']:.2f} {found['low']:.2f} to {found['high']:.2f}"
            assert " ".join(line.split()[2:6]) == shown
        assert line.split()[:2] == [variant["sampler"], str(variant["shifts"])]
        assert line.split()[-1] == f"{variant['median_disagreement']:.3f}"
    assert stored["asked"]["candidates"] == 4
    assert score_uncertainty.main([*flags, "--candidates", "3"]) == 1
    assert "candidates is 3, expected a multiple of 4" in capsys.readouterr().err
