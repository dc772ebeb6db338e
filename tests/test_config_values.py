"""Any value of any field of a configuration works, or one line names the field."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jukebox_core.config import (
    Bandwidths,
    LossConfig,
    OptimConfig,
    PriorConfig,
    TrainConfig,
)
from jukebox_core.datasets.crops import Augmentation
from jukebox_core.evaluation.mask_estimator import MaskEstimator
from jukebox_core.evaluation.mask_objective import MaskObjective
from jukebox_core.presets import PRESETS
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.prior.objective import PriorObjective
from jukebox_core.training.distributed import seed_everything
from jukebox_core.training.optim import WeightAverage, build_optimizer, learning_rate
from jukebox_core.training.run import RunSettings
from jukebox_core.training.wandb import WandbConfig
from jukebox_core.vqvae.losses import reconstruction_terms
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ReconstructionObjective
from scripts import ablate_training, train_vqvae, training_memory
from scripts._training import FirstFlags

TINY = PRESETS["tiny"]
SMALL = 50_000
"""What has at most so many parameters, or samples, is tried."""

NUMBERS = st.one_of(
    st.integers(-3, 9),
    st.floats(0, 1),
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(),
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1e30, 1e-300, 1e39]),
    st.sampled_from([16, 64, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**30), 10**400]),
)
ANYTHING = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.sampled_from(["table", "codebook", "auto"]),
)
NESTED = st.recursive(ANYTHING, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=12)


def accepted(config, field, value):
    """The configuration with another value; None where one line that names the field refuses it."""
    try:
        return dataclasses.replace(config, **{field: value})
    except ValueError as error:
        assert "\n" not in str(error)
        assert field in str(error), error
        return None


def changed(config):
    """(field, value) of a configuration: values of the field's own kind, and any."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}

    def values(name):
        like = fields[name]
        own = NUMBERS
        if isinstance(like, tuple):
            numbers = st.lists(NUMBERS, min_size=len(like), max_size=len(like)).map(tuple)
            own = st.one_of(numbers, st.lists(numbers, max_size=3).map(tuple))
        return st.tuples(st.just(name), st.one_of(own, own, NESTED))

    return st.sampled_from(sorted(fields)).flatmap(values)


def one_step(objective, batch, moderate):
    """Forward, backward, update; `moderate`: nothing is so large that a sum overflows."""
    objective.train()
    optimizer = build_optimizer(objective, OptimConfig(lr=1e-4), fused=False)
    loss = objective(batch, torch.Generator().manual_seed(0)).loss
    loss.backward()
    optimizer.step()
    if moderate:
        assert loss.isfinite()
        assert all(x.isfinite().all() for x in objective.state_dict().values())


def parameters(build):
    with torch.device("meta"):
        return sum(x.numel() for x in build().state_dict().values())


def audio(samples, crops=2):
    return 0.1 * torch.randn(crops, samples, generator=torch.Generator().manual_seed(1))


LOSS = LossConfig(spectral_stft=(64, 16, 64), multispectral_stfts=((64, 16, 64), (32, 8, 20)))


@settings(max_examples=150)
@given(changed(TINY.vqvae))
def test_codec(change):
    config = accepted(TINY.vqvae, *change)
    if config is None:
        return
    widest = config.dilation_growth_rate ** (config.depth * max(config.multipliers) - 1)
    if config.hop > 256 or widest > 4096 or parameters(lambda: VQVAE(config)) > SMALL:
        return
    codec = VQVAE(config)
    try:
        objective = ReconstructionObjective(codec, LOSS, Bandwidths())
    except ValueError as error:
        assert "strides_t" in str(error)
        return
    one_step(objective, audio(config.hop * -(-128 // config.hop)), moderate=True)
    with torch.no_grad():
        codes = codec.eval().encode(audio(4 * config.hop))
        assert codec.decode(codes).isfinite().all()


@settings(max_examples=200)
@given(changed(TINY.loss))
def test_loss(change):
    config = accepted(LOSS, *change)
    if config is None:
        return
    sizes = [size for stft in (config.spectral_stft, *config.multispectral_stfts) for size in stft]
    if max(sizes) > 4096:
        return
    weights = [x for x in vars(config).values() if isinstance(x, float | int)]
    objective = ReconstructionObjective(VQVAE(TINY.vqvae), config, Bandwidths())
    one_step(objective, audio(max(128, 16 * (max(sizes) // 16))), max(weights) < 1e6)


@settings(max_examples=100)
@given(changed(Bandwidths()))
def test_bandwidths(change):
    bandwidths = accepted(Bandwidths(), *change)
    if bandwidths is not None:
        terms = reconstruction_terms(audio(128), audio(128).flip(1), LOSS, bandwidths)
        assert all(term.isfinite() for term in terms.values())


@settings(max_examples=250)
@given(changed(TINY.prior), st.booleans())
def test_prior(change, table):
    embedding = "table" if table else "codebook"
    config = accepted(dataclasses.replace(TINY.prior, embedding=embedding), *change)
    if config is None or config.n_ctx * config.width > SMALL or config.depth > 8:
        return
    if parameters(lambda: AutoregressivePrior(config)) > SMALL:
        return
    prior = AutoregressivePrior(config)
    codes = torch.arange(2 * min(config.n_ctx, 20)).view(2, -1) % config.l_bins
    one_step(PriorObjective(None, prior), codes, moderate=True)
    prior.eval()
    cache = prior.new_cache(2, min(config.n_ctx, 2))
    with torch.no_grad():
        assert prior.step(None, cache).isfinite().all()


@settings(max_examples=200)
@given(changed(TINY.mask))
def test_mask_estimator(change):
    config = accepted(TINY.mask, *change)
    if config is None or config.n_fft > 4096 or config.layers > 8:
        return
    alpha = {"bass": 0.5, "drums": 0.5}
    if parameters(lambda: MaskEstimator(config, alpha)) > SMALL:
        return
    one_step(MaskObjective(MaskEstimator(config, alpha)), audio(2048, 4), moderate=True)


class Layer(nn.Linear):
    """A layer that Muon can train."""

    def hidden_matrices(self):
        return [self.weight]


@settings(max_examples=400)
@given(changed(TINY.vqvae_optim), st.integers(1, 10**9), st.integers(0, 10**9))
def test_optimisation(change, steps, step):
    config = accepted(OptimConfig(), *change)
    if config is None:
        return
    rate = learning_rate(config, step, steps)
    assert 0 <= rate <= config.lr * (1 + 1e-9)
    layer = Layer(3, 3)
    optimizer, average = (
        build_optimizer(layer, config, fused=True),
        WeightAverage(layer, config.ema_decay),
    )
    for n in range(2):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, n, steps)
        layer(torch.zeros(2, 3)).sum().backward()  # the weights' gradient is zero
        optimizer.step()
        average.update(n)
    if max(config.lr, config.weight_decay) < 1e6:
        assert all(x.isfinite().all() for x in (*layer.parameters(), *average.values))


@settings(max_examples=200)
@given(changed(TrainConfig()))
def test_training(change):
    config = accepted(TrainConfig(), *change)
    if config is not None:
        state = torch.get_rng_state()
        seed_everything(config.seed + 7)  # of the eighth process
        torch.Generator().manual_seed(config.seed)
        np.random.default_rng((config.seed, 3))
        torch.set_rng_state(state)


@settings(max_examples=100)
@given(changed(TINY))
def test_preset(change):
    preset = accepted(TINY, *change)
    assert preset is None or 1 <= preset.window <= preset.prior.n_ctx


@settings(max_examples=200)
@given(changed(Augmentation()))
def test_augmentation(change):
    augmentation = accepted(Augmentation(), *change)
    if augmentation is not None:
        generator = np.random.default_rng(0)
        assert abs(augmentation.semitones(generator)) <= 48
        assert augmentation(audio(64), generator, 8000).isfinite().all()


@settings(max_examples=200)
@given(changed(WandbConfig()))
def test_wandb(change):
    accepted(WandbConfig(), *change)


PATHS = {"data": Path("data"), "output": Path("output")}
PROGRAMS = {
    "training": RunSettings(**PATHS),
    "train_vqvae": train_vqvae.defaults(FirstFlags()),
    "ablate_training": ablate_training.Args(**PATHS),
    "training_memory": training_memory.Args(),
}


@pytest.mark.parametrize("name", PROGRAMS)
@settings(max_examples=150)
@given(data=st.data())
def test_flags_of_programs(name, data):
    accepted(PROGRAMS[name], *data.draw(changed(PROGRAMS[name])))


IMPOSSIBLE = {
    TINY.vqvae: {
        "m_conv": (0, 1e-3, 1e30),
        "dilation_growth_rate": (0, 10**9),
        "dilation_cycle": (0,),
        "l_mu": (2, -0.1),
        "revival_threshold": (-1,),
        "levels": (10**9,),
        "depth": (10**9,),
        "strides_t": ((2, 10**9), (0, 2), "22"),
        "downs_t": ((10**9, 2), (0, 2)),
        "multipliers": ((10**9, 1),),
        "width": (10**9,),
        "emb_width": (10**9,),
        "l_bins": (2**40,),
        "sample_rate": (10**7,),
        "top_only": (1,),
        "reverse_decoder_dilation": (None,),
    },
    LossConfig(): {
        "commit": (-1, math.nan),
        "lmix_l2": (math.inf,),
        "linf_k": (0, 2.0),
        "spectral_stft": ((0, 0, 0), (10, 20, 30), (64, 32, 16), (64, 16), (2**31, 1, 1)),
        "multispectral_stfts": ((), (64, 16, 64), ((64, 16, 64), (64, 0, 64))),
    },
    PriorConfig(): {
        "heads": (0, 3),
        "blocks": (0, 7),
        "m_mlp": (-1, 0),
        "m_attn": (1e-4, 1e300),
        "init_scale": (math.nan, -1),
        "dropout": (1,),
        "depth": (0, 10**9),
        "width": (2**40,),
        "n_ctx": (0, 2**40),
        "attn_order": (True,),
        "embedding": ("codebooks",),
    },
    OptimConfig(): {
        "lr": (-1e-3, math.inf),
        "betas": ((0.9, 1.0), (0.9,)),
        "eps": (0,),
        "weight_decay": (-1,),
        "warmup_steps": (-1, 1.5),
        "decay_steps": (10**30,),
        "grad_clip": (-1,),
        "ema_decay": (2,),
    },
    TrainConfig(): {
        "batch_size": (10**7,),
        "validate_batches": (-1,),
        "workers": (-1,),
        "seed": (-1, 99_999_999_999_999_999_999, 1.0),
    }
    | dict.fromkeys(("steps", "crop", "log_every", "validate_every", "checkpoint_every"), (0,)),
}


@pytest.mark.parametrize("config", IMPOSSIBLE, ids=lambda config: type(config).__name__)
def test_values_that_cannot_be(config):
    for field, values in IMPOSSIBLE[config].items():
        for value in values:
            assert accepted(config, field, value) is None, (field, value)
