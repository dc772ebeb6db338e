"""Files that version 0.1 wrote still load."""

from pathlib import Path

import pytest
import torch

from jukebox_core.checkpoints import fingerprint, load_codec, load_meta, load_prior, load_state
from jukebox_core.evaluation.mask_estimator import load_mask_estimator
from jukebox_core.separation.calibration import load_calibration
from lass.counter import TripleCounter
from lass.counts import CountsFile, load_counts
from lqvae.sums import code_sums, load_sums

OLD = Path(__file__).parent / "written_by_version_0.1"
MODELS, SOURCES = OLD / "models", ("bass", "drums")
FAMILIES = ("linearisation", "reconstruction")


@pytest.mark.parametrize("family", FAMILIES)
def test_models_load_and_belong_together(family):
    codec, codec_id = MODELS / family / "vqvae", fingerprint(MODELS / family / "vqvae")
    assert torch.isfinite(load_codec(codec).codebook).all()
    assert load_meta(codec)["step"] == 2
    for source in SOURCES:
        prior = load_prior(MODELS / family / f"prior_{source}", codec_fingerprint=codec_id)
        assert prior.config.l_bins == load_codec(codec).config.l_bins


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_load_and_belong_to_their_codec(family, tmp_path):
    codec = fingerprint(MODELS / family / "vqvae")
    calibration = load_calibration(MODELS / family / "calibration.safetensors", codec, SOURCES)
    assert calibration.sources == SOURCES
    path = MODELS / family / "counts.safetensors"
    counts, metadata = load_counts(path, codec, SOURCES)
    counter = TripleCounter(counts.n_codes, tmp_path)
    counter.adopt(CountsFile(path))
    assert counter.triples == counts.counts.sum() > 0
    assert counter.iterations == int(metadata["iterations"]) > 0


def test_code_sums_load_and_are_those_of_the_codec():
    run = MODELS / "linearisation" / "vqvae"
    sums = load_sums(MODELS / "linearisation" / "sums.safetensors", fingerprint(run))
    assert torch.equal(sums, code_sums(load_codec(run).codebook))


def test_the_mask_estimator_loads():
    estimator = load_mask_estimator(MODELS / "mask_estimator")
    assert estimator.sources == SOURCES


@pytest.mark.parametrize("run", ("vqvae", "prior_bass"))
def test_training_states_load(run):
    state = load_state(MODELS / "linearisation" / run)
    assert state["step"] == load_meta(MODELS / "linearisation" / run)["step"] == 2


# Separation and evaluation (OLD / "stems", "results.json", "models/tuned", "data"):
