"""Drawing pairs and encoding them: crops must get the codes of whole songs."""

import numpy as np
import pytest
import torch

from jukebox_core import audio
from jukebox_core.config import PRESETS
from jukebox_core.manifest import load_manifest
from jukebox_core.prior.codes import encode_long
from jukebox_core.vqvae.model import VQVAE
from lass.counting import PairCounting

PLAN = PairCounting(pairs=3, crop=64, shifts=4, seed=5)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    codec = VQVAE(PRESETS["tiny"].vqvae).eval().requires_grad_(False)
    bottleneck = codec.bottleneck(codec.top)
    latents = codec.latents(0.3 * torch.randn(4, 4096))
    picks = latents.transpose(1, 2).flatten(0, 1)
    bottleneck.codebook = picks[torch.randperm(len(picks))[: codec.config.l_bins]].clone()
    return codec


@pytest.fixture(scope="module")
def manifest(tiny_data):
    return load_manifest(tiny_data)


def run(plan, codec, manifest, start=0, stop=3, tracks=None):
    tracks = manifest.split("train") if tracks is None else tracks
    return list(plan.iterate(codec, tracks, manifest.alpha, start, stop))


def whole_song_codes(codec, track, alpha, shifts):
    """int64 [3, shifts, T]: sources and mixture of a song at every shift, encoded at once."""
    hop = codec.config.hop
    sources = [audio.load(track.sources[name])[0][0] for name in alpha]
    rows = [*sources, sum(w * x for w, x in zip(alpha.values(), sources, strict=True))]
    length = (track.samples // hop - 1) * hop
    moved = [[x[k * hop // shifts :][:length] for k in range(shifts)] for x in rows]
    return np.array([[encode_long(codec, x).numpy() for x in row] for row in moved])


@pytest.mark.parametrize("stop", (2, 400))  # crops encoded one by one, or whole songs
def test_triples_of_one_song_are_those_of_the_whole_song(codec, manifest, stop):
    plan = PairCounting(pairs=3, crop=64, pairing="song", shifts=2, seed=5)
    tracks = manifest.split("train")[:1]
    whole = whole_song_codes(codec, tracks[0], manifest.alpha, 2)
    windows = np.lib.stride_tricks.sliding_window_view(whole, 64, axis=2)  # [3, 2, T - 63, 64]
    triples = plan.iterate(codec, tracks, manifest.alpha, 0, stop)
    for _ in range(2):
        for row in np.stack(next(triples), axis=1):  # [3, 64]
            found = (windows == row[:, None, None]).mean((0, 3))
            assert found.max() > 0.995  # float rounding may move a code


def test_both_ways_of_encoding_agree(codec, manifest, monkeypatch):
    results = []
    for whole in (True, False):
        monkeypatch.setattr(PairCounting, "_whole_songs_pay", lambda *a, whole=whole: whole)
        results.append(run(PLAN, codec, manifest))
    for ours, theirs in zip(*results, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape == (3, 64)
            assert (a == b).mean() > 0.995


def test_an_iteration_depends_on_seed_and_number_alone(codec, manifest):
    everything = run(PLAN, codec, manifest)
    later = run(PLAN, codec, manifest, start=1)
    for ours, theirs in zip(everything[1:], later, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    other = run(PairCounting(pairs=3, crop=64, seed=6), codec, manifest)
    assert any((a != b).any() for a, b in zip(everything[0], other[0], strict=True))
    assert any((a != b).any() for a, b in zip(everything[0], everything[1], strict=True))


def test_pairing(codec, manifest, monkeypatch):
    drawn = []
    draw = PairCounting._draw
    monkeypatch.setattr(PairCounting, "_draw", lambda *a: (drawn.append(draw(*a)), drawn[-1])[1])
    for pairing, low, high in (("song", 1, 1), ("random", 0, 0.05), ("both", 0.3, 0.7)):
        drawn.clear()
        run(PairCounting(pairs=40, crop=8, pairing=pairing), codec, manifest, stop=2)
        same = [a == b for pair in drawn for a, b in zip(*pair, strict=True)]
        assert low <= np.mean(same) <= high
    assert len({c.shift for first, _ in drawn for c in first}) == 4
    assert len({c.song for first, _ in drawn for c in first}) == 4


def test_what_cannot_be_counted_is_refused(codec, manifest):
    with pytest.raises(ValueError, match="got 1: bass"):
        next(PLAN.iterate(codec, manifest.split("train"), {"bass": 1.0}))
    with pytest.raises(ValueError, match="choose a shorter crop"):
        run(PairCounting(crop=10_000), codec, manifest)
    with pytest.raises(ValueError, match="no songs"):
        run(PLAN, codec, manifest, tracks=[])
    with pytest.raises(ValueError, match="17 shifts; a code has but 16 samples"):
        run(PairCounting(crop=8, shifts=17), codec, manifest)
    for flags in ({"pairs": 0}, {"crop": 0}, {"shifts": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="expected"):
            PairCounting(**flags)
