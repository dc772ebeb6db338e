"""The compiled residual block against autograd of the module's own convolutions, in float64."""

from contextlib import nullcontext

import pytest
import torch

from jukebox_core.config import Bandwidths, LossConfig, VQVAEConfig
from jukebox_core.vqvae import cpu, residual
from jukebox_core.vqvae.blocks import ResidualBlock
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ReconstructionObjective

CODEC = VQVAEConfig(
    levels=1, downs_t=(2,), strides_t=(4,), l_bins=16, emb_width=8, depth=3, multipliers=(1,)
)


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    if residual._functions() is None:
        pytest.skip("no C compiler here")


def made(width=32, hidden=32, dilation=3):
    torch.manual_seed(0)
    return ResidualBlock(width, hidden, dilation)


def run(block, x, gradient):
    """Output, and the gradients of the input and of all parameters; x [B, T, C]."""
    own = [x.clone().requires_grad_(), *block.parameters()]
    y = residual.block(own[0], block.dilated, block.pointwise)
    return y.detach(), *torch.autograd.grad(y, own, gradient)


@pytest.mark.parametrize(("width", "hidden"), ((32, 32), (64, 32), (32, 96)))
@pytest.mark.parametrize("dilation", (1, 3, 27))
@pytest.mark.parametrize("time", (1, 5, 96, 203))
def test_the_block_is_what_autograd_calculates(width, hidden, dilation, time):
    block = made(width, hidden, dilation)
    x, gradient = torch.randn(2, 3, time, width)
    found = run(block, x, gradient)
    exact = x.double().transpose(1, 2).requires_grad_()
    block.double()
    y = block(exact)
    own = [exact, *block.parameters()]
    expected = [y, *torch.autograd.grad(y, own, gradient.double().transpose(1, 2))]
    expected[:2] = [part.transpose(1, 2) for part in expected[:2]]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=3e-5)


def test_no_bit_depends_on_the_other_items_or_the_threads():
    block = made()
    x, gradient = torch.randn(2, 5, 301, 32)
    threads, outputs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs.append(run(block, x, gradient))
    finally:
        torch.set_num_threads(threads)
    for other in outputs[1:]:
        assert all(torch.equal(*parts) for parts in zip(outputs[0], other, strict=True))
    y, gx, *_ = run(block, x[2:4], gradient[2:4])
    assert torch.equal(y, outputs[0][0][2:4])
    assert torch.equal(gx, outputs[0][1][2:4])


def test_other_widths_are_left_to_the_convolutions():
    assert residual.supports(*made().children(), time=3)
    assert not residual.supports(*made(width=16).children(), time=3)
    assert not residual.supports(*made(hidden=33).children(), time=3)
    assert not residual.supports(*made(dilation=4).children(), time=3)  # mostly zeros around
    assert not residual.supports(made().dilated, torch.nn.Conv1d(32, 32, 1, bias=False), 3)


@pytest.mark.parametrize("place", ("x", "dilated.weight", "pointwise.bias"))
def test_what_is_not_a_number_is_not_hidden(place):
    block, x = made(), torch.randn(2, 9, 32)
    (x if place == "x" else block.state_dict()[place]).view(-1)[0] = torch.nan
    expected = block(x.transpose(1, 2)).transpose(1, 2).isnan()
    assert expected.any()
    assert residual.block(x, *block.children())[expected].isnan().all()


def test_weights_that_do_not_learn_have_no_gradient():
    block, x = made().requires_grad_(False), torch.randn(2, 9, 32)
    gradient = torch.randn_like(x)
    found = x.clone().requires_grad_()
    residual.block(found, *block.children()).backward(gradient)
    assert torch.equal(found.grad, run(made(), x, gradient)[1])
    assert all(p.grad is None for p in block.parameters())


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="expected contiguous float32 on the CPU"):
        residual.block(torch.randn(1, 9, 32, device="meta"), *made().children())


def test_a_codec_without_a_compiler_is_the_same(monkeypatch):
    torch.manual_seed(0)
    codec, audio = VQVAE(CODEC).eval(), 0.1 * torch.randn(2, 1600)
    with torch.no_grad():
        expected = codec.latents(audio)
        monkeypatch.setattr(residual, "_functions", lambda: None)
        torch.testing.assert_close(codec.latents(audio), expected, rtol=1e-4, atol=1e-5)


def test_a_codec_learns_what_its_modules_would():
    """The loss and every gradient of a training step."""
    audio = 0.1 * torch.randn(2, 1600)
    found = []
    for context in (nullcontext(), cpu.own_forward()):
        torch.manual_seed(0)
        objective = ReconstructionObjective(VQVAE(CODEC), LossConfig(), Bandwidths())
        with context:
            loss = objective(audio, torch.Generator().manual_seed(0)).loss
            found.append([loss, *torch.autograd.grad(loss, list(objective.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stride", (2, 4, 6))
@pytest.mark.parametrize("time", (1, 2, 7))
def test_the_last_two_convolutions_as_one_are_the_two(stride, time):
    """Outputs, also the first and the last, and all gradients."""
    transposed = torch.nn.ConvTranspose1d(32, 5, 2 * stride, stride, stride // 2).double()
    last = torch.nn.Conv1d(5, 1, 3, padding=1).double()
    x = torch.randn(2, 32, time, dtype=torch.float64, requires_grad=True)
    own = [x, *transposed.parameters(), *last.parameters()]
    expected, found = last(transposed(x)), cpu.run([transposed, last], x, time * stride)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    each = [torch.autograd.grad(y, own, gradient) for y in (found, expected)]
    for one, other in zip(*each, strict=True):
        torch.testing.assert_close(one, other)


def test_no_waveform_depends_on_the_others_of_its_batch():
    torch.manual_seed(0)
    codec, codes = VQVAE(CODEC).eval(), torch.randint(16, (5, 100))
    codec.bottleneck(0).codebook.normal_()
    with torch.no_grad():
        together = codec.decode(codes)
        for count in (1, 2, 4):
            assert torch.equal(codec.decode(codes[:count]), together[:count])


def test_codes_do_not_depend_on_whether_gradients_are_computed():
    torch.manual_seed(0)
    codec, audio = VQVAE(CODEC).eval(), 0.1 * torch.randn(3, 1600)
    latents = codec.latents(audio)
    assert latents.requires_grad
    with torch.no_grad():
        assert torch.equal(codec.latents(audio), latents)
