"""Arrangements by MMA: with a stand-in for the program, and with the program where it is."""

import shutil
import stat
import sys
from collections import Counter

import numpy as np
import pretty_midi
import pytest
from contents import contents

from data import mma
from data.composer import PROGRESSIONS, SCALES
from data.layout import inst_class
from data.mma import MMA, make_arrangements, write_chart
from data.synthetic import make_synthetic
from scripts.make_arrangements import main

STYLE = "GROOVE {0}\nTRACK BASS\nTRACK CHORD\nTRACK DRUM-KICK\nGROOVE {0}Fill\nTRACK DRUM-SNARE\n"
FAKE = '''#!{python}
"""Answers as MMA: its library's folder, the tracks of a style, a MIDI file of the chart's bytes."""
import sys
from pathlib import Path

words = sys.argv[1:]
source = Path(words[-1])
text = source.read_text()
library = Path(__file__).with_name(Path(__file__).name + ".lib")
if "-Ds" in words:
    print(text, end="")
elif "LIBPATH" in text:
    print("Warning: a plugin is missing")
    print("LIBRARY", library)
elif "Groove Broken" in text:
    print("Error: <Line 3> the chart is wrong")
    sys.exit(1)
else:
    drum = b"\\x99\\x24\\x64\\x81\\x00\\x89\\x24\\x00"
    pitch = bytes([30 + sum(text.encode()) % 20])
    bass = b"\\x00\\x90" + pitch + b"\\x64\\x81\\x00\\x80" + pitch + b"\\x00"
    if "Groove NoBass" in text:
        bass = b""
    track = b"\\x00\\xc0\\x21\\x00" + drum + bass + b"\\x00\\xff\\x2f\\x00"
    head = b"MThd\\x00\\x00\\x00\\x06\\x00\\x00\\x00\\x01\\x00\\x60MTrk"
    Path(words[words.index("-f") + 1]).write_bytes(head + len(track).to_bytes(4, "big") + track)
'''


def write_mma(path, *styles):
    """A program that answers as MMA, and its library, in which each style is its own listing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE.replace("{python}", sys.executable), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    library = path.with_name(f"{path.name}.lib") / "stdlib"
    library.mkdir(parents=True)
    for style in styles or ("Rock", "Waltz"):
        (library / f"{style.lower()}.mma").write_text(STYLE.format(style), encoding="utf-8")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A stand-in for MMA on the PATH."""
    write_mma(tmp_path / "bin/mma")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin/mma"


def test_only_grooves_with_bass_and_drums_are_used(fake):
    program = MMA()
    assert [style.name for style in program.styles] == ["rock.mma", "waltz.mma"]
    assert program.grooves(program.styles[0]) == ["Rock"]


def test_charts_are_what_their_numbers_say():
    bars, grooves = Counter(), Counter()
    for seed in range(20):
        chart = write_chart(np.random.default_rng(seed), ["A", "AIntro", "B"])
        seeded, tempo, *lines = (line.split() for line in chart.splitlines())
        assert seeded[0] == "RndSeed" and 60 <= int(tempo[1]) < 190
        numbers = [int(number) for number, _ in (line for line in lines if line[0] != "Groove")]
        assert numbers == list(range(1, len(numbers) + 1))
        grooves.update(name for word, name in lines if word == "Groove")
        bars[len(numbers)] += 1
    assert set(grooves) == {"A", "AIntro", "B"} and grooves["AIntro"] < grooves["A"]
    assert min(bars) >= 32 and max(bars) <= 64


@pytest.mark.parametrize("scale", SCALES.values())
def test_chords_have_the_notes_of_the_scale(scale):
    notes = dict(zip(mma._NOTES, range(12), strict=True))
    kinds = {name: steps for steps, name in {**mma._TRIADS, **mma._SEVENTHS}.items()}
    for tonic in range(12):
        allowed = {(tonic + step) % 12 for step in scale}
        for degree in {degree for progression in PROGRESSIONS for degree in progression}:
            for sevenths in (False, True):
                name = mma._chord(scale, tonic, degree, sevenths)
                root = name[:2] if name[1:2] == "b" else name[:1]
                steps = (0, *kinds[name.removeprefix(root)])
                assert {(notes[root] + step) % 12 for step in steps} <= allowed
                assert (notes[root] - tonic) % 12 == scale[degree]


def test_the_same_flags_are_the_same_files_and_a_run_continues(fake, tmp_path):
    files, skipped = make_arrangements(tmp_path / "a", songs=3, seed=4)
    assert [file.name for file in files] == [f"mma-4-{n:05d}.mid" for n in (1, 2, 3)]
    assert skipped == {} and len({file.read_bytes() for file in files}) > 1
    before = contents(tmp_path / "a")
    make_arrangements(tmp_path / "b", songs=3, seed=4)
    assert contents(tmp_path / "b") == before
    files[1].unlink()
    make_arrangements(tmp_path / "a", songs=5, seed=4)
    after = contents(tmp_path / "a")
    assert before.items() <= after.items() and len(after) == 10
    make_arrangements(tmp_path / "a", songs=1, seed=5)
    assert after.items() <= contents(tmp_path / "a").items()


def test_charts_that_fail_are_tried_again_or_skipped(tmp_path):
    write_mma(tmp_path / "some", "Broken", "NoBass", "Rock")
    files, skipped = make_arrangements(tmp_path / "a", songs=12, program=tmp_path / "some")
    assert len(files) + len(skipped) == 12 and len(files) > 6
    charts = [file.with_suffix(".mma").read_text() for file in files]
    assert all("Groove Rock" in chart for chart in charts)
    assert len(list((tmp_path / "a").iterdir())) == 2 * len(files)
    write_mma(tmp_path / "none", "Broken")
    with pytest.raises(ValueError, match="none of the 2 songs.*<Line 3> the chart is wrong"):
        make_arrangements(tmp_path / "b", songs=2, program=tmp_path / "none")
    assert not (tmp_path / "b").exists()


def test_a_program_that_hangs_or_is_none(tmp_path, monkeypatch):
    write_mma(tmp_path / "slow")
    program = MMA(tmp_path / "slow")
    (tmp_path / "slow").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    monkeypatch.setattr(mma, "_TIMEOUT", 0.3)
    with pytest.raises(ValueError, match=r"took more than 0\.3 s"):
        program.arrange("1 C\n")
    (tmp_path / "slow").write_bytes(b"\x00\x01")
    with pytest.raises(ValueError, match="cannot be run"):
        program.arrange("1 C\n")


def test_program(fake, tmp_path, monkeypatch, capsys):
    flags = ["--output", str(tmp_path / "out"), "--songs", "2"]
    assert main(flags) == 0
    assert capsys.readouterr().out == f"2 MIDI files in {tmp_path / 'out'}, 0 songs skipped\n"
    made, _ = make_synthetic(
        tmp_path / "slakh", midi_dir=tmp_path / "out", sample_rate=8000, seconds=1
    )
    assert len(made) == 2
    monkeypatch.setenv("PATH", "")
    assert main(["--output", str(tmp_path / "no")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "apt-get install" in line and "mma" in line and not (tmp_path / "no").exists()


def test_the_real_program(tmp_path):
    if shutil.which("mma") is None:
        pytest.skip("MMA is not installed (apt-get install --no-install-recommends mma)")
    program = MMA()
    assert len(program.styles) > 50
    files, _ = make_arrangements(tmp_path / "a", songs=2, seed=1)
    again, _ = make_arrangements(tmp_path / "b", songs=2, seed=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and len(files) == len(again) == 2
    for file in files:
        midi = pretty_midi.PrettyMIDI(str(file))
        classes = {inst_class(each.program, each.is_drum) for each in midi.instruments}
        assert {"Bass", "Drums"} <= classes
        tempo = next(
            line for line in file.with_suffix(".mma").read_text().splitlines() if "Tempo" in line
        )
        assert midi.get_tempo_changes()[1][0] == pytest.approx(int(tempo.split()[1]), rel=1e-3)
