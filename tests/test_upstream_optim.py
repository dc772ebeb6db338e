"""The originals' optimisation, by its formulas."""

import math

import pytest
import torch

from jukebox_core.upstream.optim import (
    LossScale,
    OriginalAdam,
    OriginalWeightAverage,
    clip_gradients,
    lr_factor,
)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_its_formula(decay):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator)
    parameter = torch.nn.Parameter(start.clone())
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = OriginalAdam([parameter, unused], 0.01, (0.8, 0.95), 1e-3, decay)
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
    train(OriginalAdam([whole], weight_decay=0.1), whole, range(6))
    parts = torch.nn.Parameter(torch.ones(3))
    optimizer = OriginalAdam([parts], weight_decay=0.1)
    train(optimizer, parts, range(3))
    again = OriginalAdam([parts], weight_decay=0.1)
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
    average = OriginalWeightAverage([parameter], 0.9, every, "cpu")
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
        OriginalWeightAverage([parameter], 0.9, 0)
