"""Counting in bounded memory against collections.Counter."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as torch_save_file

from jukebox_core.tables import read_table
from lass import counter as counter_module
from lass import counts as counts_module
from lass import external_sort as runs_module
from lass.counter import TripleCounter
from lass.counts import (
    CountsFile,
    count_triples,
    from_keys,
    load_counts,
    merge_counts,
    save_counts,
    swap,
    symmetrise,
    to_keys,
)
from lass.external_sort import SpoolRun, merged, write_run

K = 9
HELD = 60


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


def counted(counter):
    return as_dict(from_keys(K, *counter.result()))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Few keys at a time and few runs per level, so that small counts take many merges."""
    for module in (runs_module, counts_module, counter_module):
        monkeypatch.setattr(module, "HELD", HELD)
    monkeypatch.setattr(counter_module, "_FAN", 3)
    monkeypatch.setattr(runs_module, "_PAGES", 200)


@pytest.mark.parametrize("buffer", (3, 10, 64, 399, 400, 401, 1000, 100_000))
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


def test_counts_equal_a_dense_histogram(tmp_path):
    counter = TripleCounter(K, tmp_path, buffer=50)
    dense = np.zeros((K, K, K), int)
    for seed in range(5):
        batch = triples(seed, 30)
        counter.add(*batch)
        np.add.at(dense, batch, 1)
    counts = from_keys(K, *counter.result())
    found = np.zeros_like(dense)
    found[counts.first, counts.second, counts.mixture] = counts.counts
    np.testing.assert_array_equal(found, dense)


def test_nothing_counted_is_an_empty_table(tmp_path):
    counter = TripleCounter(K, tmp_path / "spool")
    counts = from_keys(K, *counter.result())
    assert len(counts.counts) == 0 and counts.offsets.tolist() == [0] * (K + 1)
    save_counts(tmp_path / "counts", counts, {})
    assert as_dict(load_counts(tmp_path / "counts")[0]) == {}


def test_result_may_be_asked_for_in_between(tmp_path):
    counter = TripleCounter(K, tmp_path, buffer=100)
    for seed in range(4):
        counter.add(*triples(seed))
        assert counted(counter) == by_hand(*(triples(s) for s in range(seed + 1)))


@pytest.mark.parametrize("killed_after", (1, 2, 4, 5, 12))
@pytest.mark.parametrize("buffer", (100, 900, 10_000))
def test_a_killed_counting_goes_on_from_its_last_flush(tmp_path, buffer, killed_after):
    batches = [triples(seed) for seed in range(13)]
    first = TripleCounter(K, tmp_path / "spool", buffer=buffer)
    for i, batch in enumerate(batches[:killed_after], 1):
        first.add(*batch)
        if i % 5 == 0:
            first.flush()
    again = TripleCounter(K, tmp_path / "spool", buffer=buffer)
    assert again.iterations <= killed_after and again.triples == 400 * again.iterations
    assert killed_after < 5 or again.iterations >= 5
    for batch in batches[again.iterations :]:
        again.add(*batch)
    assert counted(again) == by_hand(*batches)
    assert again.iterations == 13 and again.triples == 5200


class Killed(BaseException):
    """What a process does not survive."""


def dying(monkeypatch, at):
    """Let the process die at the `at`-th of the steps that change the disk: before or after it."""
    steps = 0

    def wrapped(step):
        def died(*arguments, **options):
            nonlocal steps
            for half in (True, False):
                steps += 1
                if steps == at:
                    raise Killed
                if half:
                    result = step(*arguments, **options)
            return result

        return died

    for owner, name in (
        (counter_module, "write_run"),
        (counter_module, "write_json"),
        (counter_module, "save_blocks"),
        (Path, "rmdir"),
        (Path, "unlink"),
    ):
        monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))


def count_and_save(folder, batches, adopted=None):
    """What scripts.count_sums does with a counter."""
    counter = TripleCounter(K, folder / "spool", buffer=150)
    if adopted and not counter.iterations:
        counter.adopt(CountsFile(adopted))
    for i, batch in enumerate(batches[counter.iterations :]):
        counter.add(*batch)
        if i % 2:
            counter.flush()
    counter.flush()
    counter.save(folder / "counts", {"iterations": str(counter.iterations)})
    counter.close()


@pytest.mark.parametrize("adopting", (False, True))
def test_a_process_may_die_at_any_step(tmp_path, monkeypatch, adopting):
    batches = [triples(seed, 90) for seed in range(9)]
    adopted = tmp_path / "adopted" if adopting else None
    some = count_triples(K, *(np.concatenate(codes) for codes in zip(*batches[:4], strict=True)))
    save_counts(tmp_path / "adopted", some, {"iterations": "4"})
    (tmp_path / "whole").mkdir()
    count_and_save(tmp_path / "whole", batches)
    whole = (tmp_path / "whole" / "counts").read_bytes()
    assert as_dict(load_counts(tmp_path / "whole" / "counts")[0]) == by_hand(*batches)
    deaths = 0
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        folder.mkdir()
        with monkeypatch.context() as patch:
            dying(patch, at)
            try:
                count_and_save(folder, batches, adopted)
            except Killed:
                deaths += 1
            else:
                break
        count_and_save(folder, batches, adopted)
        assert (folder / "counts").read_bytes() == whole
        assert sorted(path.name for path in folder.iterdir()) == ["counts"]
    assert 40 < deaths == at - 1 < 999


def test_files_that_were_begun_are_removed(tmp_path):
    counter = TripleCounter(K, tmp_path)
    counter.add(*triples(0))
    counter.flush()
    kept = sorted(tmp_path.iterdir())
    for name in ("run-000002", ".run-000002.12-0123abcd.tmp"):
        (tmp_path / name).write_bytes(b"half")
    again = TripleCounter(K, tmp_path)
    assert sorted(tmp_path.iterdir()) == kept
    assert counted(again) == by_hand(triples(0))


@pytest.mark.parametrize("batches", (0, 1, 5))
def test_saving_a_counter_is_saving_its_result(tmp_path, batches):
    counter = TripleCounter(K, tmp_path / "spool", buffer=100)
    for seed in range(batches):
        counter.add(*triples(seed))
    per_code = counter.save(tmp_path / "saved", {"a": "b"})
    keys, counts = counter.result()
    save_counts(tmp_path / "result", from_keys(K, keys, counts), {"a": "b"})
    assert (tmp_path / "saved").read_bytes() == (tmp_path / "result").read_bytes()
    np.testing.assert_array_equal(per_code, np.bincount(keys // K**2, minlength=K))


def test_memory_stays_bounded(tmp_path, monkeypatch):
    """No more keys at once than the buffer, or than all blocks that are merged."""
    seen = []
    add_up = runs_module.add_up
    monkeypatch.setattr(runs_module, "add_up", lambda k, c: (seen.append(len(k)), add_up(k, c))[1])
    counter = TripleCounter(K, tmp_path / "spool", buffer=100)
    for seed in range(60):
        counter.add(*triples(seed, 90))
        assert len(counter._buffer) == 100 and counter._filled <= 100
    keys, counts = counter.result()
    save_counts(tmp_path / "a", from_keys(K, keys, counts), {"counting": "a"})
    save_counts(tmp_path / "b", from_keys(K, keys, counts), {"counting": "b"})
    merge_counts([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert seen and max(seen) <= HELD


def test_work_per_key_grows_with_the_logarithm(tmp_path, monkeypatch):
    """Distinct keys, the worst case: each is rewritten once per level, runs stay few."""
    written = []
    write = counter_module.write_run

    def counting(path, blocks):
        blocks = list(blocks)
        written.append(sum(len(keys) for keys, _ in blocks))
        write(path, blocks)

    monkeypatch.setattr(counter_module, "write_run", counting)
    n_codes, buffer, runs = 64, 10, 243
    counter = TripleCounter(n_codes, tmp_path / "spool", buffer=buffer)
    codes = np.arange(buffer)
    for i in range(runs):
        counter.add(codes, np.full(buffer, i % 64), np.full(buffer, i // 64))
        counter.flush()
        assert len(counter._runs) <= 2 * 6  # two of each of log3(243) + 1 levels
        assert len(list((tmp_path / "spool").glob("run-*"))) == len(counter._runs)
    keys, _ = counter.result()
    assert len(keys) == runs * buffer
    assert sum(written) <= runs * buffer * 7


def test_merged_blocks_are_sorted_final_and_complete(tmp_path):
    rng = np.random.default_rng(0)
    runs = []
    for n in (1, 30, 200):
        unique = np.unique(rng.integers(0, 150, n), return_counts=True)
        write_run(tmp_path / str(n), [unique])
        runs.append(SpoolRun(tmp_path / str(n)))
    blocks = list(merged(runs, block=5))
    keys = np.concatenate([k for k, _ in blocks])
    assert (np.diff(keys) > 0).all()
    expected = Counter()
    for run in runs:
        for key, count in run.rows.tolist():
            expected[key] += count
    counts = np.concatenate([c for _, c in blocks])
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == dict(expected)


@pytest.mark.parametrize(("block", "most"), ((5, 5), (None, HELD // 3)))
def test_a_merge_asks_every_run_for_a_block_at_a_time(tmp_path, monkeypatch, block, most):
    monkeypatch.setattr(runs_module, "HELD", HELD)
    write_run(tmp_path / "run", [(np.arange(100), np.ones(100, int))])
    asked = []
    read = SpoolRun.read
    monkeypatch.setattr(
        SpoolRun, "read", lambda run, *part: (asked.append(part), read(run, *part))[1]
    )
    blocks = list(merged([SpoolRun(tmp_path / "run") for _ in range(3)], block))
    assert {stop - start for start, stop in asked} == {most}
    assert [len(keys) for keys, _ in blocks] == [most] * (100 // most)
    assert all((counts == 3).all() for _, counts in blocks)


def test_keys_of_the_largest_codebook_fit():
    codes = np.array([0, 2047])
    counts = count_triples(2048, codes, codes[::-1], codes)
    assert as_dict(counts) == {(0, 2047, 0): 1, (2047, 0, 2047): 1}
    assert to_keys(2048, codes, codes, codes)[1] == 2048**3 - 1


def test_symmetrise_adds_every_triple_in_both_orders():
    first, second, mixture = triples(3)
    counts = symmetrise(count_triples(K, first, second, mixture))
    assert as_dict(counts) == by_hand((first, second, mixture), (second, first, mixture))


def test_merging_partial_files_is_counting_everything(tmp_path):
    parts = [triples(seed) for seed in range(3)]
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    common = {"codec": "abc", "sources": "bass drums", "alpha": "0.5 0.5", "iterations": "2"}
    for i, (file, part) in enumerate(zip(files, parts, strict=True)):
        save_counts(file, count_triples(K, *part), common | {"counting": f"seed {i}"})
    assert merge_counts(files[:2], tmp_path / "some") == 800
    assert merge_counts([tmp_path / "some", files[2]], tmp_path / "all") == 1200
    merged, metadata = load_counts(tmp_path / "all", "abc")
    assert as_dict(merged) == by_hand(*parts)
    assert metadata["iterations"] == "6" and metadata["counting"] == "seed 0 + seed 1 + seed 2"
    with pytest.raises(ValueError, match=r"hold the same draws \(seed 1\)"):
        merge_counts([tmp_path / "all", files[1]], tmp_path / "wrong")
    save_counts(files[0], count_triples(K, *parts[0]), common | {"alpha": "0.6 0.4"})
    with pytest.raises(ValueError, match="differ in alpha: 0.5 0.5, 0.6 0.4"):
        merge_counts(files, tmp_path / "wrong")
    save_counts(files[0], count_triples(K + 1, *parts[0]), common)
    with pytest.raises(ValueError, match="differ in n_codes: 10, 9"):
        merge_counts(files, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_files_round_trip_and_are_checked(tmp_path):
    counts = count_triples(K, *triples(1))
    path = tmp_path / "counts.safetensors"
    save_counts(path, counts, {"codec": "abc", "sources": "bass drums"})
    loaded, metadata = load_counts(path, "abc", ("bass", "drums"))
    assert as_dict(loaded) == as_dict(counts) and metadata["sources"] == "bass drums"
    for name in ("first", "second", "mixture", "counts", "offsets"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(counts, name))
        assert getattr(loaded, name).dtype == getattr(counts, name).dtype
    exchanged, _ = load_counts(path, "abc", ("drums", "bass"))
    assert as_dict(exchanged) == as_dict(swap(counts))
    with pytest.raises(ValueError, match="another codec"):
        load_counts(path, "abd")
    with pytest.raises(ValueError, match="bass and drums.*bass and piano"):
        load_counts(path, None, ("bass", "piano"))


def test_files_are_what_safetensors_itself_writes(tmp_path):
    counts = count_triples(K, *triples(1))
    save_counts(tmp_path / "ours", counts, {"sources": "bass drums"})
    tensors = load_file(tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs", {"kind": "counts", "n_codes": str(K)})
    again, _ = load_counts(tmp_path / "theirs")
    assert as_dict(again) == as_dict(counts)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    counts = count_triples(K, *triples(1))
    path = tmp_path / "counts.safetensors"
    save_counts(path, counts, {})
    whole = path.read_bytes()
    for size in (0, 50, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a readable table of counts"):
            CountsFile(path)
    tensors = {"counts": counts.counts, "offsets": counts.offsets, "first": counts.first}
    save_file(tensors, path, {"kind": "counts", "n_codes": str(K)})
    with pytest.raises(ValueError, match="not a readable table of counts"):
        CountsFile(path)
    save_file(tensors | {"second": counts.second[1:]}, path, {"kind": "counts", "n_codes": str(K)})
    with pytest.raises(ValueError, match="its sizes disagree"):
        CountsFile(path)
    save_file({"sum_codes": counts.first}, path, {"kind": "code_sums"})
    with pytest.raises(ValueError, match="code_sums.*counts"):
        CountsFile(path)


@pytest.mark.parametrize("name", ("first", "counts", "offsets"))
@pytest.mark.parametrize("kind", (torch.float8_e4m3fn, torch.float32, torch.complex64))
def test_files_of_other_types_than_integers_are_refused(tmp_path, name, kind):
    path = tmp_path / "counts.safetensors"
    save_counts(path, count_triples(K, *np.zeros((3, 5), int)), {})
    tensors, metadata = read_table(path, "counts")
    torch_save_file(tensors | {name: tensors[name].to(kind)}, path, metadata)
    with pytest.raises(ValueError, match="counts.safetensors .*does not hold integers"):
        load_counts(path)


def test_counting_goes_on_from_a_finished_file(tmp_path):
    parts = [triples(seed) for seed in range(4)]
    some = count_triples(K, *(np.concatenate(codes) for codes in zip(*parts[:3], strict=True)))
    save_counts(tmp_path / "counts", some, {"iterations": "3"})
    counter = TripleCounter(K, tmp_path / "spool")
    counter.adopt(CountsFile(tmp_path / "counts"))
    counter = TripleCounter(K, tmp_path / "spool")
    assert counter.iterations == 3 and counter.triples == 1200
    counter.add(*parts[3])
    assert counted(counter) == by_hand(*parts)


def test_spool_of_other_settings_and_bad_codes_are_refused(tmp_path):
    TripleCounter(K, tmp_path, settings={"seed": 1}).flush()
    with pytest.raises(ValueError, match=r"begun with seed 1 \(now 2\): delete it"):
        TripleCounter(K, tmp_path, settings={"seed": 2})
    counter = TripleCounter(K, tmp_path, settings={"seed": 1})
    counter.add(*triples(0))
    counter.flush()
    next(tmp_path.glob("run-*")).unlink()
    with pytest.raises(ValueError, match="lacks run-000001"):
        TripleCounter(K, tmp_path, settings={"seed": 1})
    state = tmp_path / "state.json"
    stored = json.loads(state.read_text())
    changes = [{"runs": [[level, "run-000001"]]} for level in (-1, 65, 0.5)]
    changes += [{"runs": [[0, "run-1"]]}, {"iterations": -1}, {"triples": 0.5}, {"next": None}]
    for text in ("{", *(json.dumps(stored | change) for change in changes)):
        state.write_text(text)
        with pytest.raises(ValueError, match="is damaged: delete"):
            TripleCounter(K, tmp_path, settings={"seed": 1})
    state.write_text(json.dumps(stored | {"runs": [[64, "run-000001"]]}))
    with pytest.raises(ValueError, match="lacks run-000001"):
        TripleCounter(K, tmp_path, settings={"seed": 1})
    with pytest.raises(ValueError, match="buffer is 0"):
        TripleCounter(K, tmp_path / "other", buffer=0)
    with pytest.raises(ValueError, match="expected \\[0, 8\\]"):
        count_triples(K, *(np.array([x]) for x in (0, 9, 0)))
    with pytest.raises(ValueError, match="expected the same"):
        count_triples(K, np.zeros(2, int), np.zeros(3, int), np.zeros(2, int))
