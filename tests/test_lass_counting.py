"""Drawing pairs and encoding them: crops must get the codes of whole songs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jukebox_core import audio
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.presets import PRESETS
from jukebox_core.prior.codes import encode_long
from jukebox_core.vqvae.model import VQVAE
from lass.triples import PairCounting, _Songs

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


@pytest.mark.parametrize("size", (None, 90))  # codes of a tile: the whole song, or less
def test_triples_of_one_song_are_those_of_the_whole_song(codec, manifest, monkeypatch, size):
    plan = PairCounting(pairs=3, crop=64, pairing="song", shifts=2, seed=5)
    tracks = manifest.split("train")[:1]
    whole = whole_song_codes(codec, tracks[0], manifest.alpha, 2)
    with_tiles_of(monkeypatch, size)
    drawn = []
    draw = PairCounting._draw
    monkeypatch.setattr(PairCounting, "_draw", lambda *a: (drawn.append(draw(*a)), drawn[-1])[1])
    for triples in run(plan, codec, manifest, 0, 4, tracks):
        crops, same = drawn.pop(0)
        assert crops == same
        for row, c in zip(np.stack(triples, axis=1), crops, strict=True):  # [3, 64]
            found = row == whole[:, c.shift, c.start : c.start + 64]
            assert found.mean() > 0.995  # float rounding may move a code
            assert size or found[:2].all()


def with_tiles_of(monkeypatch, size):
    """Let songs be encoded in tiles of so many codes."""
    made = _Songs.__init__

    def init(self, *arguments):
        made(self, *arguments)
        self._size = size or self._size

    monkeypatch.setattr(_Songs, "__init__", init)


@pytest.mark.parametrize("size", (None, 90))
def test_what_is_kept_changes_the_work_and_nothing_else(codec, manifest, monkeypatch, size):
    with_tiles_of(monkeypatch, size)
    encoded = []
    read = _Songs._read_tile
    monkeypatch.setattr(_Songs, "_read_tile", lambda s, t: (encoded.append(t), read(s, t))[1])

    def result(kept):
        encoded.clear()
        triples = list(PLAN.iterate(codec, manifest.split("train"), manifest.alpha, 0, 20, 1, kept))
        return np.array(triples), list(encoded)

    everything, once = result(1 << 30)
    assert len(set(once)) == len(once)
    nothing, often = result(0)
    assert len(often) > len(once) and set(often) == set(once)
    some, between = result(len(once) * (size or 3 * 22_050 // 16))  # of two bytes each: a half
    assert len(often) > len(between) > len(once)
    np.testing.assert_array_equal(everything, nothing)
    np.testing.assert_array_equal(everything, some)


def test_what_is_kept_is_no_more_than_was_asked_for(codec, manifest):
    songs = _Songs(codec, manifest.split("train"), ("bass", "drums"), PLAN, 20_000)
    for iteration in range(20):
        songs.codes(PLAN._draw(iteration, songs))
        held = sum(codes.nbytes for codes in songs._tiles.values())
        assert all(codes.base is None for codes in songs._tiles.values())
        assert held + songs._room == 20_000 and songs._room >= 0
    assert songs._tiles


@pytest.mark.parametrize(("l_bins", "kind"), ((1 << 15, np.int16), ((1 << 15) + 1, np.int32)))
def test_codes_are_kept_in_as_few_bytes_as_hold_them(manifest, l_bins, kind):
    large = VQVAE(replace(PRESETS["tiny"].vqvae, l_bins=l_bins)).eval()
    songs = _Songs(large, manifest.split("train"), ("bass", "drums"), PLAN, 1 << 20)
    assert songs._dtype == kind and np.iinfo(kind).max >= l_bins - 1


def test_processes_take_turns(codec, manifest):
    everything = run(PLAN, codec, manifest, stop=7)
    first = PLAN.iterate(codec, manifest.split("train"), manifest.alpha, stop=1)
    np.testing.assert_array_equal(list(first), everything[:1])
    for processes in (2, 3):
        for rank in range(processes):
            tracks = manifest.split("train")
            mine = PLAN.iterate(codec, tracks, manifest.alpha, rank, 7, step=processes)
            np.testing.assert_array_equal(list(mine), everything[rank::processes])


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
    with pytest.raises(ValueError, match="shifts is 17, expected at most 16"):
        run(PairCounting(crop=8, shifts=17), codec, manifest)
    for flags in ({"pairs": 0}, {"crop": 0}, {"shifts": 0}, {"seed": -1}, {"seed": 0.5}):
        with pytest.raises(ValueError, match="expected"):
            PairCounting(**flags)


def test_crops_are_counted_at_their_gains(codec, manifest):
    plan = PairCounting(pairs=3, crop=64, pairing="random", seed=5, gains_db=(0.0, -6.0))
    tracks = manifest.split("train")
    songs = _Songs(codec, tracks, tuple(manifest.alpha), plan, 1 << 30)
    pairs = plan._draw(0, songs)
    assert {c.gain for crops in pairs for c in crops} == {0.0, -6.0}
    (found,) = run(plan, codec, manifest, 0, 1)
    weights = list(manifest.alpha.values())
    for row, (first, second) in enumerate(zip(*pairs, strict=True)):
        heard = []
        for name, c in zip(manifest.alpha, (first, second), strict=True):
            whole = audio.load(tracks[c.song].sources[name])[0][0]
            offset = c.shift * codec.config.hop // plan.shifts
            heard.append(10 ** (c.gain / 20) * whole[offset:])
        for codes, x, c in zip((found.first, found.second), heard, (first, second), strict=True):
            length = len(x) // codec.config.hop * codec.config.hop
            whole_codes = encode_long(codec, x[:length]).numpy()
            expected = whole_codes[c.start : c.start + 64]
            assert (codes[row] == expected).mean() > 0.99  # float rounding may move a code
        if first[:3] == second[:3]:
            continue
        hop, m = codec.config.hop, songs.margin
        parts = [
            w * x[(c.start - m) * hop :][: (64 + 2 * m) * hop]
            for w, x, c in zip(weights, heard, (first, second), strict=True)
        ]
        mixture = codec.encode(sum(parts)[None])[0, m : m + 64].numpy()
        assert (found.mixture[row] == mixture).mean() > 0.99
    with pytest.raises(ValueError, match="each once"):
        PairCounting(gains_db=(0.0, 0.0))
