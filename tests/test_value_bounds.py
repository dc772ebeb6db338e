"""Values of a separation: any of them works on a tiny example, or one line names its field."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.smoothing import GaussianBase
from jukebox_core.prior.cache import PriorCache
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.beam import BeamSampler
from jukebox_core.separation.calibration import Calibration, CalibrationMeter
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.method import resolve_each
from jukebox_core.separation.particles import ParticleSampler
from jukebox_core.separation.samples import Candidates
from jukebox_core.separation.selection import MinimumBayesRisk, SpectralFit
from jukebox_core.separation.separator import Sizes
from jukebox_core.separation.settings import Settings
from jukebox_core.separation.truncation import Truncation
from lass.counts import count_triples
from lass.likelihood import CountLikelihood, SmoothedLikelihood
from lass.smoothing import Marginals, Overall
from lqvae.likelihood import LatentGaussianLikelihood
from lqvae.sums import code_sums
from scripts._methods import METHODS
from tests.bases import probabilities

K, T, N = 4, 3, 4
EDGES = [0, -1, 1, 2, 3, 5, 8, 1e-300, 1e-30, 1e-15, 0.5, 1.0, 1e15, 1e30, 1e300, 2**31, 10**30]
EDGES += [math.nan, math.inf, -math.inf, -0.0, None, True, False, "", "nonsense", (), (1,)]
ANYTHING = st.one_of(
    st.sampled_from(EDGES),
    st.integers(),
    st.integers(-2, 20),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0, 3),
    st.text(max_size=3),
)


class Table:
    """A prior of fixed logits."""

    n_codes, n_ctx = K, 8

    def new_cache(self, batch_size, length):
        return Nothing(batch_size)

    def step(self, codes, cache):
        return torch.tensor([-40.0, 0.0, 3.0, 40.0]).expand(cache.size, K)


class Nothing(PriorCache):
    def __init__(self, size):
        self.size = size

    def reorder(self, parents):
        pass

    def nbytes(self):
        return 0


PRIORS = {"bass": Table(), "drums": Table()}
CODEBOOK = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 30.0], [0.5, 0.1]])
SUMS = code_sums(CODEBOOK)
CODES = [np.array(x) for x in ([0, 1, 2, 2, 3], [1, 1, 0, 0, 3], [0, 1, 2, 2, 3])]
COUNTS = count_triples(K, *CODES)
LIKELIHOOD_OF = SmoothedLikelihood(COUNTS, Marginals(COUNTS), 1.0)


def builds(make, *names):
    """The object, or None where a line that names one of the fields refuses the values."""
    try:
        return make()
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith(names), error
        return None


def draws(sampler, likelihood=LIKELIHOOD_OF):
    generator = torch.Generator().manual_seed(0)
    drawn = sampler(PRIORS, likelihood, torch.tensor([[0, 1, 3]]), N, generator)
    for name in PRIORS:
        assert drawn.codes[name].shape == (1, N, T) and drawn.codes[name].max() < K
        assert not drawn.log_prior[name].isnan().any()
    assert not drawn.log_likelihood.isnan().any()
    if drawn.log_weights is not None:
        assert drawn.log_weights.exp().sum().item() == pytest.approx(1, abs=1e-4)


@given(ANYTHING, ANYTHING, ANYTHING)
def test_ancestral_draws(temperature, top_k, top_p):
    names = ("temperature", "top_k", "top_p")
    sampler = builds(lambda: AncestralSampler(temperature, top_k, top_p), *names)
    cut = builds(lambda: Truncation(top_k, top_p), "top_k", "top_p")
    assert sampler is None or cut is not None
    if sampler is not None:
        draws(sampler)


@given(ANYTHING)
def test_each_truncation_and_temperature_by_itself(value):
    for make, name in (
        (lambda: AncestralSampler(temperature=value), "temperature"),
        (lambda: AncestralSampler(top_k=value), "top_k"),
        (lambda: AncestralSampler(top_p=value), "top_p"),
        (lambda: BeamSampler(value), "temperature"),
        (lambda: ParticleSampler(value), "temperature"),
        (lambda: ParticleSampler(threshold=value), "threshold"),
    ):
        sampler = builds(make, name)
        if sampler is not None:
            draws(sampler)


@given(ANYTHING)
def test_gaussians(sigma):
    likelihood = builds(lambda: LatentGaussianLikelihood(CODEBOOK, SUMS, sigma), "sigma")
    if likelihood is not None:
        for code in range(K):
            assert likelihood.scores(code).explicit().values.isfinite().all()
            assert probabilities(GaussianBase(likelihood, COUNTS), code).min() > 0
        draws(ParticleSampler(), likelihood)


@given(ANYTHING)
def test_shares_of_a_base(share):
    gaussian = LatentGaussianLikelihood(CODEBOOK, SUMS)
    base = builds(lambda: GaussianBase(gaussian, COUNTS, share), "share")
    if base is not None:
        assert all(probabilities(base, code).isfinite().all() for code in range(K))


@given(ANYTHING, st.booleans())
def test_exponents_and_concentrations(value, symmetric):
    made = [
        builds(lambda: CountLikelihood(COUNTS, value, symmetric=symmetric), "exponent"),
        builds(lambda: SmoothedLikelihood(COUNTS, Overall(COUNTS), value), "exponent"),
        builds(
            lambda: SmoothedLikelihood(COUNTS, Marginals(COUNTS), 1.0, concentration=value),
            "concentration",
        ),
    ]
    for likelihood in filter(None, made):
        for code in range(K):
            assert likelihood.scores(code).values.isfinite().all()
        draws(AncestralSampler(), likelihood)


def masked(mask):
    generator = torch.Generator().manual_seed(0)
    audio = {name: torch.randn(1, 2, 400, generator=generator) for name in PRIORS}
    mixture = torch.randn(1, 400, generator=generator)
    candidates = Candidates(audio, dict.fromkeys(PRIORS, 0.5))
    stems = mask(mixture, candidates, torch.tensor([[0.3, 0.7]]))
    total = sum(0.5 * stem for stem in stems.values())
    torch.testing.assert_close(total, mixture, atol=1e-3, rtol=1e-3)


@given(ANYTHING)
@settings(max_examples=60)
def test_masks(value):
    for make, names in (
        (lambda: RatioMask(power=value), ("power",)),
        (lambda: RatioMask(compression=value), ("compression",)),
        (lambda: RatioMask(n_fft=value, hop=1), ("n_fft",)),
        (lambda: RatioMask(n_fft=64, hop=value), ("hop", "n_fft")),
    ):
        mask = builds(make, *names)
        if mask is not None and mask.n_fft // mask.hop < 5000:
            masked(mask)


@given(ANYTHING, ANYTHING)
def test_spectra_of_selections_and_calibrations(n_fft, hop):
    for kind in (SpectralFit, MinimumBayesRisk):
        builds(lambda kind=kind: kind(n_fft, hop), "n_fft", "hop")
    builds(lambda: CalibrationMeter(n_fft), "n_fft")
    for value in (n_fft, hop):
        if isinstance(value, float):
            ones = torch.ones(3)
            found = builds(
                lambda value=value, ones=ones: Calibration({"bass": ones * value}, {"bass": ones}),
                "the gain of bass",
            )
            if found is not None:
                assert found("bass", torch.ones(3, 2), 0.5).isfinite().all()


@given(ANYTHING, ANYTHING, ANYTHING)
def test_sizes(candidates, window, shifts):
    names = ("candidates", "window", "shifts")
    for values in (
        (candidates, window, shifts),
        (candidates, 64, 1),
        (8, window, 1),
        (8, 64, shifts),
    ):
        sizes = Sizes(*values)
        if builds(lambda sizes=sizes: sizes.check(256, 64) or True, *names):
            assert sizes.window <= 256 and sizes.candidates % sizes.shifts == 0


@given(st.sampled_from(sorted(vars(Settings()))), ANYTHING)
@settings(max_examples=400)
def test_settings(name, value):
    made = builds(lambda: Settings(**{name: value}), name)
    if made is None or value is None:
        return
    assert made.explicit() == {name: value}
    for method in METHODS.values():
        try:
            full = method.resolve(made)
        except ValueError as error:
            assert str(error).startswith(f"{name} is "), error
        else:
            assert getattr(full, name) == value


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@given(data=st.data())
@settings(max_examples=60)
def test_settings_without_effect_are_refused_or_left_out(method, data):
    """Leniently resolved settings are accepted as they are; strictly, only those with an effect."""
    choices = {
        "sampler": ("ancestral", "beam", "particle"),
        "top_k": (0, 3),
        "top_p": (1.0, 0.5),
        "sigma": (0.3,),
        "exponent": (2.0,),
        "smoothing": (0.0, 3.0),
        "smoothing_base": ("marginals", "overall"),
        "symmetric": (True, False),
        "gaussian": (True, False),
        "selection": ("rejection",),
        "weights": ("posterior-mean", "bayes-risk"),
        "compression": (0.5,),
        "mask_power": (2.0,),
    }
    explicit = Settings(
        **{name: data.draw(st.sampled_from([None, *values])) for name, values in choices.items()}
    )
    how = {"refine": data.draw(st.sampled_from([None, True, False]))}
    full = method.resolve(explicit, strict=False, **how)
    assert method.resolve(full, **how) == full
    idle = {name for name in explicit.explicit() if getattr(full, name) is None}
    if idle:
        with pytest.raises(ValueError, match=r"^(" + "|".join(sorted(idle)) + r") is .* no effect"):
            method.resolve(explicit, **how)
    else:
        assert method.resolve(explicit, **how) == full


def test_settings_of_several_methods_go_to_those_that_use_them():
    lqvae, lass, hybrid = (METHODS[name] for name in ("lqvae", "lass", "hybrid"))
    explicit = Settings(sigma=0.3, exponent=2.0, mask_power=3.0)
    own = resolve_each(explicit, dict.fromkeys(METHODS.values()))
    assert own["lqvae"] == Settings(sigma=0.3, mask_power=3.0)
    assert own["lass"] == Settings(exponent=2.0, mask_power=3.0)
    assert own["hybrid"] == explicit
    with pytest.raises(ValueError, match="exponent is 2.0, but the method is lqvae"):
        resolve_each(Settings(exponent=2.0), {lqvae: None})
    plain = Settings(gaussian=False, sigma=0.3)
    assert resolve_each(plain, {lqvae: None, hybrid: None})["hybrid"].sigma is None
    with pytest.raises(ValueError, match="sigma is 0.3, but .* lass and gaussian is False"):
        resolve_each(plain, {lass: None, hybrid: None})
