"""The sweep over flags: it knows every program, sees every kind of fault, and finds none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are forked")

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("convert_upstream", "demo", "precompute_sums")
FLAGS = "alpha chunks iterations kind preset seconds tracks".split()
FAULTY = '''
"""A program that does what it must not."""
import os, sys, time, types
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, "tests")
import sweep_flags, sweep_programs
from sweep_rules import Case, Flag
from scripts._cli import program

@dataclass(frozen=True)
class Args:
    input: Path
    count: str

@program
def main(args: Args) -> int:
    what = args.count
    if what == "0":
        return 0
    if what == "-1":
        os.abort()
    if what == "nan":
        while True:
            pass
    if what == "inf":
        Path(".out.1-2.tmp").write_text("half")
        raise ValueError("count is bad")
    if what == "1e30":
        args.input.write_text("gone")
        raise ValueError("count is bad")
    if what == "1e-300":
        raise RuntimeError("a bug")
    if what == "99999999999999999999":
        print("error: one", file=sys.stderr)
        raise ValueError("count is bad")
    if what == "nonsense":
        raise ValueError("it does not work")
    if what == "":
        return 3
    if what == "1000000000":
        Path("out.json").write_text('{"count": 7}')
        return 0
    raise ValueError(f"count is {what}")

module = types.ModuleType("scripts.faulty")
module.main, module.__file__ = main, "faulty.py"
sys.modules["scripts.faulty"] = module
sweep_programs.BASES["faulty"] = sweep_programs.Base("--input in/song.wav --count 2")
flag = Flag("--count", frozenset({"FLOAT"}), 1, False)
folder = Path(sys.argv[1])
(folder / "inputs").mkdir()
(folder / "inputs/song.wav").write_text("a song")
cases = [Case("faulty", flag, value) for value in sys.argv[2:]]
rows = list(sweep_flags.sweep(cases, folder / "inputs", folder, 2, 2.0))
for row in rows:
    print(row["value"], *row["faults"], sep=",")
assert "2 silent" not in sweep_flags.summary(rows)
assert [p.name for p in folder.iterdir()] == ["inputs"]
'''


def python(*arguments, **options):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=env, capture_output=True, text=True
    )


def test_every_kind_of_fault_is_seen(tmp_path):
    expected = {
        "0": ["silent"],
        "-1": ["crash"],
        "nan": ["hang"],
        "inf": ["half file"],
        "-inf": [],
        "1e30": ["input changed"],
        "1e-300": ["traceback"],
        "billion": ["replaced"],
        "huge": ["several lines"],
        "empty": ["status"],
        "nonsense": ["unnamed"],
    }
    ran = python("-c", FAULTY, tmp_path, *expected)
    assert ran.returncode == 0, ran.stderr
    found = {line.split(",")[0]: line.split(",")[1:] for line in ran.stdout.splitlines()}
    assert found == expected


def test_every_program_has_a_base_command():
    from sweep_programs import BASES

    folders = {path.parent.name for path in (ROOT / "scripts").glob("*/__main__.py")}
    programs = folders | {path.stem for path in (ROOT / "scripts").glob("[!_]*.py")}
    assert set(BASES) == programs


def test_a_sample_has_no_fault(tiny_data, tiny_models, tmp_path):
    inputs = tmp_path / "inputs"
    shutil.copytree(tiny_data, inputs / "data")
    shutil.copytree(tiny_models, inputs / "models")
    rows = tmp_path / "rows.jsonl"
    command = ["-m", "tests.sweep_flags", "--inputs", inputs, "--json", rows, "--jobs", "1"]
    ran = python(*command, "--programs", *PROGRAMS, "--flags", *FLAGS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(found) > 60 and {row["program"] for row in found} == set(PROGRAMS)
    assert "no fault" in ran.stdout
