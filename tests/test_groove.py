"""Drum takes by people as the drum part of composed songs."""

import csv
import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import yaml
from contents import contents
from test_synthetic import notes, part

from data.composer import STYLES, compose
from data.groove import SHORTEST, Performance, digest, read_takes
from data.synthetic import make_synthetic
from scripts.make_synthetic import main

SHARED = Path(os.environ.get("LATENT_SEPARATION_SHARED", Path(__file__).parents[2] / "shared"))
GROOVE = SHARED / "data" / "groove"
TO_GENERAL_MIDI = {22: 42, 26: 46, 52: 57, 55: 49, 58: 43}
ROWS = [  # name, bpm, metre, seconds, type, split
    ("a/rock", 120, "4-4", 16.0, "beat", "train"),
    ("a/waltz", 97, "3-4", 20.0, "beat", "train"),
    ("a/fill", 120, "4-4", 16.0, "fill", "train"),
    ("a/short", 120, "4-4", SHORTEST - 0.5, "beat", "train"),
    ("b/five", 140, "5-4", 21.0, "beat", "validation"),
    ("b/six", 80, "6-8", 24.0, "beat", "test"),
    ("b/odd", 162, "5-8", 15.0, "beat", "test"),
]
SMALL = {"seconds": 3.0, "sample_rate": 8000, "parts": ("bass", "drums")}


def write_take(path, bpm, metre, seconds, rng):
    """Kick, snare, hats and the TD-11's own notes on a grid, each off it by some milliseconds."""
    midi = pretty_midi.PrettyMIDI(resolution=480, initial_tempo=bpm)
    drums = pretty_midi.Instrument(0, is_drum=True)
    step = 15 / bpm
    steps = metre[0] * 16 // metre[1]
    for number in range(round(seconds / step)):
        within = number % steps
        pitches = [36] if within in (0, 6, 10) or rng.random() < 0.1 else []
        pitches += [38] if within in (4, 12) else []
        pitches += [int(rng.choice([22, 26, 42, 44, 51, 52, 55, 58]))] if within % 2 == 0 else []
        for pitch in pitches:
            start = max(0.0, number * step + rng.normal(0, 0.008))
            velocity = int(rng.integers(5, 128))
            drums.notes.append(pretty_midi.Note(velocity, pitch, start, start + 0.1))
    midi.instruments.append(drums)
    path.parent.mkdir(parents=True, exist_ok=True)
    midi.write(str(path))


def write_groove(folder):
    """A folder in the layout of the Groove MIDI Dataset."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with open(folder / "info.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        header = "drummer,session,id,style,bpm,beat_type,time_signature,midi_filename"
        table.writerow([*header.split(","), "audio_filename", "duration", "split"])
        for name, bpm, metre, seconds, kind, split in ROWS:
            row = [name[0], name[0], name, "rock", bpm, kind, metre, f"{name}.mid"]
            table.writerow([*row, "", seconds, split])
            beats = tuple(map(int, metre.split("-")))
            write_take(folder / f"{name}.mid", bpm, beats, seconds, rng)
    return folder


@pytest.fixture(scope="module")
def groove(tmp_path_factory):
    return write_groove(tmp_path_factory.mktemp("groove") / "groove")


@functools.cache
def played(take):
    """The take's notes in its file: (start, General MIDI pitch, velocity)."""
    midi = pretty_midi.PrettyMIDI(str(take.path))
    return sorted(
        (note.start, TO_GENERAL_MIDI.get(note.pitch, note.pitch), note.velocity)
        for instrument in midi.instruments
        for note in instrument.notes
    )


def cut_or_repeated(take, opening, bars, first, seconds):
    """The take from a bar on, bar after bar; every note by brute force."""
    expected = []
    early = 7.5 / take.bpm
    for number in range(int(seconds / take.bar_seconds) + 2):
        source = first + (opening + number) % bars
        for start, pitch, velocity in played(take):
            within = start - source * take.bar_seconds
            if -early <= within < take.bar_seconds - early:
                at = max(0.0, number * take.bar_seconds + within)
                if at < seconds:
                    expected.append((at, pitch, velocity))
    loudest = {}
    for at, pitch, velocity in expected:  # two notes of the TD-11 may be one of General MIDI
        key = (round(at, 6), pitch)
        loudest[key] = max(velocity, loudest.get(key, 0))
    return loudest


def kicks_near(midi, seconds):
    """(bass onsets within some seconds of a kick, all bass onsets), counted one by one."""
    kicks = [note.start for note in part(midi, "drums").notes if note.pitch in (35, 36)]
    onsets = [note.start for note in part(midi, "bass").notes]
    near = [onset for onset in onsets if any(abs(onset - kick) <= seconds for kick in kicks)]
    return len(near), len(onsets)


def test_only_beats_that_are_long_enough_are_takes(groove):
    takes = {take.name: take for take in read_takes(groove)}
    expected = {row[0]: row for row in ROWS if row[4] == "beat" and row[3] >= SHORTEST}
    assert set(takes) == set(expected)
    for name, take in takes.items():
        _, bpm, metre, _, _, split = expected[name]
        assert (take.bpm, "{}-{}".format(*take.metre), take.split) == (bpm, metre, split)
        assert take.bar_seconds == pytest.approx(take.metre[0] * 4 / take.metre[1] * 60 / bpm)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seconds", [7.0, 40.0])
def test_the_takes_notes_are_the_drum_part(groove, style, seconds):
    for take in read_takes(groove):
        song = compose(3, seconds, style=style, take=take)
        got = {(round(n.start, 6), n.pitch): n.velocity for n in part(song, "drums").notes}
        bars = round(max(start for start, _, _ in played(take)) / take.bar_seconds)
        choices = [cut_or_repeated(take, bar, bars, 0, seconds) for bar in range(bars)]
        assert got in choices, take.name


@pytest.mark.parametrize("style", STYLES)
def test_tempo_and_metre_are_those_of_the_take(groove, tmp_path, style):
    for take in read_takes(groove):
        compose(3, 5, style=style, take=take).write(str(tmp_path / "song.mid"))
        song = pretty_midi.PrettyMIDI(str(tmp_path / "song.mid"))
        (change,) = song.time_signature_changes
        assert (change.numerator, change.denominator) == take.metre
        assert song.get_tempo_changes()[1] == pytest.approx([take.bpm], rel=1e-4)


@pytest.mark.parametrize("style", STYLES)
def test_the_bass_plays_with_the_kicks(groove, style):
    near, total = 0, 0
    for seed in range(12):
        for take in read_takes(groove):
            counts = kicks_near(compose(seed, 20, style=style, take=take), 0.025)
            near, total = near + counts[0], total + counts[1]
    assert total > 1000 and near / total > 0.6


def test_loud_kicks_are_loud_in_the_bass(groove):
    pairs = []
    for seed in range(12):
        for take in read_takes(groove):
            song = compose(seed, 20, take=take)
            kicks = [n for n in part(song, "drums").notes if n.pitch in (35, 36)]
            pairs += [
                (kick.velocity, note.velocity)
                for note in part(song, "bass").notes
                for kick in kicks
                if abs(note.start - kick.start) < 0.025
            ]
    assert np.corrcoef(np.array(pairs).T)[0, 1] > 0.5


@pytest.mark.parametrize("style", STYLES)
def test_a_longer_song_begins_with_the_same_take(groove, style):
    take = read_takes(groove)[0]
    short, long = (compose(5, seconds, style=style, take=take) for seconds in (9, 30))
    for name in ("bass", "drums") if style == "wide" else ("drums",):
        begun = [n for n in notes(long) if n[0] == name and n[5] < 7]
        assert begun and begun == [n for n in notes(short) if n[0] == name and n[5] < 7]


def test_songs_have_takes_of_their_split(groove, tmp_path):
    options = {"groove": groove, "groove_share": 0.6, "split": (0.5, 0.25, 0.25), **SMALL}
    tracks, _ = make_synthetic(tmp_path / "a", tracks=16, **options)
    splits = {take.name: take.split for take in read_takes(groove)}
    generators = [yaml.safe_load((t / "metadata.yaml").read_text())["generator"] for t in tracks]
    with_take = [
        (track.parent.name, generator["take"])
        for track, generator in zip(tracks, generators, strict=True)
        if "take" in generator
    ]
    assert 4 < len(with_take) < 16 and {split for split, _ in with_take} == set(splits.values())
    assert all(splits[name] == split for split, name in with_take)
    before = contents(tmp_path / "a")
    make_synthetic(tmp_path / "a", tracks=17, **options)
    assert before.items() <= contents(tmp_path / "a").items()
    plain, _ = make_synthetic(tmp_path / "b", tracks=16, split=options["split"], **SMALL)
    for track, other, generator in zip(tracks, plain, generators, strict=True):
        same = (track / "all_src.mid").read_bytes() == (other / "all_src.mid").read_bytes()
        assert same == ("take" not in generator)


def test_the_record_names_the_takes(groove, tmp_path):
    make_synthetic(tmp_path / "a", tracks=1, **SMALL)
    record = json.loads((tmp_path / "a" / "synthetic.json").read_text())
    assert not {"style", "groove", "groove_share"} & set(record)
    make_synthetic(tmp_path / "b", tracks=1, groove=groove, split=(1, 0, 0), **SMALL)
    record = json.loads((tmp_path / "b" / "synthetic.json").read_text())
    assert (record["groove"], record["groove_share"]) == (digest(read_takes(groove)), 0.5)
    with pytest.raises(ValueError, match="another .*groove"):
        make_synthetic(tmp_path / "b", tracks=1, split=(1, 0, 0), **SMALL)
    other = shutil.copytree(groove, tmp_path / "other")
    write_take(other / "a/rock.mid", 120, (4, 4), 16, np.random.default_rng(9))
    with pytest.raises(ValueError, match="another groove"):
        make_synthetic(tmp_path / "b", tracks=1, groove=other, split=(1, 0, 0), **SMALL)


def test_what_is_refused(groove, tmp_path, capsys):
    folder = shutil.copytree(groove, tmp_path / "groove")
    words = ["--output", str(tmp_path / "x"), "--tracks", "3", "--seconds", "2"]

    def refused(*flags):
        assert main([*words, *map(str, flags)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "x").exists()
        return line

    assert "groove_share is 0.5" in refused("--groove-share", 0.5)
    assert "groove_share is 2" in refused("--groove", folder, "--groove-share", 2)
    assert "groove is for composed songs" in refused("--groove", folder, "--midi-dir", folder)
    assert "style is for composed songs" in refused("--style", "wide", "--midi-dir", folder)
    assert "no info.csv" in refused("--groove", tmp_path)
    (folder / "b/five.mid").unlink()
    assert "no usable takes of the split validation" in refused("--groove", folder)
    (folder / "info.csv").write_text("a,b\n1,2\n")
    assert "info.csv is no table" in refused("--groove", folder)
    table = (groove / "info.csv").read_text().replace(",beat,", ",fill,")
    (folder / "info.csv").write_text(table)
    assert "no take of type beat" in refused("--groove", folder)


def test_a_damaged_take_is_skipped_by_name(groove, tmp_path):
    folder = shutil.copytree(groove, tmp_path / "groove")
    for name in ("a/rock", "a/waltz"):
        (folder / f"{name}.mid").write_bytes(b"MThd")
    options = {"groove": folder, "split": (1, 0, 0), **SMALL}
    tracks, skipped = make_synthetic(tmp_path / "x", tracks=8, **options)
    assert 0 < len(tracks) < 8 and len(tracks) + len(skipped) == 8
    assert all("take a/" in reason and "as MIDI" in reason for reason in skipped.values())


@pytest.mark.slow
def test_real_takes():
    if not GROOVE.is_dir():
        pytest.skip(f"no Groove MIDI Dataset at {GROOVE}")
    takes = read_takes(GROOVE)
    assert {take.split for take in takes} == {"train", "validation", "test"}
    assert {take.metre for take in takes} == {(4, 4), (3, 4), (6, 8), (5, 4), (5, 8)}
    near, total = 0, 0
    for number, take in enumerate(takes[::12]):
        song = compose(number, 20, style=STYLES[number % 2], take=take)
        for instrument in song.instruments:
            assert all(0 <= note.start < note.end <= 20 for note in instrument.notes)
        source = {(pitch, velocity) for _, pitch, velocity in played(take)}
        drums = part(song, "drums").notes
        assert {(note.pitch, note.velocity) for note in drums} <= source
        counts = kicks_near(song, 0.025)
        near, total = near + counts[0], total + counts[1]
    assert near / total > 0.5


def test_a_performance_does_not_depend_on_the_length(groove):
    take = read_takes(groove)[1]
    short, long = (Performance(take, s, np.random.default_rng(4)) for s in (8.0, 50.0))
    for time in np.arange(0, 7, 0.01):
        assert short.attract(time) == long.attract(time)
