"""Tables: what lies where they go stays, and tables that cannot be are not read."""

import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from test_count_scripts import K, codec, flags  # noqa: F401 (a fixture)
from test_lass_counts import triples
from test_prepare_slakh import tree

from lass.counter import TripleCounter
from lass.counts import (
    CountsFile,
    count_triples,
    load_counts,
    merge_counts,
    save_counts,
)
from lass.triples import PairCounting
from lqvae.sums import save_sums
from scripts import calibrate, count_sums, precompute_sums


def refused(capsys, main, words):
    """The one line of an error."""
    capsys.readouterr()
    assert main([str(word) for word in words]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def commands(run_folder, data, output):
    """Flags of every program that writes a table."""
    run = ["--vqvae", run_folder, "--output", output]
    measure = [*run, "--data", data, "--device", "cpu"]
    return {
        "count": (count_sums.main, [*flags(run_folder, data, output), "--iterations", "2"]),
        "calibrate": (calibrate.main, [*measure, "--crops", "1", "--codes", "64", "--n-fft", "64"]),
        "sums": (precompute_sums.main, run),
    }


@pytest.mark.parametrize("name", ["count", "calibrate", "sums"])
@pytest.mark.parametrize("kind", ["text", "other table", "folder", "pipe", "device"])
def test_only_a_table_of_the_kind_is_replaced(
    codec,  # noqa: F811
    tiny_data,
    tmp_path,
    capsys,
    name,
    kind,
):
    output = tmp_path / "out"
    if kind == "text":
        output.write_text("mine")
    elif kind == "other table":
        save_file({"x": np.zeros(3)}, output, {"kind": "mine"})
    elif kind == "folder":
        output.mkdir()
    elif kind == "pipe":
        os.mkfifo(output)
    else:
        output.symlink_to(os.devnull)
    before, there = tree(tmp_path), output.lstat()
    assert str(output) in refused(capsys, *commands(codec, tiny_data, output)[name])
    assert tree(tmp_path) == before and output.lstat().st_ino == there.st_ino
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["count", "calibrate", "sums"])
def test_empty_files_and_former_tables_are_replaced(codec, tiny_data, tmp_path, name):  # noqa: F811
    output = tmp_path / "out"
    output.write_bytes(b"")
    main, words = commands(codec, tiny_data, output)[name]
    for _ in range(2):
        assert main([str(word) for word in words]) == 0
        assert output.stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "name", ["notes.txt", "my-run-1", "run-1", "inner/run-000001", "counts", "state.json"]
)
@pytest.mark.parametrize("begun", [True, False])
def test_a_spool_that_holds_the_users_files_is_left_alone(
    codec,  # noqa: F811
    tiny_data,
    tmp_path,
    capsys,
    name,
    begun,
):
    output = tmp_path / "counts"
    words = flags(codec, tiny_data, output, "--iterations", "2")
    if begun:
        counter = TripleCounter(K, tmp_path / "counts.spool")
        counter.add(*(codes % K for codes in triples(0)))
        counter.flush()
    mine = tmp_path / "counts.spool" / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    before = tree(tmp_path)
    line = refused(capsys, count_sums.main, words)
    assert name.partition("/")[0] in line
    assert tree(tmp_path) == before


def test_a_file_in_place_of_the_spool(codec, tiny_data, tmp_path, capsys):  # noqa: F811
    (tmp_path / "counts.spool").write_text("mine")
    words = flags(codec, tiny_data, tmp_path / "counts", "--iterations", "2")
    assert "counts.spool" in refused(capsys, count_sums.main, words)
    assert (tmp_path / "counts.spool").read_text() == "mine"


def test_closing_a_spool_leaves_what_was_put_there_meanwhile(tmp_path):
    counter = TripleCounter(9, tmp_path / "spool")
    counter.add(*triples(0))
    counter.flush()
    (tmp_path / "spool/mine").write_text("mine")
    counter.close()
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["mine"]


def test_what_earlier_versions_left_in_a_spool_is_taken_over(tmp_path):
    spool = tmp_path / "counts.spool"
    counter = TripleCounter(9, spool)
    counter.add(*triples(0))
    counter.flush()
    kept = sorted(path.name for path in spool.iterdir())
    save_counts(spool / "counts", count_triples(9, *triples(1)), {})
    for name in (
        ".counts.12-0123abcd.tmp",
        ".run-000002.12-0123abcd.tmp",
        ".state.12-0123abcd.tmp.json",
        "run-000007",
    ):
        (spool / name).write_bytes(b"half")
    again = TripleCounter(9, spool)
    assert again.iterations == 1
    assert sorted(path.name for path in spool.iterdir()) == kept


def test_damaged_runs_are_named(tmp_path):
    counter = TripleCounter(9, tmp_path / "spool")
    counter.add(*triples(0))
    counter.flush()
    (tmp_path / "spool/run-000001").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"run-000001 is damaged: delete .*spool"):
        TripleCounter(9, tmp_path / "spool").result()


def test_an_output_that_is_merged_or_holds_other_draws_is_kept(tmp_path):
    names = [tmp_path / str(i) for i in range(3)]
    for seed, name in enumerate(names):
        save_counts(name, count_triples(9, *triples(seed)), {"counting": f"seed {seed}"})
    before = tree(tmp_path)
    (tmp_path / "link").symlink_to(names[0])
    for output in (names[0], tmp_path / "link"):
        with pytest.raises(ValueError, match="is one of the files to merge"):
            merge_counts(names[:2], output)
    (tmp_path / "link").unlink()
    with pytest.raises(ValueError, match=r"holds draws .* \(seed 2\)"):
        merge_counts(names[:2], names[2])
    (tmp_path / "text").write_text("mine")
    with pytest.raises(FileExistsError, match="text"):
        merge_counts(names[:2], tmp_path / "text")
    (tmp_path / "text").unlink()
    assert tree(tmp_path) == before
    merge_counts(names[:2], tmp_path / "sum")
    merge_counts([tmp_path / "sum", names[2]], tmp_path / "all")
    assert merge_counts(names, tmp_path / "sum") == 1200  # more than was merged before


# Tables that cannot be


def a_table(**changes):
    counts = count_triples(9, *triples(1))
    tensors = {name: getattr(counts, name) for name in ("first", "second", "counts", "offsets")}
    return {name: value.copy() for name, value in (tensors | changes).items()}


def changed(name, at, value):
    def change(tensors):
        tensors[name][at] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed("counts", 3, 0),
        changed("counts", 3, -5),
        changed("counts", 3, 2**60),
        changed("first", 3, -1),
        changed("first", 3, 9),
        changed("second", 3, 2**30),
        changed("offsets", 0, 1),
        changed("offsets", 4, 10**6),
        changed("offsets", -1, -1),
        lambda tensors: tensors.update(counts=tensors["counts"].astype(np.float64)),
        lambda tensors: tensors.update(offsets=tensors["offsets"].astype(np.float64)),
        lambda tensors: tensors.update(first=tensors["first"][::-1].copy()),
        lambda tensors: tensors.update(second=0 * tensors["second"]),
    ],
)
def test_counts_that_cannot_be_are_refused(tmp_path, change):
    tensors = a_table()
    change(tensors)
    path = tmp_path / "counts"
    save_file(tensors, path, {"kind": "counts", "n_codes": "9"})
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load_counts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_codes", ["", "nine", "0", "-9", "9.0", "9" * 30, "8"])
def test_numbers_of_codes_that_cannot_be_are_refused(tmp_path, n_codes):
    path = tmp_path / "counts"
    save_file(a_table(), path, {"kind": "counts", "n_codes": n_codes})
    with pytest.raises(ValueError, match=re.escape(str(path))):
        CountsFile(path)


def test_merging_refuses_counts_that_cannot_be(tmp_path):
    counts = a_table()
    counts["counts"][0] = -1
    save_file(counts, tmp_path / "a", {"kind": "counts", "n_codes": "9"})
    with pytest.raises(ValueError, match="counts span"):
        merge_counts([tmp_path / "a"], tmp_path / "b")
    assert not (tmp_path / "b").exists()


# Values

NUMBERS = st.one_of(st.integers(), st.sampled_from([0, -1, 1, 2**31, 10**8, 10**9, 2**63]))
REALS = st.one_of(st.floats(), st.sampled_from([0.0, -1.0, 6.0, 1e30]))


@given(
    pairs=NUMBERS,
    crop=NUMBERS,
    shifts=NUMBERS,
    seed=NUMBERS,
    gains_db=st.lists(REALS, max_size=3).map(tuple),
    pairing=st.sampled_from(["song", "random", "both", "none", ""]),
)
@settings(max_examples=300)
def test_what_is_counted_is_possible_or_named(**values):
    try:
        plan = PairCounting(**values)
    except ValueError as error:
        assert any(str(error).startswith(name) for name in values), error
    else:
        assert 1 <= plan.triples <= 10**9


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("iterations", ["0", "-1", "1000000000", "99999999999999999999"]),
        ("pairs", ["0", "-1", "100000000", "99999999999999999999"]),
        ("crop", ["0", "-1", "1000000000"]),
        ("shifts", ["0", "-1", "1000"]),
        ("seed", ["-1", "99999999999999999999"]),
        ("gains_db", ["nan", "inf", "1e30", "-1e30"]),
        ("buffer", ["0", "-1", "1", "100000000000", "99999999999999999999"]),
        ("kept", ["-1", "1000000000"]),
        ("flush_seconds", ["nan", "inf", "-1"]),
        ("max_seconds", ["nan", "inf", "-1"]),
    ],
)
def test_values_that_cannot_be_counted_with_are_refused_before_any_work(
    codec,  # noqa: F811
    tiny_data,
    tmp_path,
    capsys,
    field,
    values,
):
    flag = f"--{field.replace('_', '-')}"
    command = ["--vqvae", codec, "--data", tiny_data, "--output", tmp_path / "counts"]
    for value in values:
        assert field in refused(capsys, count_sums.main, [*command, "--device", "cpu", flag, value])
        assert list(tmp_path.iterdir()) == []


def test_memory_is_asked_before_pairs_are_drawn(codec, tiny_data, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr("lass.triples.free_bytes", lambda device: 1 << 10)
    line = refused(capsys, count_sums.main, flags(codec, tiny_data, tmp_path / "counts"))
    assert "pairs is 2 and crop 64" in line and list(tmp_path.iterdir()) == []


def test_sums_are_no_counts(tmp_path):
    import torch

    save_sums(tmp_path / "sums", torch.zeros(3, 3, dtype=torch.int64), "abc", (0.5, 0.5))
    with pytest.raises(FileExistsError, match="sums"):
        merge_counts([tmp_path / "sums"], tmp_path / "sums")
