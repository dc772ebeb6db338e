"""The prior: cached steps against the full forward, and attention against a written-out mask."""

import math

import pytest
import torch

from jukebox_core.config import PriorConfig
from jukebox_core.prior.attention import Attention
from jukebox_core.prior.model import AutoregressivePrior

KINDS = ("dense", "block", "column", "previous_block")


def config(**changes):
    base = dict(n_ctx=24, l_bins=11, width=16, depth=4, heads=2, blocks=4, attn_order=9, m_attn=0.5)
    return PriorConfig(**(base | dict(embedding="table", emb_width=5) | changes))


def prior(**changes):
    torch.manual_seed(0)
    cfg = config(**changes)
    model = AutoregressivePrior(cfg, torch.randn(cfg.l_bins, cfg.emb_width) if changes else None)
    for p in model.parameters():  # spread, so that every path matters
        torch.nn.init.normal_(p, std=0.4)
    return model.eval()


def visible(kind, query, key, length):
    """Whether the position `query` attends to `key`, by the definition of the kinds."""
    if kind == "previous_block":
        return key // length == query // length - 1
    if key > query:
        return False
    return {
        "dense": True,
        "block": key // length == query // length,
        "column": key % length == query % length,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", (1, 5, 6, 7, 17, 24))
def test_attention_equals_masked_softmax(kind, steps):
    torch.manual_seed(1)
    cfg = config()
    attention = Attention(cfg, kind).double()
    x = torch.randn(3, steps, cfg.width, dtype=torch.float64)
    q, k, v = (
        part.view(3, steps, cfg.heads, -1).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1)
    )
    mask = torch.tensor(
        [[visible(kind, i, j, cfg.block_length) for j in range(steps)] for i in range(steps)]
    )
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    weights = torch.where(mask, logits.exp(), 0.0)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)  # nothing visible: zeros
    expected = attention.out((weights @ v).transpose(1, 2).reshape(3, steps, -1))
    torch.testing.assert_close(attention(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", (0, 1, 2, 9))
@pytest.mark.parametrize("embedding", ("table", "codebook"))
def test_cached_steps_equal_full_forward_at_every_position(order, embedding):
    model = prior(attn_order=order, embedding=embedding).double()
    codes = torch.randint(0, 11, (3, 24))
    full = model(codes)
    for length in (24, 13):  # a cache as long as the context, and a shorter one
        cache = model.new_cache(3, length)
        for t in range(length):
            logits = model.step(codes[:, t - 1] if t else None, cache)
            torch.testing.assert_close(logits, full[:, t], rtol=1e-9, atol=1e-9)


def test_forward_is_causal():
    model = prior()
    codes = torch.randint(0, 11, (1, 24))
    full = model(codes)
    for t in range(1, 24):
        other = codes.clone()
        other[:, t:] = (other[:, t:] + 1) % 11
        torch.testing.assert_close(model(other)[:, : t + 1], full[:, : t + 1])
        assert not torch.equal(model(other)[:, t + 1 :], full[:, t + 1 :]) or t == 23


def test_reorder_moves_every_layer():
    model = prior().double()
    codes = torch.randint(0, 11, (4, 24))
    parents = torch.tensor([2, 2, 0, 3])
    cache = model.new_cache(4, 24)
    for t in range(15):
        model.step(codes[:, t - 1] if t else None, cache)
    cache.reorder(parents)
    expected = model(codes)[parents]
    for t in range(15, 24):
        logits = model.step(codes[parents, t - 1], cache)
        torch.testing.assert_close(logits, expected[:, t], rtol=1e-9, atol=1e-9)


def test_bits_per_code_is_the_mean_negative_log2():
    model = prior()
    codes = torch.randint(0, 11, (2, 24))
    log_p = torch.log_softmax(model(codes), -1)
    chosen = [[log_p[b, t, codes[b, t]].item() for t in range(24)] for b in range(2)]
    expected = -sum(map(sum, chosen)) / 48 / math.log(2)
    assert model.bits_per_code(codes).item() == pytest.approx(expected, rel=1e-6)


def test_cache_bytes_do_not_grow_and_are_what_the_layout_says():
    model = prior(attn_order=2, depth=3)
    cache = model.new_cache(2, 24)
    block, width = 6, 8  # block length, attention width over all heads
    per_kind = {"block": block, "column": 24, "previous_block": 2 * block}
    expected = sum(2 * 2 * width * n * 4 for n in per_kind.values())
    assert cache.nbytes() == expected
    for t in range(24):
        model.step(torch.zeros(2, dtype=torch.int64) if t else None, cache)
    assert cache.nbytes() == expected


def test_border_errors():
    model = prior()
    with pytest.raises(ValueError, match="25 codes do not fit"):
        model(torch.zeros(1, 25, dtype=torch.int64))
    cache = model.new_cache(1, 1)
    with pytest.raises(ValueError, match="None at the first position"):
        model.step(torch.zeros(1, dtype=torch.int64), cache)
    model.step(None, cache)
    with pytest.raises(ValueError, match="is full"):
        model.step(torch.zeros(1, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="cache length is 99"):
        model.new_cache(1, 99)
    with pytest.raises(ValueError, match="the prior expects"):
        AutoregressivePrior(config(embedding="codebook"), torch.zeros(3, 3))
