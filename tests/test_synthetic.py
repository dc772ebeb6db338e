"""Composed songs, rendering, and the data set in Slakh's layout."""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile
import yaml
from contents import contents

from data import synthetic
from data.composer import BASS_PROGRAMS, DRUM_KITS, PARTS, compose
from data.layout import assign_splits, check_fractions, fold_name, inst_class
from data.midi import cut, reorchestrate
from data.render import Renderer, block_powers, loudness
from data.synthetic import make_synthetic
from jukebox_core.audio.production import EFFECTS, Production
from jukebox_core.files import sha256
from scripts.make_synthetic import main

RATE = 11025  # speed
SMALL = {"seconds": 3.0, "sample_rate": RATE, "parts": ("bass", "drums")}
SHARED = Path(os.environ.get("LATENT_SEPARATION_SHARED", Path(__file__).parents[2] / "shared"))


def notes(midi):
    return [
        (instrument.name, instrument.program, note.pitch, note.velocity, note.start, note.end)
        for instrument in midi.instruments
        for note in instrument.notes
    ]


def part(midi, name):
    return next(instrument for instrument in midi.instruments if instrument.name == name)


def write_midi(path, *instruments):
    """(program, is_drum, [(pitch, start, end), ...]) each."""
    midi = pretty_midi.PrettyMIDI(resolution=960)
    for program, is_drum, played in instruments:
        instrument = pretty_midi.Instrument(program, is_drum=is_drum)
        instrument.notes = [pretty_midi.Note(100, *note) for note in played]
        midi.instruments.append(instrument)
    path.parent.mkdir(parents=True, exist_ok=True)
    midi.write(str(path))


# Composing


def test_the_same_seed_is_the_same_song_and_another_is_another():
    assert notes(compose([5, 1], 20)) == notes(compose([5, 1], 20))
    songs = [notes(compose([5, song], 20, parts=["bass", "drums"])) for song in range(20)]
    assert all(songs[i] != songs[j] for i in range(20) for j in range(i))


def test_a_part_does_not_depend_on_the_others():
    whole, alone = compose(3, 20), compose(3, 20, parts=["bass"])
    assert notes(alone) == [note for note in notes(whole) if note[0] == "bass"]


@pytest.mark.parametrize("seed", range(12))
def test_songs_are_playable(seed):
    seconds = 25.0
    midi = compose(seed, seconds)
    names = [instrument.name for instrument in midi.instruments]
    assert names == [name for name in PARTS if name in names]
    assert {"bass", "drums", "piano"} <= set(names)
    bass, drums = part(midi, "bass"), part(midi, "drums")
    assert bass.program in BASS_PROGRAMS and not bass.is_drum
    assert drums.program in DRUM_KITS and drums.is_drum
    assert all(26 <= note.pitch <= 60 for note in bass.notes)
    assert all(35 <= note.pitch <= 81 for note in drums.notes)
    assert {35, 36} & {note.pitch for note in drums.notes}  # a kick
    for instrument in midi.instruments:
        assert all(0 <= note.start < note.end <= seconds for note in instrument.notes)
        assert len({note.velocity for note in instrument.notes}) > 3  # a human touch
    for instrument in (bass, drums):  # at most a rest of two bars, or three in slow three-four
        starts = [0.0, *sorted(note.start for note in instrument.notes), seconds]
        assert max(np.diff(starts)) < 9.0


def test_songs_differ_in_what_matters():
    songs = [compose(seed, 30) for seed in range(40)]
    tempi = [song.get_tempo_changes()[1][0] for song in songs]
    assert 72 <= min(tempi) < 90 and 140 < max(tempi) <= 176
    assert {part(song, "bass").program for song in songs} == set(BASS_PROGRAMS)
    assert {part(song, "drums").program for song in songs} == set(DRUM_KITS)
    crashes = [any(n.pitch in (49, 57) for n in part(song, "drums").notes) for song in songs]
    assert sum(crashes) > 30
    bars = [60 / tempo * 4 for tempo in tempi]
    gaps = [
        max(np.diff(sorted(n.start for n in part(song, name).notes))) / bar
        for song, bar in zip(songs, bars, strict=True)
        for name in ("bass", "drums")
    ]
    assert sum(gap > 1.0 for gap in gaps) > 5  # breaks in which a source rests


@pytest.mark.parametrize(
    ("seconds", "parts", "words"),
    [
        (0, PARTS, "seconds is 0"),
        (math.inf, PARTS, "seconds is inf"),
        (5, ("bass", "flute"), "expected some of bass, drums"),
        (5, (), "parts are"),
    ],
)
def test_compose_refuses(seconds, parts, words):
    with pytest.raises(ValueError, match=words):
        compose(0, seconds, parts=parts)


@pytest.mark.parametrize("seconds", [1.0, 3.0, 6.0])
def test_short_songs_have_every_part_playing(seconds):
    for seed in range(20):
        midi = compose(seed, seconds)
        assert all(instrument.notes for instrument in midi.instruments)


# Rendering


def test_rendering_is_the_same_bytes_in_any_order():
    midi = compose(1, 4.0)
    first = Renderer(RATE)
    audio = [first([instrument], 4 * RATE) for instrument in midi.instruments]
    again = [first([instrument], 4 * RATE) for instrument in reversed(midi.instruments)]
    other = [Renderer(RATE)([instrument], 4 * RATE) for instrument in midi.instruments]
    for a, b, c in zip(audio, reversed(again), other, strict=True):
        assert a.dtype == np.float32 and a.any()
        assert a.tobytes() == b.tobytes() == c.tobytes()
    assert np.array_equal(first(midi.instruments, 4 * RATE), np.sum(audio, axis=0))


def test_rendering_follows_the_notes():
    instrument = pretty_midi.Instrument(16)
    instrument.notes = [pretty_midi.Note(100, 69, 0.5, 1.0), pretty_midi.Note(100, 69, 1.5, 1.5)]
    audio = Renderer(22050)([instrument], 3 * 22050)
    assert not audio[: 22050 // 2].any()
    spectrum = np.abs(np.fft.rfft(audio[13000:21000] * np.hanning(8000)))
    peaks = np.fft.rfftfreq(8000, 1 / 22050)[spectrum > spectrum.max() / 2]
    assert any(abs(peak / 440 - round(peak / 440)) < 0.01 for peak in peaks)
    assert not audio[-22050 // 2 :].any()  # the note without length has ended too


def test_an_unknown_kit_plays_the_standard_one():
    instrument = pretty_midi.Instrument(77, is_drum=True)
    instrument.notes = [pretty_midi.Note(100, 38, 0.0, 0.1)]
    render = Renderer(RATE)
    audio = render([instrument], RATE)
    instrument.program = 0
    assert audio.any() and np.array_equal(audio, render([instrument], RATE))


def test_a_controller_before_the_note_holds():
    instrument = pretty_midi.Instrument(33)
    instrument.notes = [pretty_midi.Note(100, 40, 0.0, 1.0)]
    render = Renderer(RATE)
    loud = render([instrument], RATE)
    instrument.control_changes = [pretty_midi.ControlChange(7, 30, 0.0)]
    quiet = render([instrument], RATE)
    instrument.control_changes = []
    assert 0 < np.abs(quiet).max() < np.abs(loud).max() / 2
    assert np.array_equal(render([instrument], RATE), loud)  # and is forgotten afterwards


def test_what_rendering_needs(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no soundfont"):
        Renderer(RATE, tmp_path / "x.sf2")
    (tmp_path / "x.sf2").write_text("no soundfont")
    with pytest.raises(ValueError, match="x.sf2 is not an sf2 or sf3 soundfont"):
        Renderer(RATE, tmp_path / "x.sf2")
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps tinysoundfont"):
        Renderer(RATE)


@pytest.mark.parametrize("rate", [48000, 44100])
def test_loudness_of_the_standards_test_tone(rate):
    tone = np.sin(2 * np.pi * 997 * np.arange(rate * 4) / rate)
    assert loudness(tone, rate) == pytest.approx(-3.01, abs=0.01)
    half = np.concatenate([tone, np.zeros_like(tone)])  # the gate leaves silence out
    assert loudness(half, rate) == pytest.approx(-3.01, abs=0.01)
    assert loudness(np.zeros(rate), rate) == -math.inf
    assert block_powers(tone, rate).mean() == pytest.approx(0.5, rel=1e-4)


# Splits and names


def test_splits_have_the_right_sizes_and_never_move():
    splits = assign_splits(100, (0.7, 0.1, 0.2))
    assert [splits.count(name) for name in ("train", "validation", "test")] == [70, 10, 20]
    assert assign_splits(10, (0.7, 0.1, 0.2)) == splits[:10]
    assert sorted(splits[:3]) == ["test", "train", "validation"]
    assert set(assign_splits(30, (2, 0, 1))) == {"train", "test"}
    assert check_fractions((2, 0, 2)) == (0.5, 0, 0.5)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0, 0, 0)])
def test_wrong_shares_are_refused(fractions):
    with pytest.raises(ValueError, match="expected three shares"):
        check_fractions(fractions)


@pytest.mark.parametrize("share", [-1, math.inf, math.nan, "0.5"])
def test_wrong_shares_are_named(share):
    with pytest.raises(ValueError, match="split .validation. is "):
        check_fractions((1, share, 1))


def test_classes_and_folded_names():
    names = {0: "Piano", 33: "Bass", 52: "Strings (continued)", 127: "Sound effects"}
    assert {program: inst_class(program, False) for program in names} == names
    assert inst_class(0, True) == "Drums"
    assert fold_name("Synth Lead") == fold_name("synth_lead") == "synth_lead"
    assert fold_name("Strings (continued)") == "strings_continued"


# The data set


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "data"
    make_synthetic(output, tracks=3, seed=7, seconds=3.0, sample_rate=RATE)
    return output


def test_layout_and_exact_mix(made):
    folders = sorted(made.glob("*/Track*"))
    assert sorted(folder.name for folder in folders) == ["Track00001", "Track00002", "Track00003"]
    assert {folder.parent.name for folder in folders} == {"train", "validation", "test"}
    for folder in folders:
        metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
        stems = metadata["stems"]
        assert {"Bass", "Drums", "Piano"} <= {stem["inst_class"] for stem in stems.values()}
        mix, rate = soundfile.read(folder / "mix.flac", dtype="int16")
        total = np.zeros(len(mix), dtype=int)
        for name, stem in stems.items():
            samples, _ = soundfile.read(folder / f"stems/{name}.flac", dtype="int16")
            total += samples
            midi = pretty_midi.PrettyMIDI(str(folder / f"MIDI/{name}.mid"))
            assert len(midi.instruments) == 1
            assert midi.instruments[0].is_drum == stem["is_drum"] == (stem["program_num"] == 128)
            assert math.isfinite(stem["integrated_loudness"])
        assert rate == RATE and len(mix) == 3 * RATE
        assert np.array_equal(mix, total)
        assert np.abs(mix).max() <= 10 ** (-1 / 20) * 32768 + 1
        whole = pretty_midi.PrettyMIDI(str(folder / "all_src.mid"))
        assert len(whole.instruments) == len(stems)


def test_metadata_has_the_keys_of_real_slakh(made):
    path = SHARED / "data/slakh/slakh2100_flac_redux/train/Track00001/metadata.yaml"
    if not path.exists():
        pytest.skip(f"no real Slakh metadata at {path}")
    real = yaml.safe_load(path.read_text())
    ours = yaml.safe_load(next(made.glob("train/*/metadata.yaml")).read_text())
    assert set(ours) - {"generator"} == set(real)
    for name, value in real.items():
        assert isinstance(ours[name], type(value)), name
    stem = next(iter(ours["stems"].values()))
    assert set(stem) == set(real["stems"]["S00"])
    assert all(isinstance(stem[key], type(value)) for key, value in real["stems"]["S00"].items())
    classes = {(s["program_num"], s["inst_class"]) for s in real["stems"].values()}
    for program, name in classes - {(22, "Organ")}:
        assert inst_class(program % 128, program == 128) == name


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed, workers in (("a", 1, 1), ("b", 1, 2), ("c", 2, 1)):
        make_synthetic(tmp_path / name, tracks=2, seed=seed, workers=workers, **SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    mixes = [sha256(path) for name in "ac" for path in (tmp_path / name).rglob("mix.flac")]
    assert len(set(mixes)) == 4


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    make_synthetic(tmp_path / "whole", tracks=3, **SMALL)
    original, count = synthetic._write_midi, []

    def interrupted(*args):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(synthetic, "_write_midi", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "parts", tracks=3, **SMALL)
    assert len(list((tmp_path / "parts").glob("*/*"))) == 1  # one track, nothing half written
    made = make_synthetic(tmp_path / "parts", tracks=3, **SMALL)
    assert len(count) == 4  # the finished track was not made again
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert len(made.tracks) == 3 and made.skipped == {}


def test_more_tracks_leave_the_earlier_ones(tmp_path):
    make_synthetic(tmp_path, tracks=2, **SMALL)
    before = contents(tmp_path)
    make_synthetic(tmp_path, tracks=4, **SMALL)
    after = contents(tmp_path)
    assert before.items() <= after.items()
    assert len(list(tmp_path.glob("*/Track*"))) == 4
    with pytest.raises(ValueError, match="holds 4 tracks, not 2"):
        make_synthetic(tmp_path, tracks=2, **SMALL)


def test_other_settings_or_data_are_not_mixed(tmp_path):
    make_synthetic(tmp_path / "a", tracks=1, **SMALL)
    before = contents(tmp_path / "a")
    with pytest.raises(ValueError, match="another seed, seconds"):
        make_synthetic(tmp_path / "a", tracks=1, **{**SMALL, "seed": 5, "seconds": 2})
    assert contents(tmp_path / "a") == before
    (tmp_path / "slakh/train").mkdir(parents=True)
    with pytest.raises(ValueError, match="another origin"):
        make_synthetic(tmp_path / "slakh", tracks=1, **SMALL)
    assert contents(tmp_path / "slakh") == {}


# Production and levels


def described(track):
    return yaml.safe_load((track / "metadata.yaml").read_text())


def stem(track, name):
    return soundfile.read(track / f"stems/{name}.flac", dtype="float32")[0]


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("dry") / "data", tracks=4, **SMALL).tracks


@pytest.fixture(scope="module")
def wet(tmp_path_factory):
    output = tmp_path_factory.mktemp("wet") / "data"
    return make_synthetic(output, tracks=4, production=["all"], **SMALL).tracks


def test_production_changes_the_sound_and_nothing_else(dry, wet):
    different = 0
    for plain, processed in zip(dry, wet, strict=True):
        midis = sorted(path.relative_to(plain) for path in plain.rglob("*.mid"))
        assert len(midis) == 3
        assert all((plain / m).read_bytes() == (processed / m).read_bytes() for m in midis)
        before, after = described(plain), described(processed)
        mix = soundfile.read(processed / "mix.flac", dtype="int16")[0]
        total = np.zeros(len(mix), dtype=int)
        for name in after["stems"]:
            total += soundfile.read(processed / f"stems/{name}.flac", dtype="int16")[0]
            drawn = after["generator"]["production"][name]
            effects = {k: EFFECTS[k](**v) for k, v in drawn.items()}
            expected = Production(**effects)(stem(plain, name), RATE)
            found = stem(processed, name)
            # the written effects of the plain stem, at the plain stem's level
            powers = block_powers(found, RATE), block_powers(stem(plain, name), RATE)
            levels = [10 * np.log10(p[p > p.max() * 1e-4].mean()) for p in powers]
            gains = [20 * np.log10(song["overall_gain"]) for song in (after, before)]
            assert levels[0] - gains[0] == pytest.approx(levels[1] - gains[1], abs=0.05)
            match = found @ expected / (np.linalg.norm(found) * np.linalg.norm(expected))
            # periodic sounds have several best places for a piece of detuned audio
            assert match > (0.8 if "detuning" in effects else 0.999)
            different += bool(effects)
        assert np.array_equal(mix, total)
    assert different >= 6


def test_effects_can_be_left_out(wet, tmp_path):
    tracks, _ = make_synthetic(tmp_path, tracks=4, production=["reverb", "eq", "eq"], **SMALL)
    assert json.loads((tmp_path / "synthetic.json").read_text())["production"] == ["eq", "reverb"]
    for some, every in zip(tracks, wet, strict=True):
        drawn, whole = (described(track)["generator"]["production"] for track in (some, every))
        kept = {
            name: {k: v for k, v in effects.items() if k in ("eq", "reverb")}
            for name, effects in whole.items()
        }
        assert drawn == kept


def test_some_songs_are_dry(dry, wet, tmp_path):
    options = {**SMALL, "production": ["all"], "production_share": 0.5}
    tracks = make_synthetic(tmp_path, tracks=4, **options).tracks
    origins = []
    for track, *others in zip(tracks, dry, wet, strict=True):
        same = [
            all(np.array_equal(stem(track, s), stem(other, s)) for s in described(track)["stems"])
            for other in others
        ]
        assert any(same)
        origins.append(same.index(True))
    assert set(origins) == {0, 1}
    again = make_synthetic(tmp_path / "one", tracks=2, **options).tracks
    assert [stem(track, "S00").tolist() for track in again] == [
        stem(track, "S00").tolist() for track in tracks[:2]
    ]
    with pytest.raises(ValueError, match="production_share is 0.5, but there are no effects"):
        make_synthetic(tmp_path / "none", tracks=1, production_share=0.5, **SMALL)


def test_stems_have_the_loudness_of_slakh(tmp_path):
    options = {**SMALL, "parts": None, "level": "loudness"}
    for track in make_synthetic(tmp_path, tracks=2, production=["all"], **options).tracks:
        metadata = described(track)
        assert metadata["normalization_factor"] == -13.0
        for entry in metadata["stems"].values():
            assert entry["integrated_loudness"] == pytest.approx(-13.0, abs=0.1)


def test_folders_from_before_the_settings_continue_and_others_do_not(dry, wet, tmp_path):
    for tracks, name in ((dry, "dry"), (wet, "wet")):
        shutil.copytree(tracks[0].parents[1], tmp_path / name)
    record = json.loads((tmp_path / "dry/synthetic.json").read_text())
    assert not {"production", "level"} & set(record)
    before = contents(tmp_path)
    make_synthetic(tmp_path / "dry", tracks=4, **SMALL)
    make_synthetic(tmp_path / "wet", tracks=4, production=tuple(EFFECTS), **SMALL)
    assert contents(tmp_path) == before
    for name, options, words in (
        ("dry", {"production": ["eq"]}, "another production"),
        ("dry", {"level": "loudness"}, "another level"),
        ("wet", {}, "another production"),
        ("wet", {"production": ["eq"]}, "another production"),
    ):
        with pytest.raises(ValueError, match=words):
            make_synthetic(tmp_path / name, tracks=4, **SMALL, **options)
    assert contents(tmp_path) == before


# From MIDI files

BEAT = [(36, t / 2, t / 2 + 0.1) for t in range(12)]
LINE = [(40, 2 + t / 2, 2.4 + t / 2) for t in range(8)]
TUNE = [(72, t, t + 0.9) for t in range(6)]


def test_midi_songs_become_stems(tmp_path):
    source = tmp_path / "midi"
    write_midi(source / "full.mid", (33, False, LINE), (0, True, BEAT), (16, True, BEAT))
    write_midi(source / "sub/NO_DRUMS.MID", (38, False, LINE), (80, False, TUNE))
    write_midi(source / "empty.mid", (0, False, []))
    (source / "damaged.mid").write_bytes(b"MThd\0\0\0\6\0\1")
    made, skipped = make_synthetic(tmp_path / "out", midi_dir=source, sample_rate=RATE)
    assert {Path(name).name: reason for name, reason in skipped.items()} == {
        "empty.mid": "it has no notes",
        "damaged.mid": next(r for n, r in skipped.items() if "damaged" in n),
    }
    assert any("cannot be read as MIDI" in reason for reason in skipped.values())
    classes = {}
    for track in made:
        metadata = yaml.safe_load((track / "metadata.yaml").read_text())
        stems = metadata["stems"].values()
        classes[metadata["lmd_midi_dir"]] = [stem["inst_class"] for stem in stems]
        mix, _ = soundfile.read(track / "mix.flac", dtype="int16")
        assert len(mix) == pytest.approx(RATE * 7, rel=0.1)  # one second more than the song
    assert classes == {"full.mid": ["Bass", "Drums"], "NO_DRUMS.MID": ["Bass", "Synth Lead"]}
    again, _ = make_synthetic(tmp_path / "out", midi_dir=source, sample_rate=RATE)
    assert again == made
    made, skipped = make_synthetic(
        tmp_path / "drums", midi_dir=source, sample_rate=RATE, parts=["drums"]
    )
    assert len(made) == 1 and "it has no notes of drums" in skipped.values()
    stems = yaml.safe_load((made[0] / "metadata.yaml").read_text())["stems"]
    assert [stem["inst_class"] for stem in stems.values()] == ["Drums"]


def test_a_stem_without_sound_is_flagged_as_in_slakh(tmp_path):
    midi = pretty_midi.PrettyMIDI()
    for program, volume in ((33, 100), (0, 0)):
        instrument = pretty_midi.Instrument(program)
        instrument.notes = [pretty_midi.Note(100, 40, 0.0, 1.0)]
        instrument.control_changes = [pretty_midi.ControlChange(7, volume, 0.0)]
        midi.instruments.append(instrument)
    (tmp_path / "midi").mkdir()
    midi.write(str(tmp_path / "midi/a.mid"))
    made, _ = make_synthetic(tmp_path / "out", midi_dir=tmp_path / "midi", sample_rate=RATE)
    stems = yaml.safe_load((made[0] / "metadata.yaml").read_text())["stems"]
    assert [stem["audio_rendered"] for stem in stems.values()] == [True, False]
    assert [path.name for path in (made[0] / "stems").iterdir()] == ["S00.flac"]
    assert "integrated_loudness" not in stems["S01"]


def test_a_cut_starts_where_bass_and_drums_play(tmp_path):
    write_midi(tmp_path / "a.mid", (33, False, LINE), (0, True, BEAT), (48, False, [(60, 0, 9)]))
    midi = pretty_midi.PrettyMIDI(str(tmp_path / "a.mid"))
    pad = next(i for i in midi.instruments if i.program == 48)
    pad.control_changes = [pretty_midi.ControlChange(7, value, value / 50) for value in (20, 80)]
    piece = cut(midi, 1.5)
    starts = {i.program: [n.start for n in i.notes] for i in piece.instruments}
    assert starts[33] == pytest.approx([0.0, 0.5, 1.0], abs=1e-3)
    assert starts[0] == pytest.approx([0.0, 0.5, 1.0], abs=1e-3)
    (held,) = next(i for i in piece.instruments if i.program == 48).notes
    assert (held.start, held.end) == (0.0, 1.5)
    changes = next(i for i in piece.instruments if i.program == 48).control_changes
    assert [(c.value, c.time) for c in changes] == [(20, 0.0), (80, 0.0)]


def test_reprogramming_uses_sounds_that_composing_does_not():
    midi = compose(4, 10)
    changed = reorchestrate(midi, np.random.default_rng(0))
    assert part(changed, "bass").program in {35, 37, 39}
    assert part(changed, "drums").program in {24, 32}
    assert not {35, 37, 39} & set(BASS_PROGRAMS) and not {24, 32} & set(DRUM_KITS)
    piano = part(changed, "piano").program
    assert piano != part(midi, "piano").program and inst_class(piano, False) == "Piano"
    for a, b in zip(midi.instruments, changed.instruments, strict=True):
        assert [vars(note) for note in a.notes] == [vars(note) for note in b.notes]


def test_no_usable_midi_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        make_synthetic(tmp_path / "x", midi_dir=tmp_path / "midi")
    (tmp_path / "midi").mkdir()
    with pytest.raises(ValueError, match=r"has no \.mid files"):
        make_synthetic(tmp_path / "x", midi_dir=tmp_path / "midi")
    (tmp_path / "midi/a.mid").write_text("no")
    with pytest.raises(ValueError, match="none of the 1 songs could be written.*as MIDI"):
        make_synthetic(tmp_path / "x", midi_dir=tmp_path / "midi")
    assert not (tmp_path / "x").exists()


# The program


def test_program(tmp_path, capsys):
    flags = ["--output", str(tmp_path / "d"), "--tracks", "2", "--seconds", "2"]
    flags += ["--sample-rate", str(RATE), "--parts", "bass", "drums"]
    assert main(flags) == 0
    captured = capsys.readouterr()
    assert captured.out == f"2 tracks (1 train, 1 test) in {tmp_path / 'd'}, 0 songs skipped\n"
    assert captured.err == ""  # no progress bar outside a terminal
    assert json.loads((tmp_path / "d/synthetic.json").read_text())["seconds"] == 2.0
    assert main([*flags, "--seed", "1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "another seed" in line


def test_a_share_of_the_songs_are_midi_files_and_the_others_as_without_them(tmp_path):
    corpus = tmp_path / "midi"
    for number in range(6):
        played = [(36 + number, 0.0, 0.5), (40, 0.5, 1.0)]
        write_midi(corpus / f"{number}.mid", (33, False, played), (0, True, [(36, 0.0, 0.1)]))
    options = {"midi_dir": corpus, "midi_share": 0.5, **SMALL}
    tracks, _ = make_synthetic(tmp_path / "a", tracks=8, **options)
    composed, _ = make_synthetic(tmp_path / "b", tracks=8, **SMALL)
    origins = [yaml.safe_load((t / "metadata.yaml").read_text())["generator"] for t in tracks]
    names = [generator["origin"] for generator in origins if generator["origin"] != "composed"]
    assert 1 < len(names) < 7 and len(set(names)) == len(names)
    for track, other, generator in zip(tracks, composed, origins, strict=True):
        assert track.relative_to(tmp_path / "a") == other.relative_to(tmp_path / "b")
        assert (contents(track) == contents(other)) == (generator["origin"] == "composed")
    before = contents(tmp_path / "a")
    make_synthetic(tmp_path / "a", tracks=9, **options)
    assert before.items() <= contents(tmp_path / "a").items()
    with pytest.raises(ValueError, match="but there are 6: lower the share"):
        make_synthetic(tmp_path / "c", tracks=60, **options)
    with pytest.raises(ValueError, match="midi_share is 0.5, but there is no folder of MIDI files"):
        make_synthetic(tmp_path / "c", midi_share=0.5, **SMALL)
    with pytest.raises(ValueError, match="^parts are"):
        make_synthetic(tmp_path / "c", **options | {"parts": ("organ", "bass")})
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match="midi_share is 2"):
        make_synthetic(tmp_path / "c", midi_dir=corpus, midi_share=2, **SMALL)
