"""Drum kits in Hydrogen's format: what a note plays, to the bit, and which kits are refused."""

import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile
from drumkits import (
    RATE,
    archive,
    description,
    instrument,
    layer,
    noise,
    write_basic_kit,
    write_kit,
)

from data.drumkit import Drumkit, notes_of
from data.hydrogen import Instrument, Kit, find_kits

KITS = Path("/usr/share/hydrogen/data/drumkits")


def play(kit, *notes, samples=RATE, rate=RATE):
    """Audio of (pitch, velocity, start in samples) each."""
    drums = pretty_midi.Instrument(0, is_drum=True)
    drums.notes = [
        pretty_midi.Note(velocity, pitch, start / rate, start / rate + 0.05)
        for pitch, velocity, start in notes
    ]
    return Drumkit(kit, rate)([drums], samples)


def at(start, wave, samples=RATE):
    """A wave at its place in silence."""
    audio = np.zeros(samples, dtype=np.float32)
    piece = wave[: samples - start]
    audio[start : start + len(piece)] = piece
    return audio


def drum(name, note=60):
    return Instrument(name, note, None, True, ())


# Playing


def test_a_note_is_the_sample_times_the_gains_at_its_place(tmp_path):
    wave = noise(1)
    kick = instrument(
        "Kick", layer("k.wav", gain=0.5), midiOutNote=36, gain=1.5, volume=0.8, muteGroup=-1
    )
    kit = write_kit(tmp_path / "kit", kick, samples={"k.wav": wave})
    audio = play(kit, (36, 100, 1234))
    assert audio.dtype == np.float32
    gain = np.float32(100 / 127 * (1.5 * 0.8 * 1.0 * 1.0 * 0.5))
    assert np.array_equal(audio, at(1234, wave * gain))
    late = RATE - 100  # it is cut at the end
    assert np.array_equal(play(kit, (36, 100, late)), at(late, wave * gain))
    both = play(kit, (36, 100, 0), (36, 50, 300))
    assert np.array_equal(both, at(0, wave * gain) + play(kit, (36, 50, 300)))


def test_velocity_may_leave_the_level(tmp_path):
    wave = noise(2)
    kick = instrument("Kick", layer("k.wav"), applyVelocity="false")
    kit = write_kit(tmp_path / "kit", kick, samples={"k.wav": wave})
    assert np.array_equal(play(kit, (36, 10, 0)), at(0, wave))


def test_the_velocity_chooses_the_layer(tmp_path):
    waves = {f"{index}.wav": noise(index) for index in range(3)}
    layers = [layer("0.wav", 0, 0.3), layer("1.wav", 0.3, 0.6), layer("2.wav", 0.7, 1)]
    kit = write_kit(tmp_path / "kit", instrument("Snare", *layers, midiOutNote=38), samples=waves)
    # 0.6 to 0.7 is a gap: the nearest layer plays
    expected = {1: 0, 38: 0, 39: 1, 76: 1, 80: 1, 86: 2, 127: 2}
    for velocity, index in expected.items():
        wave = waves[f"{index}.wav"] * np.float32(velocity / 127)
        assert np.array_equal(play(kit, (38, velocity, 0)), at(0, wave)), velocity


def test_components_sound_together(tmp_path):
    waves = {"near.wav": noise(1), "room.wav": noise(2)}
    text = description(
        "<instrument><name>Snare</name><midiOutNote>38</midiOutNote>"
        "<instrumentComponent><component_id>0</component_id><gain>1</gain>"
        f"{layer('near.wav')}</instrumentComponent>"
        "<instrumentComponent><component_id>1</component_id><gain>0.5</gain>"
        f"{layer('room.wav')}</instrumentComponent></instrument>"
    )
    kit = write_kit(tmp_path / "kit", samples=waves)
    volume = "<drumkitComponent><id>1</id><name>Room</name><volume>0.25</volume></drumkitComponent>"
    text = text.replace(
        "<instrumentList>", f"<componentList>{volume}</componentList><instrumentList>"
    )
    (kit / "drumkit.xml").write_text(text)
    room = waves["room.wav"] * np.float32(0.125)
    assert np.array_equal(play(kit, (38, 127, 0)), at(0, waves["near.wav"]) + at(0, room))


def test_old_kits_have_layers_or_a_file_in_the_instrument(tmp_path):
    samples = {"a.wav": noise(1), "b.wav": noise(2)}
    layered = instrument("Kick", layer("a.wav", gain=0.5), component=False)
    single = "<instrument><name>Snare</name><gain>0.5</gain><filename>b.wav</filename></instrument>"
    kit = write_kit(tmp_path / "kit", layered, single, samples=samples)
    assert np.array_equal(play(kit, (36, 127, 0)), at(0, samples["a.wav"] * np.float32(0.5)))
    assert np.array_equal(play(kit, (38, 127, 0)), at(0, samples["b.wav"] * np.float32(0.5)))


def test_a_group_ends_the_others_sounds(tmp_path):
    samples = {f"{name}.wav": noise(index) for index, name in enumerate("abc")}
    kit = write_kit(
        tmp_path / "kit",
        instrument("Kick", layer("a.wav"), muteGroup=3, midiOutNote=36),
        instrument("Snare", layer("b.wav"), muteGroup=3, midiOutNote=38),
        instrument("Crash", layer("c.wav"), muteGroup=-1, midiOutNote=49),
        samples=samples,
    )
    fade = round(0.01 * RATE)
    ended = samples["a.wav"].copy()
    ended[2000 : 2000 + fade] *= (1 - np.arange(fade) / fade).astype(np.float32)
    ended[2000 + fade :] = 0
    audio = play(kit, (36, 127, 500), (38, 127, 2500))
    assert np.allclose(audio, at(500, ended) + at(2500, samples["b.wav"]), rtol=0, atol=1e-6)
    # the same drum rings on under its next note, and so does a drum without a group
    again = play(kit, (36, 127, 500), (36, 127, 2500))
    assert np.array_equal(again, at(500, samples["a.wav"]) + at(2500, samples["a.wav"]))
    crash = play(kit, (49, 127, 500), (36, 127, 2500))
    assert np.array_equal(crash, at(500, samples["c.wav"]) + at(2500, samples["a.wav"]))
    # a sound that is over by then is whole
    long = play(kit, (36, 127, 0), (38, 127, RATE - 2000))
    assert np.array_equal(long, at(0, samples["a.wav"]) + at(RATE - 2000, samples["b.wav"]))


def test_hi_hats_without_a_group_are_one(tmp_path):
    kit = write_basic_kit(tmp_path / "kit")
    closed = play(kit, (46, 127, 0), (42, 127, 2000))
    fade = round(0.01 * RATE)
    assert np.array_equal(closed[:2000], play(kit, (46, 127, 0))[:2000])
    assert np.array_equal(closed[2000 + fade :], play(kit, (42, 127, 2000))[2000 + fade :])
    kicked = play(kit, (46, 127, 0), (36, 127, 2000))
    assert np.array_equal(kicked, play(kit, (46, 127, 0)) + play(kit, (36, 127, 2000)))


@pytest.mark.parametrize(("rate", "pitch"), [(44_100, 0), (RATE, 12), (44_100, -12), (8000, 5)])
def test_samples_are_resampled_and_pitched(tmp_path, rate, pitch):
    """A sine keeps its frequency, or moves by `pitch` semitones and lasts accordingly."""
    time = np.arange(rate) / rate
    sine = (0.5 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
    tom = instrument("Tom", layer("t.wav", pitch=pitch))
    kit = write_kit(tmp_path / "kit", tom, samples={"t.wav": sine}, rate=rate)
    audio = play(kit, (45, 127, 0), samples=3 * RATE)
    factor = 2 ** (pitch / 12)
    length = round(RATE / factor)
    assert np.abs(audio[length + 10 :]).max(initial=0) == 0
    inner = slice(length // 4, length // 2)  # away from the ends
    expected = 0.5 * np.sin(2 * np.pi * 200 * factor * np.arange(length) / RATE)
    assert np.allclose(audio[inner], expected[inner], atol=1e-3)


def test_channels_are_averaged(tmp_path):
    wave = np.stack([noise(1), noise(2)], axis=1)
    kit = write_kit(tmp_path / "kit", instrument("Kick", layer("k.wav")), samples={"k.wav": wave})
    assert np.array_equal(play(kit, (36, 127, 0)), at(0, wave.mean(axis=1)))


# Notes


def test_without_notes_of_its_own_a_kit_begins_at_36(tmp_path):
    samples = {f"{index}.wav": noise(index) for index in range(3)}
    for notes in ({}, {"midiOutNote": 60}):  # old versions write 60 everywhere
        listed = [instrument(f"Sound {i}", layer(f"{i}.wav"), **notes) for i in range(3)]
        kit = write_kit(tmp_path / "kit", *listed, samples=samples)
        for index in range(3):
            wave = samples[f"{index}.wav"]
            assert np.array_equal(play(kit, (36 + index, 127, 0)), at(0, wave))
        assert not play(kit, (60, 127, 0)).any()


def test_names_correct_the_notes():
    """The order of Hydrogen's GMkit: its cymbals are at the notes of General MIDI's toms."""
    names = ["Kick", "Stick", "Snare Jazz", "Hand Clap", "Snare Rock", "Tom Low", "Closed HH"]
    names += ["Tom Mid", "Pedal HH", "Tom Hi", "Open HH", "Cowbell", "Ride Jazz", "Crash"]
    names += ["Ride Rock", "Crash Jazz"]
    by_note = notes_of([drum(name, 36 + index) for index, name in enumerate(names)])
    played = {note: instrument.name for note, instrument in by_note.items()}
    expected = {35: "Kick", 36: "Kick", 37: "Stick", 38: "Snare Jazz", 39: "Hand Clap"}
    expected |= {40: "Snare Rock", 41: "Tom Low", 42: "Closed HH", 43: "Tom Low", 44: "Pedal HH"}
    expected |= {45: "Tom Mid", 46: "Open HH", 47: "Tom Mid", 48: "Tom Hi", 49: "Crash"}
    expected |= {50: "Tom Hi", 51: "Ride Jazz", 52: "Crash", 53: "Ride Jazz", 55: "Crash"}
    expected |= {56: "Cowbell", 57: "Crash Jazz", 59: "Ride Rock"}
    assert {note: played[note] for note in expected if played[note] != expected[note]} == {}
    assert 54 not in played and 70 not in played  # nothing replaces a tambourine


def test_a_missing_drum_is_replaced_by_its_kind_or_silence(tmp_path):
    kit = write_basic_kit(tmp_path / "kit")
    same = {35: 36, 40: 38, 37: 38, 39: 38, 44: 42}
    for note, other in same.items():
        assert np.array_equal(play(kit, (note, 99, 7)), play(kit, (other, 99, 7))), note
    for note in (41, 49, 51, 54, 60, 127):  # no toms, no cymbals, no percussion
        assert not play(kit, (note, 99, 7)).any()


def test_names_of_many_spellings():
    names = {
        "Bass Drum 1": 36, "BD_Hard": 36, "kick-02": 36, "SD 1": 38, "snare_rimshot": 38,
        "Rimshot": 37, "Side Stick": 37, "HH closed": 42, "Hihat": 42, "Hi-Hat": 42, "Open Hat": 46,
        "HH Pedal": 44, "Foot hat": 44, "OH": 46, "Lo Tom": 41, "Floor Tom": 41, "High Tom": 50,
        "Tom 1": 45, "Ride Bell": 53, "Ride": 51, "Splash": 55, "Chinese": 52, "Crash 1": 49,
        "Hand Clap": 39, "Tambourine": 54, "Shaker": 70, "Cowbell": 56,
    }  # fmt: skip
    for name, note in names.items():
        placed = notes_of([drum(name, 1)])
        assert note in placed and 1 not in placed, name
        if note not in (36, 38, 42, 45, 46, 49, 51):  # the others are of a family or alone
            assert notes_of([drum(name, 1), drum("Kick", 36)])[note].name == name


def test_unknown_names_are_no_drums_of_a_kit_with_known_ones():
    listed = [drum("Kick", 36), drum("Snare", 38), drum("Zap", 49), drum("Dogbark", 75)]
    listed += [drum("Snare Roll", 40), drum("Hat Semi-Open", 46), drum("Hat Op", 47)]
    played = {note: instrument.name for note, instrument in notes_of(listed).items()}
    assert played[75] == "Dogbark" and "Zap" not in played.values()
    assert played[40] == "Snare" and played[46] == played[42] == "Hat Op"


# Files


def test_layers_without_their_file_are_left_out(tmp_path):
    layers = [layer("none.wav", 0, 0.5), layer("s.wav", 0.5, 1)]
    listed = [instrument("Snare", *layers), instrument("Kick", layer("none.wav"))]
    kit = write_kit(tmp_path / "kit", *listed, samples={"s.wav": noise(1)})
    quiet = noise(1) * np.float32(10 / 127)
    assert np.array_equal(play(kit, (38, 10, 0)), at(0, quiet))
    assert not play(kit, (36, 100, 0)).any()
    assert len(Drumkit(kit).digest) == 64


def test_an_archive_plays_as_its_folder(tmp_path):
    kit = write_basic_kit(tmp_path / "my kit")
    notes = [(36, 100, 0), (46, 80, 900), (42, 90, 4000)]
    for mode in ("w", "w:gz", "w:bz2"):
        packed = archive(kit, tmp_path / "a.h2drumkit", mode)
        assert np.array_equal(play(packed, *notes), play(kit, *notes))
        assert Drumkit(packed).digest == Drumkit(kit).digest
    assert find_kits(tmp_path) == [tmp_path / "a.h2drumkit", kit]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h2drumkit", "my kit"]


def test_the_digest_is_of_the_description_and_the_samples(tmp_path):
    first, same, other = (
        Drumkit(write_basic_kit(tmp_path / name, seed)).digest
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == same != other
    kit = write_basic_kit(tmp_path / "a")
    text = (kit / "drumkit.xml").read_text()
    (kit / "drumkit.xml").write_text(text.replace("<min>0.0", "<min>0.1"))
    assert Drumkit(kit).digest != first


def refused(path, words):
    with pytest.raises(ValueError, match=words) as error:
        _ = Drumkit(path).digest
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/passwd", "a/../../secret.wav", "link.wav"])
def test_files_outside_the_kit_are_refused(tmp_path, name):
    soundfile.write(tmp_path / "secret.wav", noise(0), RATE)
    kit = write_kit(tmp_path / "kit", instrument("Kick", layer(name)))
    (kit / "a").mkdir()
    (kit / "link.wav").symlink_to("../secret.wav")
    refused(kit, "lies outside the kit")
    packed = archive(kit, tmp_path / "a.h2drumkit")
    inside = "no instruments with samples"  # a link in an archive is no file
    refused(packed, inside if name == "link.wav" else "lies outside the kit")


def test_names_in_an_archive_do_not_escape(tmp_path):
    """Nothing is extracted: a member's path is only a name."""
    text = description(instrument("Kick", layer("k.wav"))).encode()
    with tarfile.open(tmp_path / "a.h2drumkit", "w") as file:
        for name, content in (("kit/drumkit.xml", text), ("../../k.wav", b"RIFF")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    refused(tmp_path / "a.h2drumkit", "no instruments with samples")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h2drumkit"]


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE drumkit_info SYSTEM "file:///etc/passwd">',
        '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    ],
)
def test_a_document_type_is_refused(tmp_path, head):
    kit = write_kit(tmp_path / "kit", instrument("Kick", layer("k.wav")), head=head)
    refused(kit, "DOCTYPE")
    text = (kit / "drumkit.xml").read_text().replace("UTF-8", "UTF-16")
    (kit / "drumkit.xml").write_text(text, encoding="utf-16")
    refused(kit, "DOCTYPE")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not XML"),
        ("no xml", "is not XML"),
        ("<drumkit_info>", "is not XML"),
        ("<drumkit_info/>", "has no instruments"),
        ("<song><instrumentList><instrument/></instrumentList></song>", "has no instruments"),
        (description(instrument("Kick")), "no instruments with samples"),
        (
            description(instrument("Kick", layer("k.wav"), isMuted="true")),
            "no instruments with sam",
        ),
        (description(instrument("Kick", layer("none.wav"))), "no instruments with samples"),
        (description(instrument("Kick", layer("drumkit.xml"))), "is not audio"),
        (description(instrument("Kick", layer("k.wav", "loud"))), "min 'loud', expected a number"),
        (description(instrument("Kick", layer("k.wav", gain="nan"))), "gain in drumkit.xml is nan"),
        (description(instrument("Kick", layer("k.wav", pitch=99))), "pitch in drumkit.xml is 99"),
        (description(instrument("Kick", layer("k.wav"), volume=-1)), "volume in drumkit.xml is -1"),
        (description(instrument("Kick", layer("k.wav"), muteGroup="inf")), "muteGroup"),
        (description(instrument("Kick", layer("nan.wav"))), "NaN or infinite"),
    ],
)
def test_broken_kits_are_refused(tmp_path, text, words):
    kit = write_kit(tmp_path / "kit", samples={"k.wav": noise(1)})
    soundfile.write(kit / "nan.wav", np.full(100, np.nan), RATE, subtype="FLOAT")
    (kit / "drumkit.xml").write_text(text)
    refused(kit, re.escape(words))
    refused(archive(kit, tmp_path / "a.h2drumkit"), re.escape(words))


def test_broken_archives_are_refused(tmp_path):
    packed = archive(write_basic_kit(tmp_path / "kit"), tmp_path / "a.h2drumkit")
    content = packed.read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2], content[:100]):
        packed.write_bytes(damaged)
        refused(packed, "is not a whole tar archive|has no file")
    (tmp_path / "kit/drumkit.xml").unlink()
    refused(archive(tmp_path / "kit", packed), "has no file 'drumkit.xml'")
    with pytest.raises(FileNotFoundError, match="there is no drum kit"):
        Kit(tmp_path / "none")


# Kits of Debian's package hydrogen-drumkits


@pytest.mark.skipif(not KITS.is_dir(), reason=f"hydrogen-drumkits is not installed in {KITS}")
def test_debians_kits_play():
    for path in find_kits(KITS):
        kit = Drumkit(path, RATE)
        assert len(kit.digest) == 64
        for note in (36, 38, 42):
            drums = pretty_midi.Instrument(0, is_drum=True)
            drums.notes = [pretty_midi.Note(100, note, 0.0, 0.1)]
            audio = kit([drums], RATE)
            assert np.isfinite(audio).all() and 0.001 < np.abs(audio).max() < 10, (path, note)
