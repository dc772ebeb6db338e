"""scripts.pretrain and scripts.demo: their stages have flags that the programs take."""

import importlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import demo, pretrain

PLANS = {
    "pretrain": pretrain.stages(pretrain.Args()),
    "pretrain, with takes": pretrain.stages(pretrain.Args(groove=Path("takes"), length=0.01)),
    "demo": demo.stages(demo.Args()),
    "demo, plain": demo.stages(demo.Args(songs="plain")),
}


@pytest.mark.parametrize("name", PLANS)
def test_every_stage_is_a_command_that_its_program_takes(name):
    for stage in PLANS[name]:
        script, *flags = stage.command
        args = importlib.import_module(f"scripts.{script}").main._parse(flags)
        assert args is not None


def test_the_learning_rate_has_fallen_to_zero_at_the_last_step():
    for length in (0.001, 0.3, 1.0, 4.0):
        for flags in pretrain.longer(length).values():
            numbers = dict(zip(flags[::2], flags[1::2], strict=True))
            assert 0 < numbers["--optim.decay-steps"] <= numbers["--train.steps"]


@given(st.sampled_from(["tracks", "length", "seed", "cores"]), st.sampled_from([-1, 0, math.nan]))
def test_values_out_of_range_are_named(name, value):
    if name == "seed" and value == 0:
        return
    with pytest.raises(ValueError, match=f"^{name} is "):
        pretrain.Args(**{name: value})
