# ruff: noqa: F401 - the examples use these names
"""The examples of CONTRIBUTING.md run, and do what the page promises."""

import re
from pathlib import Path

import pytest
import torch

from data.slakh import prepare
from jukebox_core import PRESETS, VQVAE, audio
from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.likelihood import PairScores
from jukebox_core.separation.method import Method
from jukebox_core.separation.posterior import draw_chunks
from jukebox_core.separation.samples import JointSamples
from jukebox_core.separation.sampling_task import SamplingTask
from jukebox_core.vqvae.objective import ObjectiveOutput, ReconstructionObjective

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"## Add a ([\w ]+)\n.*?```python\n(.*?)```", PAGE, re.DOTALL))


def run(name, **names):
    """The names that an example defines; `names` are those that it uses."""
    scope = {**globals(), **names}
    exec(compile(EXAMPLES[name], f"CONTRIBUTING.md: {name}", "exec"), scope)
    return scope


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_short(name):
    assert len(EXAMPLES[name].strip().splitlines()) < 20


def test_likelihood(tiny_models):
    separator = run("likelihood", models=tiny_models)["separator"]
    mixture = 0.1 * torch.randn(1, 5000)
    stems = separator(mixture, 22_050)
    torch.testing.assert_close(sum(stems.values()), mixture, atol=1e-4, rtol=0)


def test_sampler_draws_as_the_ancestral_sampler(tiny_models):
    separator = run("likelihood", models=tiny_models)["separator"]
    codes = torch.randint(32, (2, 9))
    first, second = (
        sampler(separator.priors, separator.likelihood, codes, 3, torch.Generator().manual_seed(0))
        for sampler in (run("sampler")["Plain"](), AncestralSampler())
    )
    for one, other in zip(first[:2], second[:2], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert torch.equal(first.log_likelihood, second.log_likelihood)


def test_objective_adds_the_size_of_the_latents():
    torch.manual_seed(0)
    codec, audio_ = VQVAE(PRESETS["tiny"].vqvae).eval(), torch.randn(2, 4096)
    for level in codec.levels:
        codec.bottleneck(level).codebook.normal_()
    both = [
        kind(codec, LossConfig(), Bandwidths())(audio_)
        for kind in (run("codec objective")["SmallLatents"], ReconstructionObjective)
    ]
    size = both[0].metrics["latent_size"]
    assert size > 0
    torch.testing.assert_close(both[0].loss, both[1].loss + size)


def test_data_source(tmp_path):
    scope = run("data source", folder=tmp_path / "songs", output=tmp_path / "prepared")
    manifest = scope["manifest"]
    assert not scope["skipped"] and manifest.sources == ("bass", "drums")
    assert {track.split for track in manifest.tracks} == {"train", "validation", "test"}
