"""Upstream's training: crops, orders, bandwidths, optimiser, schedule, averages."""

import math

import numpy as np
import pytest
import torch

from jukebox_core.upstream.training import (
    LossScale,
    Place,
    UpstreamAdam,
    UpstreamWeightAverage,
    bandwidths,
    clip_gradients,
    lr_factor,
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


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_its_formula(decay):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator)
    parameter = torch.nn.Parameter(start.clone())
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = UpstreamAdam([parameter, unused], 0.01, (0.8, 0.95), 1e-3, decay)
    p, m, v = start.double(), 0.0, 0.0
    for t in range(1, 6):
        g = torch.randn(4, 3, generator=generator)
        parameter.grad = g.clone()
        optimizer.step()
        g = g.double()
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        size = 0.01 * math.sqrt(1 - 0.95**t) / (1 - 0.8**t)
        p = p - size * (m / (v.sqrt() + 1e-3) + decay * p)
        torch.testing.assert_close(parameter.double(), p, rtol=1e-5, atol=1e-6)
    assert torch.equal(unused, torch.ones(2))


def test_adam_resumes_in_the_same_bits():
    def train(optimizer, parameter, steps):
        for step in steps:
            parameter.grad = torch.full((3,), float(step)).sin()
            optimizer.step()

    whole = torch.nn.Parameter(torch.ones(3))
    train(UpstreamAdam([whole], weight_decay=0.1), whole, range(6))
    parts = torch.nn.Parameter(torch.ones(3))
    optimizer = UpstreamAdam([parts], weight_decay=0.1)
    train(optimizer, parts, range(3))
    again = UpstreamAdam([parts], weight_decay=0.1)
    again.load_state_dict(optimizer.state_dict())
    train(again, parts, range(3, 6))
    assert torch.equal(whole, parts)


def test_learning_rate():
    assert [lr_factor(s) for s in (0, 1, 50, 100, 10_000)] == [0, 0.01, 0.5, 1, 1]
    assert lr_factor(0, warmup=0) == 1
    decayed = [lr_factor(s, 100, 500, 1000) for s in (50, 500, 750, 1500, 9000)]
    assert decayed == [0.5, 1, 0.75, 0, 0]


def test_loss_scale_grows_slowly_halves_at_once_and_stops_at_its_maximum():
    scale = LossScale()
    for _ in range(250):
        scale.update(False)
    assert scale.scale == pytest.approx(2.0**17)
    assert scale.update(True) == pytest.approx(2.0**16)
    scale.scale = 2.0**24
    assert scale.update(False) == 2.0**24


def test_clipping_divides_by_the_larger_of_one_and_norm_over_limit():
    first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    for loss_scale in (1.0, 8.0):
        first.grad, second.grad = torch.tensor([3.0 * loss_scale]), torch.tensor([4.0 * loss_scale])
        assert clip_gradients([first, second], 2.0, loss_scale) == pytest.approx((5.0, 2.5))
        assert first.grad.item() == pytest.approx(1.2)
        assert second.grad.item() == pytest.approx(1.6)
    first.grad, second.grad = torch.tensor([0.3]), torch.tensor([0.4])
    assert clip_gradients([first, second], 1.0) == pytest.approx((0.5, 1.0))
    assert first.grad.item() == pytest.approx(0.3)


@pytest.mark.parametrize("every", [1, 3])
def test_weight_average(every):
    parameter = torch.nn.Parameter(torch.ones(2))
    average = UpstreamWeightAverage([parameter], 0.9, every, "cpu")
    wanted = torch.ones(2)
    for step in range(1, 8):
        with torch.no_grad():
            parameter.add_(step)
        average.update()
        if step % every == 0:
            wanted = 0.9**every * wanted + (1 - 0.9**every) * parameter.detach()
        torch.testing.assert_close(average.values[0], wanted)
    assert average.values[0].data_ptr() != parameter.data_ptr()
    with pytest.raises(ValueError, match="every is 0"):
        UpstreamWeightAverage([parameter], 0.9, 0)
