"""Both priors in one pass of fixed shapes against each prior's own full forward."""

import pytest
import torch

from jukebox_core.config import PriorConfig
from jukebox_core.prior.gpu import StackedDecoder
from jukebox_core.prior.joint import EachPrior, accelerate, choose_dtype
from jukebox_core.prior.model import AutoregressivePrior

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]
K, T, B = 11, 24, 3


def two_priors(device="cpu", **options):
    priors = {}
    for seed, name in enumerate(("bass", "drums")):
        torch.manual_seed(seed)
        config = PriorConfig(
            **{
                "n_ctx": T,
                "l_bins": K,
                "width": 16,
                "depth": 6,
                "heads": 2,
                "blocks": 4,
                "m_attn": 0.5,
                "emb_width": 5,
                "embedding": "codebook",
            }
            | options
        )
        codebook = torch.randn(K, 5) if config.embedding == "codebook" else None
        model = AutoregressivePrior(config, codebook).eval().to(device)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3 if p.ndim > 1 else 0.5)
        priors[name] = model
    return priors


def expected_logits(priors, codes):
    with torch.no_grad():
        return torch.stack([p(c) for p, c in zip(priors.values(), codes, strict=True)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", (0, 1, 2))
@pytest.mark.parametrize("embedding", ("table", "codebook"))
def test_steps_equal_the_full_forward_of_each_prior(device, order, embedding):
    priors = two_priors(device, attn_order=order, embedding=embedding)
    codes = torch.randint(0, K, (2, B, T), device=device)
    expected = expected_logits(priors, codes)
    decoder = StackedDecoder(priors)
    for length in (T, 13):
        cache = decoder.new_cache(B, length)
        for t in range(length):
            logits = decoder.step(codes[:, :, t - 1] if t else None, cache)
            torch.testing.assert_close(logits, expected[:, :, t], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="is full"):
        decoder.step(codes[:, :, 0], cache)


def test_a_step_never_reads_numbers_back_from_the_device():
    """A CUDA graph cannot record that; tensors of the meta device refuse it as well."""
    decoder = StackedDecoder(two_priors("meta"))
    decoder.static_step(decoder.new_cache(B, T))


@pytest.mark.parametrize("device", DEVICES)
def test_pairs_are_reordered(device):
    priors = two_priors(device)
    codes = torch.randint(0, K, (2, 4, T), device=device)
    parents = torch.tensor([3, 1, 1, 0], device=device)
    decoder = StackedDecoder(priors)
    cache = decoder.new_cache(4, T)
    for t in range(T - 2):
        decoder.step(codes[:, :, t - 1] if t else None, cache)
    cache.reorder(parents)
    codes = codes[:, parents]
    expected = expected_logits(priors, codes)
    for t in range(T - 2, T):
        logits = decoder.step(codes[:, :, t - 1], cache)
        torch.testing.assert_close(logits, expected[:, :, t], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.bfloat16),
        pytest.param(
            "cuda",
            torch.float16,
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
        ),
    ],
)
def test_half_precision_log_probabilities_of_fixed_sequences(device, dtype):
    """The stated tolerance: 1% of a nat per code, on average over a sequence."""
    priors = {}
    for seed, name in enumerate(("bass", "drums")):
        torch.manual_seed(seed)
        config = PriorConfig(n_ctx=32, l_bins=64, width=64, depth=6, blocks=4, embedding="table")
        priors[name] = AutoregressivePrior(config).eval().to(device)
    codes = torch.randint(0, 64, (2, 9, 32), device=device)
    expected = torch.log_softmax(expected_logits(priors, codes), -1)
    decoder = StackedDecoder(priors, dtype)
    cache = decoder.new_cache(9, 32)
    steps = [decoder.step(codes[:, :, t - 1] if t else None, cache).clone() for t in range(32)]
    found = torch.log_softmax(torch.stack(steps, 2), -1)
    chosen = [x.gather(3, codes[..., None])[..., 0] for x in (found, expected)]
    assert ((chosen[0] - chosen[1]).mean(2).abs() < 0.01).all()


def test_what_accelerate_chooses():
    priors = two_priors()
    assert isinstance(accelerate(priors), EachPrior)  # on a CPU
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    assert choose_dtype(cpu, "auto", 1000) == torch.float32  # too small to gain
    assert choose_dtype(cpu, "bfloat16") == torch.bfloat16
    assert choose_dtype(cuda, "float16") == torch.float16
    assert choose_dtype(mps, "auto") == torch.float32
    with pytest.raises(ValueError, match="unusable on a CPU"):
        choose_dtype(cpu, "float16")
    with pytest.raises(ValueError, match="not there on mps"):
        choose_dtype(mps, "bfloat16")
    with pytest.raises(ValueError, match="differ in architecture"):
        StackedDecoder({"bass": priors["bass"], "drums": two_priors(depth=3)["drums"]})
