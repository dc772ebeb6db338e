import dataclasses
import json

import pytest

from jukebox_core.config import Bandwidths, LossConfig, PriorConfig, VQVAEConfig, from_dict
from jukebox_core.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json_and_fit_together(name):
    preset = PRESETS[name]
    for config in (preset.vqvae, preset.loss, preset.prior, preset.vqvae_train, preset.prior_optim):
        assert from_dict(type(config), json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert preset.prior.l_bins == preset.vqvae.l_bins
    assert preset.prior.emb_width == preset.vqvae.emb_width
    assert preset.prior_train.crop // preset.vqvae.hop <= preset.prior.n_ctx
    assert preset.window <= preset.prior.n_ctx
    assert preset.vqvae_train.crop % preset.vqvae.hop == 0


def test_paper_hops_and_attention_pattern():
    assert PRESETS["paper"].vqvae.hops == (4, 16, 64)
    assert PRESETS["jukebox_5b"].vqvae.hops == (8, 32, 128)
    kinds = PRESETS["paper"].prior.attention_kinds
    assert len(kinds) == 48
    assert kinds[:4] == ("block", "column", "previous_block", "block")
    assert PRESETS["paper"].prior.block_length == 128


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="downs_t has 2 entries, levels is 3"):
        VQVAEConfig(downs_t=(2, 2))
    with pytest.raises(ValueError, match="attn_order is 6"):
        PriorConfig(attn_order=6)
    with pytest.raises(ValueError, match="not a multiple of blocks"):
        PriorConfig(n_ctx=100, blocks=64)
    with pytest.raises(ValueError, match="bandwidth l2 is 0"):
        Bandwidths(l2=0.0)


def test_from_dict_is_strict():
    values = dataclasses.asdict(LossConfig())
    with pytest.raises(ValueError, match="has no field colour"):
        from_dict(LossConfig, values | {"colour": 1})
    values.pop("commit")
    with pytest.raises(ValueError, match="misses the field commit"):
        from_dict(LossConfig, values)
    assert dataclasses.is_dataclass(from_dict(LossConfig, dataclasses.asdict(LossConfig())))
