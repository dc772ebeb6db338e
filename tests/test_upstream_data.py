"""How the originals choose and prepare their training audio."""

import numpy as np
import pytest
import torch

from jukebox_core.upstream.data import (
    Place,
    bandwidths,
    mono,
    non_silent_chunks,
    number_of_items,
    place_of_item,
    shuffle_chunks,
    subsample,
)


def test_places_lie_inside_their_songs():
    lengths, crop = [1000, 730, 2005, 512], 500
    assert number_of_items(lengths, crop) == 8
    assert place_of_item(lengths, crop, 0) == Place(0, 0)
    # Item 2 starts at 1000, the second song's first sample.
    assert place_of_item(lengths, crop, 2) == Place(1, 0)
    # At 1500, 230 samples before the song's end: moved back by half a crop.
    assert place_of_item(lengths, crop, 3) == Place(2, 1750 - 1730)
    for item in range(8):
        for shift in range(-250, 250):
            song, offset = place_of_item(lengths, crop, item, shift)
            assert 0 <= offset <= lengths[song] - crop


def test_places_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="item 9 lies outside"):
        place_of_item([1000, 1000], 500, 9)
    with pytest.raises(ValueError, match="song 1 has 300 samples, a crop has 500"):
        place_of_item([500, 300, 500], 500, 1, -100)


def test_mono():
    stereo = torch.tensor([[[1.0, 3.0], [2.0, 6.0]], [[4.0, 0.0], [0.0, 4.0]]])
    assert mono(stereo).tolist() == [[2.0, 4.0], [2.0, 2.0]]
    assert mono(stereo, torch.tensor([1.0, 0.25])).tolist() == [[1.0, 2.0], [1.0, 3.0]]


def test_bandwidths_visit_every_sixteenth_item_until_enough_was_seen():
    generator = torch.Generator().manual_seed(0)
    items = [torch.randn(2, 4096, generator=generator) for _ in range(40)]
    visited = []

    class Recording:
        def __getitem__(self, index):
            visited.append(index)
            return items[index]

    measured = bandwidths(Recording(), seconds=2.5, rate=4096)
    assert visited == [0, 16]
    seen = torch.cat([items[0], items[16]]).double()
    assert measured.l1 == pytest.approx(seen.abs().mean().item())
    assert measured.l2 == pytest.approx(seen.var(correction=0).item())
    assert measured.spec > 0


def test_non_silent_chunks():
    loud, other = torch.ones(1050), torch.ones(1050)
    other[200:300] = 0
    assert non_silent_chunks([loud, other], 100, 60) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert non_silent_chunks([loud, other], 100, 50) == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]


def test_random_choices_are_reproducible():
    chosen = subsample(50, 10, seed=3)
    assert chosen == subsample(50, 10, seed=3) != subsample(50, 10, seed=4)
    assert len(set(chosen)) == 10
    state = torch.random.get_rng_state()
    subsample(5, 2)
    assert torch.equal(state, torch.random.get_rng_state())
    orders = shuffle_chunks([6, 4])
    assert [sorted(order) for order in orders] == [list(range(6)), list(range(4))]
    assert orders == shuffle_chunks([6, 4]) and orders[0] == shuffle_chunks([6])[0]
    assert np.any(np.array(orders[0]) != np.arange(6))
