"""The CPU decoder against the prior's own full forward, with and without compiled kernels."""

import ctypes
import subprocess

import pytest
import torch
import torch.nn.functional as F

from jukebox_core import compiled as compiled_files
from jukebox_core.config import PriorConfig
from jukebox_core.prior import joint
from jukebox_core.prior.cache import LayerCache
from jukebox_core.prior.cpu import CpuDecoder
from jukebox_core.prior.joint import accelerate, choose_dtype
from jukebox_core.prior.kernels import (
    CompiledKernels,
    TorchKernels,
    TorchQuantised,
    find_kernels,
    quantise_rows,
)
from jukebox_core.prior.model import AutoregressivePrior

KERNELS = {"torch": TorchKernels(), "found": find_kernels()}


def prior(width=16, attn=0.5, heads=1, order=2, embedding="table", blocks=4, n_ctx=24):
    torch.manual_seed(0)
    config = PriorConfig(
        n_ctx=n_ctx,
        l_bins=11,
        width=width,
        depth=6,
        heads=heads,
        blocks=blocks,
        attn_order=order,
        m_attn=attn,
        emb_width=5,
        embedding=embedding,
    )
    model = AutoregressivePrior(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3 if p.ndim > 1 else 0.5)
    return model


def stepped(decoder, codes):
    cache = decoder.new_cache(*codes.shape)
    logits = [decoder.step(codes[:, t - 1] if t else None, cache) for t in range(codes.shape[1])]
    return torch.stack(logits, 1)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("order", (0, 1, 2))
@pytest.mark.parametrize(("heads", "embedding"), ((1, "table"), (2, "codebook")))
def test_float32_steps_equal_the_full_forward(kernels, order, heads, embedding):
    model = prior(order=order, heads=heads, embedding=embedding)
    codes = torch.randint(0, 11, (3, 24))
    found = stepped(CpuDecoder(model, kernels=KERNELS[kernels]), codes)
    with torch.no_grad():
        torch.testing.assert_close(found, model.double()(codes).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.int8))
@pytest.mark.parametrize(("width", "attn"), ((64, 1.0), (256, 0.5), (48, 0.5), (32, 0.25)))
def test_log_probabilities_of_fixed_sequences(kernels, dtype, width, attn):
    """The stated tolerance in nats per code, on average over a sequence: 0.01; for int8, 0.03."""
    torch.manual_seed(1)
    config = PriorConfig(
        n_ctx=32, l_bins=64, width=width, depth=6, blocks=4, m_attn=attn, embedding="table"
    )
    model = AutoregressivePrior(config).eval()
    codes = torch.randint(0, 64, (17, 32))
    found = stepped(CpuDecoder(model, dtype, KERNELS[kernels]), codes)
    with torch.no_grad():
        expected = model(codes)
    assert not torch.equal(found, expected)
    log_p = [
        torch.log_softmax(x, -1).gather(2, codes[..., None])[..., 0] for x in (found, expected)
    ]
    difference = (log_p[0] - log_p[1]).mean(1)
    assert difference.abs().max() < (0.01 if dtype == torch.bfloat16 else 0.03)


@pytest.fixture
def integers(compiled):
    if not compiled.integer_limit:
        pytest.skip("this processor has no fast integer products")
    return compiled


@pytest.fixture(scope="module")
def compiled():
    found = find_kernels()
    if not isinstance(found, CompiledKernels):
        pytest.skip("no C compiler here")
    return found


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("kind", ("dense", "block", "column", "previous_block"))
@pytest.mark.parametrize(("heads", "width"), ((1, 8), (2, 64), (1, 256), (1, 300)))
def test_compiled_attention_equals_pytorch(compiled, dtype, kind, heads, width):
    """All positions of three blocks; both caches hold the same afterwards."""
    config = PriorConfig(
        n_ctx=24, l_bins=4, width=heads * width, depth=1, heads=heads, blocks=6, m_attn=1.0
    )
    like = torch.empty(0, dtype=dtype)
    caches = [LayerCache(kind, 3, config, 24, like) for _ in range(2)]
    g = torch.Generator().manual_seed(0)
    for t in range(12):
        qkv = torch.randn(3, 3 * heads * width, generator=g).to(dtype)
        found = compiled.attend(qkv, caches[0], t)
        expected = TorchKernels().attend(qkv, caches[1], t)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(caches[0].keys, caches[1].keys)
    assert torch.equal(caches[0].values, caches[1].values)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_compiled_norm_equals_pytorch(compiled, dtype):
    x = 3 + 5 * torch.randn(7, 130, generator=torch.Generator().manual_seed(0))
    expected = F.layer_norm(x, (130,)).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(compiled.norm(x, dtype), expected, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("rows", (1, 5, 12, 13, 16, 30))
@pytest.mark.parametrize(("inputs", "outputs"), ((64, 32), (30, 17), (128, 75)))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("kernels", KERNELS)
def test_products_equal_the_linear_layer(kernels, rows, inputs, outputs, dtype):
    g = torch.Generator().manual_seed(rows)
    weight = (torch.randn(outputs, inputs, generator=g) / inputs**0.5).to(dtype)
    bias = torch.randn(outputs, generator=g)
    x = torch.randn(rows, inputs, generator=g).to(dtype)
    exact = F.linear(x.double(), weight.double(), bias.double())
    product = KERNELS[kernels].product(weight, bias)
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(product(x).double(), exact, rtol=rounding, atol=rounding)
    swish = exact * torch.sigmoid(exact)
    torch.testing.assert_close(product.swish(x).double(), swish, rtol=rounding, atol=rounding)
    total = torch.randn(rows, outputs, generator=g)
    expected = total.double() + exact
    product.add_to(total, x)
    torch.testing.assert_close(total.double(), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("rows", (1, 5, 12, 13, 30))
@pytest.mark.parametrize(("inputs", "outputs"), ((1, 1), (8, 32), (30, 17), (63, 33), (1920, 75)))
def test_integer_products_are_what_pytorch_calculates(integers, rows, inputs, outputs):
    """Sums of integers are exact; only their scaling to floats may differ, in the last digit."""
    g = torch.Generator().manual_seed(rows)
    x, total = torch.randn(rows, inputs, generator=g), torch.randn(rows, outputs, generator=g)
    x[0] = 1  # the largest sums: every factor is at the limit
    x[-1, 0] = 50
    bias = torch.randn(outputs, generator=g)
    weight = torch.randn(outputs, inputs, generator=g)
    weight[0], weight[-1] = -1, 1
    product = integers.quantised_product(weight, bias)
    twin = TorchQuantised(weight, bias, integers.integer_limit)
    close = dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(x), twin(x), **close)
    torch.testing.assert_close(product.swish(x), twin.swish(x), **close)
    expected = total.clone()
    twin.add_to(expected, x)
    product.add_to(total, x)
    torch.testing.assert_close(total, expected, **close)


def test_rows_become_integers_times_a_step():
    x = torch.tensor([[1.0, -0.5, 0.004, 0.0], [0.0, 0.0, 0.0, 0.0], [1e-38, 0.0, 0.0, 0.0]])
    whole, steps = quantise_rows(x, 127)
    assert whole.tolist() == [[127, -64, 1, 0], [0] * 4, [0] * 4]
    assert steps.tolist() == [pytest.approx(1 / 127), 0.0, pytest.approx(0.0, abs=1e-30)]


def test_the_error_of_integer_products_is_what_rounding_explains(integers):
    """Both factors are off by at most half a step."""
    g = torch.Generator().manual_seed(0)
    weight, x = torch.randn(75, 1920, generator=g), torch.randn(30, 1920, generator=g)
    found = integers.quantised_product(weight, torch.zeros(75))(x).double()
    weight, x = weight.double(), x.double()
    halves = [y.abs().amax(1) / integers.integer_limit / 2 for y in (x, weight)]
    bound = halves[0].unsqueeze(1) * weight.abs().sum(1) + x.abs().sum(1, True) * halves[1]
    bound += 1920 * halves[0].unsqueeze(1) * halves[1]
    error = (found - x @ weight.T).abs()
    assert (error <= bound).all()
    assert 0.005 < error.square().mean().sqrt() / 1920**0.5 < 0.04


@pytest.mark.parametrize("device", ("cuda", "mps"))
def test_integers_are_for_processors(device):
    with pytest.raises(ValueError, match=f"int8 is for CPUs, the device is {device}"):
        choose_dtype(torch.device(device), "int8")
    assert choose_dtype(torch.device("cpu"), "int8") == torch.int8


def test_integers_that_would_be_slow_are_refused(monkeypatch):
    monkeypatch.setattr(joint, "find_kernels", TorchKernels)
    with pytest.raises(ValueError, match="int8 needs a processor with AVX2, a C compiler"):
        accelerate({"bass": prior()}, "int8")


def test_integer_products_do_not_hide_what_is_not_a_number(integers):
    x = torch.randn(3, 40)
    x[1, 39] = torch.nan
    found = integers.quantised_product(torch.randn(5, 40), torch.zeros(5))(x)
    assert found.isnan().all(1).tolist() == [False, True, False]
    x[1, 39] = torch.inf
    assert integers.quantised_product(torch.randn(5, 40), torch.zeros(5))(x)[1].isnan().all()


def broken(source):
    raise subprocess.CalledProcessError(1, "cc")


@pytest.mark.parametrize("kind", ("product", "quantised_product"))
@pytest.mark.parametrize(("inputs", "outputs"), ((1, 1), (63, 32), (130, 75), (1024, 40)))
def test_no_bit_of_a_row_depends_on_the_others(compiled, inputs, outputs, kind):
    random = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=random)
    product = getattr(compiled, kind)(weight, torch.randn(outputs, generator=random))
    x = torch.randn(41, inputs, generator=random)
    together, swished, total = product(x), product.swish(x), torch.zeros(41, outputs)
    product.add_to(total, x)
    assert torch.equal(total, together)
    for size in (1, 2, 3, 4, 7, 12, 13, 40):
        assert torch.equal(product(x[:size]), together[:size])
        assert torch.equal(product.swish(x[-size:]), swished[-size:])


def test_weights_of_any_layout_are_packed(compiled):
    weight = torch.randn(2000, 300).T
    product = compiled.product(weight, torch.zeros(300))
    x = torch.randn(2, 2000)
    torch.testing.assert_close(product(x), x @ weight.T, rtol=1e-5, atol=1e-4)


def test_the_swish_is_right_everywhere(compiled):
    x = torch.cat([torch.linspace(-110, 110, 4001), torch.tensor([0.0, 1e-30, -1e3, 1e3])])
    product = compiled.product(torch.ones(1, 1), torch.zeros(1))
    found, expected = product.swish(x.unsqueeze(1)).squeeze(1), F.silu(x.double())
    # Of very small results only the absolute error counts: they are summands of others.
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-33)


@pytest.mark.parametrize("reason", ("no compiler", "switched off", "does not load"))
def test_without_compiled_kernels_pytorch_serves(monkeypatch, tmp_path, reason):
    if reason == "no compiler":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("CC", "no-such-compiler")
    elif reason == "switched off":
        monkeypatch.setenv("JUKEBOX_CORE_KERNELS", "off")
    else:
        monkeypatch.setattr(compiled_files, "_compiled", broken)
    assert isinstance(find_kernels.__wrapped__(), TorchKernels)


def test_loading_the_kernels_leaves_small_numbers_alone(compiled):
    """-ffast-math would flush subnormal numbers to zero in the whole process."""
    assert isinstance(compiled._library, ctypes.CDLL)
    assert (torch.tensor(1e-40) * 1.0).item() > 0


def test_what_cannot_be_decoded_is_refused():
    with pytest.raises(ValueError, match=r"torch.float16 .* to be decoded in"):
        CpuDecoder(prior(), torch.float16)
