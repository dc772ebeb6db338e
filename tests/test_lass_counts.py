"""Counting in bounded memory against collections.Counter."""

from collections import Counter

import numpy as np
import pytest

from lass import counts as module
from lass.counts import (
    TripleCounter,
    count_triples,
    from_keys,
    load_counts,
    merge_counts,
    merged_blocks,
    save_counts,
    swap,
    symmetrise,
)

K = 9


def triples(seed, n=400):
    # skewed, so that triples repeat
    return tuple(
        (K * np.random.default_rng((seed, i)).random(n) ** 2).astype(int) for i in range(3)
    )


def as_dict(counts):
    rows = zip(counts.first, counts.second, counts.mixture, counts.counts, strict=True)
    return {(int(i), int(j), int(m)): int(c) for i, j, m, c in rows}


def by_hand(*batches):
    total = Counter()
    for first, second, mixture in batches:
        total.update(zip(first.tolist(), second.tolist(), mixture.tolist(), strict=True))
    return dict(total)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 7)
    monkeypatch.setattr(module, "_RUNS", 3)


@pytest.mark.parametrize("buffer", (1, 10, 64, 399, 400, 401, 100_000))
def test_counter_equals_counting_by_hand(tmp_path, buffer):
    batches = [triples(seed) for seed in range(6)]
    counter = TripleCounter(K, tmp_path / "spool", buffer=buffer)
    for batch in batches:
        counter.add(*(codes.reshape(20, 20) for codes in batch))
    counts = from_keys(K, *counter.result())
    assert as_dict(counts) == by_hand(*batches)
    assert counter.triples == 2400 and counter.iterations == 6
    for m in range(K):
        part = counts.mixture[counts.offsets[m] : counts.offsets[m + 1]]
        assert (part == m).all()
    assert counts.offsets[-1] == len(counts.counts)
    order = np.lexsort((counts.second, counts.first, counts.mixture))
    assert (order == np.arange(len(order))).all()
    counter.close()
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("killed_after", (1, 2, 4, 5))
def test_a_killed_counting_goes_on_from_its_last_flush(tmp_path, killed_after):
    batches = [triples(seed) for seed in range(6)]
    first = TripleCounter(K, tmp_path / "spool", buffer=900)
    for i, batch in enumerate(batches[:killed_after], 1):
        first.add(*batch)
        if i % 2 == 0:
            first.flush()
    again = TripleCounter(K, tmp_path / "spool", buffer=900)
    assert again.iterations % 2 == 0 or again.triples % 900 == 0
    for batch in batches[again.iterations :]:
        again.add(*batch)
    assert as_dict(from_keys(K, *again.result())) == by_hand(*batches)
    assert again.triples == 2400


def test_memory_stays_bounded(tmp_path, monkeypatch):
    """No more keys at once than the buffer, or a block of every run while merging."""
    seen = []
    add_up = module._add_up
    monkeypatch.setattr(module, "_add_up", lambda k, c: (seen.append(len(k)), add_up(k, c))[1])
    counter = TripleCounter(K, tmp_path / "spool", buffer=100)
    for seed in range(40):
        counter.add(*triples(seed))
        assert len(counter._buffer) == 100
        assert len(counter._runs) <= 8  # runs are merged as they gather
    counter.result()
    assert seen and max(seen) <= 7 * 9


def test_merged_blocks_are_sorted_final_and_complete():
    rng = np.random.default_rng(0)
    runs = []
    for n in (0, 1, 30, 200):
        keys, counts = np.unique(rng.integers(0, 150, n), return_counts=True)
        runs.append(np.stack([keys, counts]).astype(np.int64))
    blocks = list(merged_blocks(runs, block=5))
    keys = np.concatenate([k for k, _ in blocks])
    assert (np.diff(keys) > 0).all()
    expected = Counter()
    for k, c in runs:
        for key, count in zip(k.tolist(), c.tolist(), strict=True):
            expected[key] += count
    counts = np.concatenate([c for _, c in blocks])
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == dict(expected)


def test_symmetrise_adds_every_triple_in_both_orders():
    first, second, mixture = triples(3)
    counts = symmetrise(count_triples(K, first, second, mixture))
    assert as_dict(counts) == by_hand((first, second, mixture), (second, first, mixture))


def test_merging_partial_counts_is_counting_everything():
    parts = [triples(seed) for seed in range(3)]
    merged = merge_counts([count_triples(K, *part) for part in parts])
    assert as_dict(merged) == by_hand(*parts)
    with pytest.raises(ValueError, match="expected one size"):
        merge_counts([count_triples(K, *parts[0]), count_triples(K + 1, *parts[0])])


def test_files_round_trip_and_are_checked(tmp_path):
    counts = count_triples(K, *triples(1))
    path = tmp_path / "counts.safetensors"
    save_counts(path, counts, {"codec": "abc", "sources": "bass drums"})
    loaded, metadata = load_counts(path, "abc", ("bass", "drums"))
    assert as_dict(loaded) == as_dict(counts) and metadata["sources"] == "bass drums"
    assert (loaded.offsets == counts.offsets).all()
    exchanged, _ = load_counts(path, "abc", ("drums", "bass"))
    assert as_dict(exchanged) == as_dict(swap(counts))
    with pytest.raises(ValueError, match="counted with another codec"):
        load_counts(path, "abd")
    with pytest.raises(ValueError, match="counts bass and drums, not bass and piano"):
        load_counts(path, None, ("bass", "piano"))
    with pytest.raises(FileNotFoundError, match="make it with scripts.count_sums"):
        load_counts(tmp_path / "none.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not a readable file of counts"):
        load_counts(path)


def test_spool_of_other_settings_and_bad_codes_are_refused(tmp_path):
    TripleCounter(K, tmp_path, settings={"seed": 1}).flush()
    with pytest.raises(ValueError, match="other settings"):
        TripleCounter(K, tmp_path, settings={"seed": 2})
    with pytest.raises(ValueError, match="expected \\[0, 8\\]"):
        count_triples(K, *(np.array([x]) for x in (0, 9, 0)))
    with pytest.raises(ValueError, match="expected the same"):
        count_triples(K, np.zeros(2, int), np.zeros(3, int), np.zeros(2, int))
