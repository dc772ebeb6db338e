"""The fuzzer: it sees every kind of finding, finds none in a sample, and what it found is fixed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cases run in a forked process")

ROOT = Path(__file__).resolve().parent.parent
FAULTY = '''
"""A parser that does what none must."""
import ctypes, sys
sys.path.insert(0, "tests")
import fuzz
from fuzz_cases import Case, check

class Faulty:
    def prepare(self, seeds):
        seeds.mkdir()

    def make(self, rng, seeds, home):
        what = (*sys.argv[2:], "drawn")[self.number]
        path = home / "file"
        path.write_text("as it was")
        return Case(what, lambda: self.read(what, path), (str(path),), VALID.get(what))

    def read(self, what, path):
        if what == "crash":
            ctypes.string_at(0)
        elif what == "hang":
            while True:
                pass
        elif what == "memory":
            bytearray(1 << 31)
        elif what == "code executed":
            open("executed", "w")
        elif what == "input changed":
            path.write_text("changed")
        elif what == "files left":
            open("left", "w")
        elif what == "exception":
            raise KeyError(str(path))
        elif what == "wrong result":
            check(False, "NaN")
        elif what == "several lines":
            raise ValueError(f"{path}\\nis bad")
        elif what == "unnamed":
            raise ValueError("a file is bad")
        elif what == "refused":
            raise ValueError(f"{path} is bad")
        elif what == "missing":
            raise FileNotFoundError(2, "No such file", str(path))
        elif what == "in error":
            raise ValueError(f"{path} is bad")

VALID = {"in error": True, "accepted in error": False}
faulty = fuzz.PARSERS["faulty"] = Faulty()
rows = []
for number in range(len(sys.argv) - 2):
    faulty.number = number
    folder = fuzz.Path(sys.argv[1]) / str(number)
    rows += fuzz.fuzz("faulty", range(7, 8), 3, folder, 2.0)
for row in rows:
    print(row["label"], row["verdict"], *(f.partition(":")[0] for f in row["findings"]), sep=",")
assert "--parsers faulty --seed 3 --case 7" in fuzz.summary(rows, 3)
'''


def python(*arguments):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_every_kind_of_finding_is_seen(tmp_path):
    kinds = "crash hang memory exception|code executed|input changed|files left|wrong result"
    kinds = [*kinds.split("|")[0].split(), *kinds.split("|")[1:], "several lines", "unnamed"]
    fine = {"refused": "refused", "missing": "refused", "fine": "accepted"}
    wrong = {"in error": "refused", "accepted in error": "accepted"}
    ran = python("-c", FAULTY, tmp_path, *kinds, *fine, *wrong)
    assert ran.returncode == 0, ran.stderr
    found = {line.split(",")[0]: line.split(",")[1:] for line in ran.stdout.splitlines()}
    for kind in kinds:
        assert found[kind][1:] == [kind]
    assert {kind: found[kind] for kind in fine} == {k: [v] for k, v in fine.items()}
    assert {kind: found[kind] for kind in wrong} == {
        k: [v, "wrong result"] for k, v in wrong.items()
    }


WHOLE = """
import sys
sys.path.insert(0, "tests")
import fuzz_audio, fuzz_long_audio
from pathlib import Path
from jukebox_core import audio
from jukebox_core.machine import is_out_of_memory
path = Path(sys.argv[1])
path.write_bytes(fuzz_long_audio.flac(2000, 1, 1000))
fuzz_long_audio.read_start(path)
try:
    with fuzz_long_audio.little_memory():
        audio.load(path)
except Exception as error:
    print(path.stat().st_size, audio.info(path).frames, is_out_of_memory(error))
"""


def test_a_reader_that_holds_a_long_file_whole_runs_out_of_memory(tmp_path):
    ran = python("-c", WHOLE, tmp_path / "long.flac")
    assert ran.stdout == f"{(tmp_path / 'long.flac').stat().st_size} 131070000 True\n", ran.stderr
    assert (tmp_path / "long.flac").stat().st_size < 30_000


def test_a_sample_has_no_finding(tmp_path):
    rows = tmp_path / "rows.jsonl"
    ran = python("-m", "tests.fuzz", "--cases", 50, "--json", rows)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    for parser in ("audio", "metadata", "checkpoints", "tables", "commands"):
        verdicts = [row["verdict"] for row in found if row["parser"] == parser]
        assert len(verdicts) == 50 and set(verdicts) == {"accepted", "refused"}
