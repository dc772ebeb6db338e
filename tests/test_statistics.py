"""Bootstrap intervals: known cases, coverage, missing values."""

import itertools
import math

import numpy as np
import pytest

from jukebox_core.evaluation.bootstrap import bootstrap_mean, paired_difference


def test_mean_and_count_leave_nan_out():
    interval = bootstrap_mean([1.0, math.nan, 3.0, 5.0])
    assert interval.mean == 3.0 and interval.n == 3
    assert 1.0 <= interval.low < 3.0 < interval.high <= 5.0


def test_same_seed_same_interval():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_one_value_has_no_width_and_none_has_no_mean():
    assert bootstrap_mean([2.5]) == (2.5, 2.5, 2.5, 1)
    nothing = bootstrap_mean([math.nan])
    assert nothing.n == 0 and math.isnan(nothing.mean) and math.isnan(nothing.low)
    assert bootstrap_mean([]).n == 0


def test_the_interval_agrees_with_the_normal_one_for_many_values():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=2_000)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        interval = bootstrap_mean(generator.normal(size=40))
        hits += interval.low <= 0 <= interval.high
    assert 0.89 <= hits / 300 <= 0.98


def test_paired_difference_takes_the_pairs_that_both_have():
    first, second = [1.0, 5.0, math.nan, 4.0], [0.5, math.nan, 2.0, 2.0]
    interval = paired_difference(first, second)
    assert interval.mean == pytest.approx((0.5 + 2.0) / 2) and interval.n == 2


def test_paired_difference_is_narrower_where_items_share_their_difficulty():
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0, 5, size=30)
    first = difficulty + 1 + 0.1 * generator.normal(size=30)
    interval = paired_difference(first, difficulty)
    alone = bootstrap_mean(first)
    assert interval.low > 0.9
    assert interval.high - interval.low < 0.1 * (alone.high - alone.low)


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="pairs are wanted"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="1 of 2 values are infinite"):
        bootstrap_mean([1.0, math.inf])
    with pytest.raises(ValueError, match="seed is -1"):
        bootstrap_mean([1.0], seed=-1)


def resamples(values, groups, draws):
    """The mean of every resample: a plain loop over the drawn groups."""
    names = list(dict.fromkeys(groups))
    own = {name: [v for v, g in zip(values, groups, strict=True) if g == name] for name in names}
    return [np.mean([v for i in draw for v in own[names[i]]]) for draw in draws]


VALUES = [3.0, -1.0, 2.5, 7.0, 0.5, 4.0, math.nan]
SONGS = ["b", "a", "b", "c", "a", "b", "c"]


def test_the_bootstrap_over_groups_is_that_of_a_plain_loop():
    scored, songs = VALUES[:-1], SONGS[:-1]
    draws = np.random.default_rng(5).integers(3, size=(10_000, 3))
    low, high = np.quantile(resamples(scored, songs, draws), [0.025, 0.975])
    interval = bootstrap_mean(VALUES, 5, SONGS)
    assert interval == pytest.approx((np.mean(scored), low, high, 6))
    assert paired_difference(VALUES, [0.0] * 7, SONGS) == bootstrap_mean(VALUES, groups=SONGS)


def test_the_bootstrap_over_three_groups_is_that_of_all_their_resamples():
    """Each of the 27 resamples has probability 0.037 > 0.025, so the interval is their range."""
    every = resamples(VALUES[:-1], SONGS[:-1], itertools.product(range(3), repeat=3))
    interval = bootstrap_mean(VALUES, groups=SONGS)
    assert (interval.low, interval.high) == pytest.approx((min(every), max(every)))


def test_groups_of_one_value_change_nothing():
    values = np.random.default_rng(0).normal(size=40)
    values[7] = math.nan
    for seed in range(3):
        assert bootstrap_mean(values, seed, range(40)) == bootstrap_mean(values, seed)
    other = np.random.default_rng(1).normal(size=40)
    assert paired_difference(values, other, range(40)) == paired_difference(values, other)
    kept = values[~np.isnan(values)]
    drawn = kept[np.random.default_rng(0).integers(39, size=(10_000, 39))].mean(1)
    expected = (kept.mean(), *np.quantile(drawn, [0.025, 0.975]), 39)
    assert bootstrap_mean(values) == pytest.approx(expected, abs=1e-15)


def test_equal_values_of_a_group_count_once():
    values = np.random.default_rng(0).normal(size=12)
    groups = [i // 4 for i in range(48)]
    interval = bootstrap_mean(np.repeat(values, 4), groups=groups)
    assert interval[:3] == pytest.approx(bootstrap_mean(values)[:3])
    assert interval.n == 48


def test_a_group_for_every_value():
    with pytest.raises(ValueError, match="there are 2 groups, expected one for each of 3"):
        bootstrap_mean([1.0, 2.0, 3.0], groups=["a", "b"])
