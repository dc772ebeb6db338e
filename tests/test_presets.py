"""The published configurations: counted, saved, loaded, run."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from parity_fixtures import SHARED

from jukebox_core.checkpoints import load_codec, load_prior, save_model
from jukebox_core.config import Bandwidths
from jukebox_core.presets import PRESETS
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.prior.objective import PriorObjective
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.upstream.training import UpstreamAdam, clip_gradients
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ReconstructionObjective
from lqvae.likelihood import LatentGaussianLikelihood

FULL = ("paper", "jukebox_5b")


def codec_parameters(downs, strides=(2, 2, 2), multipliers=(2, 1, 1), width=32, depth=4, emb=64):
    """Parameters of a codec, layer by layer: a check that shares nothing with the model."""

    def conv(inputs, outputs, kernel):
        return inputs * outputs * kernel + outputs

    total = 0
    for level in range(len(downs)):
        w, d = width * multipliers[level], depth * multipliers[level]
        stack = d * (conv(w, w, 3) + conv(w, w, 1))
        for stage in range(level + 1):
            kernel = 2 * strides[stage]
            for step in range(downs[stage]):
                first, last = step == 0, step == downs[stage] - 1
                inputs = (1 if stage == 0 else emb) if first else w
                total += conv(inputs, w, kernel) + stack  # encoder
                total += stack + conv(w, emb if last else w, kernel)  # decoder
            total += conv(w, emb, 3) + conv(emb, w, 3)
        total += conv(emb, 1, 3)
    return total


def prior_parameters(config):
    """Parameters of a prior, by its formula."""
    w, a, h = config.width, int(config.m_attn * config.width), int(config.m_mlp * config.width)
    layer = w * 3 * a + 3 * a + a * w + w + w * h + h + h * w + w + 4 * w
    tables = (
        config.l_bins * w if config.embedding == "table" else (config.emb_width + config.l_bins) * w
    )
    return config.depth * layer + config.n_ctx * w + w + tables


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "codec", "prior"),
    [("paper", 1_105_603, 161_928_192), ("jukebox_5b", 1_485_763, 161_862_656)],
)
def test_numbers_of_parameters(name, codec, prior):
    preset = PRESETS[name]
    with torch.device("meta"):
        built = VQVAE(preset.vqvae), AutoregressivePrior(preset.prior)
    assert count(built[0]) == codec_parameters(preset.vqvae.downs_t) == codec
    assert count(built[1]) == prior_parameters(preset.prior) == prior


@pytest.mark.skipif(SHARED is None, reason="the recorded parameter listings are not here")
@pytest.mark.parametrize(("name", "system"), [("paper", "lqvae"), ("jukebox_5b", "lass")])
def test_numbers_of_parameters_are_those_recorded(name, system):
    path = SHARED / "fixtures" / f"param_listing_{system}.json"
    listing = json.loads(path.read_text())
    vqvae = {k: v for k, v in listing.items() if k.startswith("vqvae")}.popitem()[1]
    prior = listing[f"small_prior({system})"]

    def total(entries, *left_out):
        kept = (s for n, (s, _) in entries.items() if not n.endswith(left_out))
        return sum(math.prod(shape) for shape in kept)

    with torch.device("meta"):
        assert count(VQVAE(PRESETS["paper"].vqvae)) == total(vqvae, ".k")
        ours = count(AutoregressivePrior(PRESETS[name].prior))
    tied = ("x_out.weight",) if system == "lass" else ()
    assert ours == total(prior, ".k", *tied)


@pytest.mark.parametrize("name", FULL)
def test_published_sizes(name):
    preset = PRESETS[name]
    assert preset.vqvae.hops == {"paper": (4, 16, 64), "jukebox_5b": (8, 32, 128)}[name]
    assert preset.vqvae.sample_rate == {"paper": 22_050, "jukebox_5b": 44_100}[name]
    assert preset.loss.commit == {"paper": 1.0, "jukebox_5b": 0.02}[name]
    assert preset.vqvae.l_bins == preset.prior.l_bins == 2048
    assert preset.prior.block_length == 128 and preset.prior.depth == 48


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_codec_trains_is_saved_and_loaded(name, tmp_path):
    torch.manual_seed(0)
    preset = PRESETS[name]
    codec = VQVAE(preset.vqvae)
    audio = 0.1 * torch.randn(2, 8192)
    objective = ReconstructionObjective(codec, preset.loss, Bandwidths(0.1, 0.01, 10.0)).train()
    optimizer = UpstreamAdam(codec.parameters(), 3e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = objective(audio).loss
        loss.backward()
        clip_gradients(codec.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    save_model(tmp_path, codec, {"kind": "vqvae", "config": asdict(preset.vqvae)})
    loaded = load_codec(tmp_path)
    codes = loaded.encode(audio)
    assert codes.shape == (2, 8192 // preset.vqvae.hop)
    assert torch.equal(codes, codec.eval().encode(audio))
    assert loaded.decode(codes).shape == audio.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_prior_trains_is_saved_loaded_and_sampled(name, tmp_path):
    torch.manual_seed(0)
    preset = PRESETS[name]
    codebook = torch.randn(2048, 64) if preset.prior.embedding == "codebook" else None
    prior = AutoregressivePrior(preset.prior, codebook)
    codes = torch.randint(2048, (1, 64))
    objective = PriorObjective(None, prior).train()
    optimizer = UpstreamAdam(prior.parameters(), 3e-4, weight_decay=0.01)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = objective(codes).loss
        loss.backward()
        clip_gradients(prior.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(11, abs=0.5) and losses[1] < losses[0]
    save_model(tmp_path, prior, {"kind": "prior", "config": asdict(preset.prior)})
    loaded = load_prior(tmp_path)
    with torch.no_grad():
        wanted = prior.eval()(codes[:, :16])
        cache, last, logits = loaded.new_cache(1, 16), None, []
        for t in range(16):
            logits.append(loaded.step(last, cache))
            last = codes[:, t]
    torch.testing.assert_close(torch.stack(logits, 1), wanted, rtol=1e-4, atol=1e-4)
    likelihood = LatentGaussianLikelihood(
        torch.randn(2048, 64), torch.randint(2048, (2048, 2048), dtype=torch.int32)
    )
    drawn = AncestralSampler()(
        {"bass": loaded, "drums": loaded}, likelihood, codes[:, :2], 2, torch.Generator()
    )
    assert drawn.codes["bass"].shape == (1, 2, 2)
