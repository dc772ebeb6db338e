"""The separator on random tiny parts: what it writes must add up whatever the models know."""

from types import SimpleNamespace

import pytest
import torch

from jukebox_core.presets import PRESETS
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.separation.particles import ParticleSampler
from jukebox_core.separation.samples import JointSamples
from jukebox_core.separation.separator import Separator
from jukebox_core.vqvae.model import VQVAE
from lqvae import LatentGaussianLikelihood, code_sums

RATE = 22_050


@pytest.fixture(scope="module")
def separator():
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    codec = VQVAE(preset.vqvae).eval()
    for level in codec.levels:
        codec.bottleneck(level).codebook.normal_(std=0.3)
    priors = {
        name: AutoregressivePrior(preset.prior, codec.codebook).eval() for name in ("bass", "drums")
    }
    likelihood = LatentGaussianLikelihood(codec.codebook, code_sums(codec.codebook))
    return Separator(codec, priors, likelihood, candidates=3, window=64, overlap=8)


@pytest.mark.parametrize(
    ("shape", "rate"),
    [
        ((9_000,), 22_050),
        ((2, 9_001), 44_100),
        ((3, 5_000), 48_000),
        ((1, 700), 8_000),
        ((50,), 22_050),
    ],
)
def test_refined_stems_sum_to_the_mixture(separator, shape, rate):
    mixture = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    stems = separator(mixture, rate, seed=3)
    assert set(stems) == {"bass", "drums"}
    for stem in stems.values():
        assert stem.shape == mixture.shape and stem.isfinite().all()
    torch.testing.assert_close(sum(stems.values()), mixture, atol=1e-4, rtol=0)


def test_each_channel_is_masked_by_itself(separator):
    left = torch.randn(4_000)
    both = separator(torch.stack([left, left]), 22_050, seed=1)
    mono = separator(left, 22_050, seed=1)
    silent = separator(torch.stack([2 * left, 0 * left]), 22_050, seed=1)
    for name, stem in both.items():
        torch.testing.assert_close(stem[0], mono[name], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(stem[0], stem[1])
        torch.testing.assert_close(silent[name][0], 2 * mono[name], atol=1e-5, rtol=1e-4)
        assert (silent[name][1] == 0).all()


def test_raw_decode_of_one_window_is_the_picked_candidate(separator):
    mixture = torch.randn(64 * separator.codec.config.hop)
    candidates = separator.candidates(mixture[None], torch.Generator().manual_seed(5))
    picked = separator.selection(mixture[None], candidates)
    stems = separator(mixture, 22_050, seed=5, refine=False)
    for name in separator.sources:
        codes = candidates.samples.codes[name][:, picked[name][0]]
        expected = 0.5 * separator.codec.decode(codes)[0]
        torch.testing.assert_close(stems[name], expected, atol=1e-6, rtol=1e-5)


class Apart:
    """Takes candidate 1 of the first source and 2 of the second."""

    def __call__(self, mixture, candidates):
        return {name: torch.full((len(mixture),), 1 + i) for i, name in enumerate(candidates.audio)}


def test_raw_decode_takes_a_candidate_per_source(separator):
    parts = separator.codec, separator.priors, separator.likelihood
    apart = Separator(*parts, candidates=3, window=64, overlap=8, selection=Apart())
    mixture = torch.randn(64 * separator.codec.config.hop)
    found = apart.candidates(mixture[None], torch.Generator().manual_seed(5))
    stems = apart(mixture, 22_050, seed=5, refine=False)
    for i, name in enumerate(apart.sources):
        torch.testing.assert_close(stems[name], 0.5 * found.audio[name][0, 1 + i])


def test_raw_decode_keeps_rate_length_and_channels(separator):
    stems = separator(torch.randn(2, 9_001), 44_100, refine=False)
    for stem in stems.values():
        assert stem.shape == (2, 9_001)
        torch.testing.assert_close(stem[0], stem[1])


def test_same_seed_same_stems(separator):
    mixture = torch.randn(5_000)
    first, second = (separator(mixture, 22_050, seed=2, batch=2) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name])
    other = separator(mixture, 22_050, seed=3, batch=2)
    assert not torch.equal(first["bass"], other["bass"])


def test_progress_counts_every_step_of_every_batch(separator):
    seen = []
    separator(torch.randn(3_000), 22_050, batch=1, progress=lambda *x: seen.append(x))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}


def test_bad_mixtures_and_parts_are_refused(separator):
    with pytest.raises(ValueError, match="NaN or infinite"):
        separator(torch.tensor([0.0, float("nan")]), 22_050)
    with pytest.raises(ValueError, match="expected \\[T\\] or \\[C, T\\]"):
        separator(torch.zeros(1, 2, 3), 22_050)
    with pytest.raises(ValueError, match="expected \\[T\\] or \\[C, T\\]"):
        separator(torch.zeros(2, 0), 22_050)
    parts = (separator.codec, separator.priors, separator.likelihood)
    with pytest.raises(ValueError, match="exceeds the priors' context of 256"):
        Separator(*parts, window=1024)
    with pytest.raises(ValueError, match="alpha names"):
        Separator(*parts, window=64, alpha={"bass": 0.5, "piano": 0.5})
    with pytest.raises(ValueError, match="different numbers of codes"):
        small = LatentGaussianLikelihood(torch.zeros(5, 2), torch.zeros(5, 5))
        Separator(parts[0], parts[1], small, window=64)


def test_oracle_is_no_part_of_separation(separator):
    """No reference can reach the separator: its call takes the mixture alone."""
    import inspect

    names = set(inspect.signature(Separator.__call__).parameters)
    assert names == {"self", "mixture", "rate", "seed", "refine", "batch", "progress"} | {
        "uncertainty"  # which it fills
    }


@pytest.fixture
def shifted(separator):
    parts = separator.codec, separator.priors, separator.likelihood
    return Separator(*parts, candidates=4, window=64, overlap=8, shifts=2)


def test_shifted_candidates_are_those_of_the_moved_mixture_moved_back(shifted):
    hop = shifted.codec.config.hop
    mixtures = torch.randn(2, 64 * hop, generator=torch.Generator().manual_seed(1))
    found = shifted.candidates(mixtures, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    for b, mixture in enumerate(mixtures):  # the numbers are drawn in this order, batch or not
        for s, offset in enumerate((0, hop // 2)):
            moved = torch.cat([torch.zeros(offset), mixture])[: 64 * hop]
            codes = shifted.codec.encode(moved[None])
            drawn = shifted.sampler(shifted.priors, shifted.likelihood, codes, 2, generator)
            for name in shifted.sources:
                at = slice(2 * s, 2 * s + 2)
                assert torch.equal(found.samples.codes[name][b, at], drawn.codes[name][0])
                decoded = shifted.codec.decode(drawn.codes[name][0])
                audio = found.audio[name][b, at]
                kept = 64 * hop - offset
                torch.testing.assert_close(
                    audio[:, :kept], decoded[:, offset:], atol=1e-5, rtol=1e-4
                )
                assert (audio[:, kept:] == 0).all()
            log_prior = found.samples.log_prior["bass"][b, 2 * s : 2 * s + 2]
            torch.testing.assert_close(log_prior, drawn.log_prior["bass"][0])


class Bits:
    """A codec of signals of zeros and ones that loses nothing: 4 samples are the bits of a code.

    It is equivariant to any shift.
    """

    config = SimpleNamespace(hop=4, sample_rate=RATE, l_bins=16)
    codebook = torch.empty(16, 1)
    _places = torch.tensor([1, 2, 4, 8])

    def encode(self, audio):
        return (audio.long().unflatten(-1, (-1, 4)) * self._places).sum(-1)

    def decode(self, codes):
        bits = codes.unsqueeze(-1).bitwise_and(self._places) > 0
        return bits.flatten(-2).float()


class Copy:
    """As candidates of both sources the mixture's own codes."""

    def __call__(self, priors, likelihood, codes, n, generator, progress=None, factors=None):
        copies = dict.fromkeys(priors.names, codes.unsqueeze(1).expand(-1, n, -1))
        zeros = torch.zeros(len(codes), n)
        return JointSamples(copies, dict.fromkeys(copies, zeros), zeros)


@pytest.mark.parametrize("shifts", (1, 2, 3, 4))
def test_candidates_of_all_shifts_lie_on_the_mixture(shifts):
    priors = SimpleNamespace(names=("bass", "drums"), n_codes=16, n_ctx=32)
    likelihood = SimpleNamespace(n_codes=16)
    separator = Separator(
        Bits(), priors, likelihood, sampler=Copy(), candidates=12, window=32, shifts=shifts
    )
    mixtures = torch.randint(2, (3, 128)).float()
    found = separator.candidates(mixtures, torch.Generator())
    lost = [round(s * 4 / shifts) for s in range(shifts)]  # samples at the end
    for audio in found.audio.values():
        for n in range(12):
            kept = 128 - lost[n // (12 // shifts)]
            assert torch.equal(audio[:, n, :kept], mixtures[:, :kept])
            assert (audio[:, n, kept:] == 0).all()


def test_weights_are_shared_out_evenly_over_shifts(separator):
    parts = separator.codec, separator.priors, separator.likelihood
    particles = ParticleSampler()
    shifted = Separator(*parts, sampler=particles, candidates=6, window=64, shifts=3)
    mixtures = torch.randn(2, 64 * shifted.codec.config.hop)
    weights = shifted.candidates(mixtures, torch.Generator()).samples.log_weights.exp().float()
    torch.testing.assert_close(weights.view(2, 3, 2).sum(2), torch.full((2, 3), 1 / 3))


def test_the_batch_is_no_part_of_shifted_stems(shifted):
    mixture = torch.randn(5_000)
    one, other = (shifted(mixture, 22_050, seed=2, batch=n) for n in (1, 3))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sum(one.values()), mixture, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shifts", (0, 3, 64))
def test_shifts_that_cannot_be_are_refused(separator, shifts):
    parts = separator.codec, separator.priors, separator.likelihood
    with pytest.raises(ValueError, match="shifts is"):
        Separator(*parts, candidates=64, window=64, shifts=shifts)
