"""For `tests.mutants`: the tests of every module, and the mutants that no test can notice."""

_SEPARATION = "jukebox_core.separation."
_OUTPUTS = "tests/test_count_outputs.py::test_"
_FAST = "tests/test_sampling.py::test_without_truncation_the_fast_path_is_taken"
_BOUNDS = "tests/test_value_bounds.py::test_"

TESTS: dict[str, tuple[str, ...]] = {
    _SEPARATION + "posterior": ("tests/test_posterior.py",),
    _SEPARATION + "chain": ("tests/test_chain.py",),
    _SEPARATION + "pair_groups": ("tests/test_chain.py",),
    _SEPARATION + "partial_sums": ("tests/test_three_sources.py", "-k", "steps_add_up"),
    _SEPARATION + "particles": ("tests/test_particles.py",),
    _SEPARATION + "ancestral": (
        "tests/test_sampling.py",
        _BOUNDS + "ancestral_draws",
        "tests/test_samplers.py::test_names_and_options",
    ),
    _SEPARATION + "beam": ("tests/test_beam.py",),
    _SEPARATION + "truncation": (
        "tests/test_truncation.py",
        "tests/test_beam.py",
        _FAST,
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
    "lass.link": ("tests/test_chain.py",),
    "lass.smoothing": (
        "tests/test_lass_likelihood.py",
        "tests/test_hybrid.py",
        "tests/test_chain.py",
    ),
    "lass.counts": (
        "tests/test_lass_counts.py",
        _OUTPUTS + "an_output_that_is_merged_or_holds_other_draws_is_kept",
        _OUTPUTS + "counts_that_cannot_be_are_refused",
        _OUTPUTS + "numbers_of_codes_that_cannot_be_are_refused",
        "-k",
        "not die_at_any and not goes_on_from_its",
    ),
    "lass.external_sort": ("tests/test_lass_counts.py", "-k", "not die_at_any and not goes_on_fr"),
    "lass.counter": ("tests/test_lass_counts.py",),
    "lass.triples": ("tests/test_lass_counting.py",),
    "lqvae.likelihood": (
        "tests/test_lqvae_tables.py",
        "tests/test_lqvae_sums.py",
        "tests/test_hybrid.py",
        _BOUNDS + "gaussians",
    ),
    "lqvae.link": ("tests/test_chain.py",),
    "lqvae.sums": ("tests/test_lqvae_tables.py", "tests/test_lqvae_sums.py"),
    "hybrid.likelihood": ("tests/test_hybrid.py",),
    "hybrid.smoothing": (
        "tests/test_hybrid.py",
        "tests/test_chain.py",
        _BOUNDS + "shares_of_a_base",
    ),
}

_MEMORY = "changes how much memory or time is taken, not the result"
_EQUAL = "two values that were checked to be equal, or have one length as they are made"
_DEVICE = "the same on a CPU: only a GPU could tell"
_DRAW = "another of several valid pairs is drawn, from the same distribution"
_SHAPE = "another name of the same axis"
_LARGE = "differs only in tables of more than 2^28 pairs"

EQUIVALENT: dict[str, str] = {
    "2930a070": _EQUAL,  # partial_sums: zip of names so far and all gains
    "a54ff490": _DRAW,  # pair_groups: pairs of a group in another order
    "c2c1287c": _DEVICE,  # pair_groups: PyTorch's kernels instead of the compiled ones
    "f5bf4f25": _DRAW,  # pair_groups: codes where there are no pairs
    "299537d3": _DRAW,  # lqvae.link: the other of two random numbers
    "7ed4c38f": _EQUAL,  # lqvae.link: zeros in the shape of either number
    "1e5a524b": _EQUAL,  # lass.smoothing: zip of masses and their tables
    "8a85ca29": _EQUAL,
    "38179033": _LARGE,  # lqvae.likelihood: 32-bit sums from 2^14 codes
    "94f90366": _LARGE,  # lqvae.likelihood: 16-bit sums up to 2^16 codes
    "e4250129": _MEMORY,  # posterior: the longest row of stored pairs
    "a04d51ea": _MEMORY,  # beam: entries of a joint held at a time
    "e7bc904c": _EQUAL,  # ancestral: zip of sources
    "49ecd119": _EQUAL,  # counts: codes of merged files
    "15fbfa57": _DEVICE,  # particles: a flag on the device
    "ffb6e68c": _EQUAL,  # samples: names of groups
    "359f6b31": _EQUAL,  # triples: zip of tiles and their codes
    "452d9640": _EQUAL,  # external_sort: zip of positions and stops
    "93b85d7d": _MEMORY,  # triples: crops encoded at a time
    "34e81216": _MEMORY,  # counter: keys held while a run is saved
    "766ceaeb": _MEMORY,  # external_sort: how often a file is mapped anew
    "b32c7c7e": _MEMORY,
    "53d85d56": _MEMORY,
    "e189ba7b": _MEMORY,  # counter: levels of runs are only compared
    "3398ffcf": _SHAPE,  # selection: the last axis of a matrix
    "b8e848b0": _SHAPE,  # mask: the last axis of a vector
}
