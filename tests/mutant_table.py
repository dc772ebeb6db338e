"""For `tests.mutants`: the tests of every module, and the mutants that no test can notice."""

_SEPARATION = "jukebox_core.separation."
_BOUNDS = "tests/test_value_bounds.py::test_"

TESTS: dict[str, tuple[str, ...]] = {
    _SEPARATION + "posterior": ("tests/test_posterior.py",),
    _SEPARATION + "particles": ("tests/test_particles.py",),
    _SEPARATION + "ancestral": ("tests/test_sampling.py", _BOUNDS + "ancestral_draws"),
    _SEPARATION + "beam": ("tests/test_beam.py",),
    _SEPARATION + "truncation": (
        "tests/test_truncation.py",
        "tests/test_beam.py",
        "tests/test_sampling.py::test_without_truncation_the_fast_path_is_taken",
        _BOUNDS + "each_truncation_and_temperature_by_itself",
    ),
    _SEPARATION + "selection": (
        "tests/test_selection.py",
        "tests/test_rejection.py",
        _BOUNDS + "spectra_of_selections_and_calibrations",
    ),
    _SEPARATION + "mask": ("tests/test_mask.py", "tests/test_uncertainty.py", _BOUNDS + "masks"),
    _SEPARATION + "rejection": ("tests/test_rejection.py", "tests/test_selection.py"),
    _SEPARATION + "samples": ("tests/test_samples.py", "tests/test_selection.py"),
    _SEPARATION + "calibration": ("tests/test_calibration.py", "-k", "not command and not flags"),
    "jukebox_core.tables": ("tests/test_tables.py", "tests/test_lqvae_tables.py"),
    "jukebox_core.neural.likelihood": ("tests/test_neural_likelihood.py", "-k", "factors"),
    "lass.likelihood": (
        "tests/test_lass_likelihood.py",
        "tests/test_hybrid.py",
        _BOUNDS + "exponents_and_concentrations",
    ),
    "lass.smoothing": ("tests/test_lass_likelihood.py", "tests/test_hybrid.py"),
    "lass.counts": ("tests/test_lass_counts.py", "-k", "not die_at_any and not goes_on_from_its"),
    "lass.external_sort": ("tests/test_lass_counts.py", "-k", "not die_at_any and not goes_on_fr"),
    "lass.counter": ("tests/test_lass_counts.py",),
    "lass.triples": ("tests/test_lass_counting.py",),
    "lqvae.likelihood": (
        "tests/test_lqvae_tables.py",
        "tests/test_hybrid.py",
        _BOUNDS + "gaussians",
    ),
    "lqvae.sums": ("tests/test_lqvae_tables.py", "tests/test_lqvae_sums.py"),
    "hybrid.likelihood": ("tests/test_hybrid.py",),
    "hybrid.smoothing": ("tests/test_hybrid.py", _BOUNDS + "shares_of_a_base"),
}

EQUIVALENT: dict[str, str] = {}
