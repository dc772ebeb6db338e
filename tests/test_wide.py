"""The wide style of composed songs; and the plain style, which is as it was."""

import hashlib
from collections import Counter

import numpy as np
import pretty_midi
import pytest
import yaml
from test_synthetic import notes, part

from data import wide
from data.composer import PARTS, compose
from data.midi import tidy
from data.synthetic import make_synthetic

SECONDS = 40.0
PLAIN = "8f3ea0a19ec89ae50de01603471e90bbb31ffb14560140ba188ff7f1215dee8f"
"""Digest of the notes of ten songs, made before there was another style."""


@pytest.fixture(scope="module")
def songs():
    """A hundred songs of bass and drums."""
    parts = ["bass", "drums"]
    return [compose([7, n], SECONDS, parts=parts, style="wide") for n in range(100)]


def tempo_of(song):
    return float(song.get_tempo_changes()[1][0])


def starts(song, name, *pitches):
    played = part(song, name).notes
    return np.array([note.start for note in played if not pitches or note.pitch in pitches])


def test_the_plain_style_is_as_it_was():
    digest = hashlib.sha256()
    for seed in range(10):
        for name, program, pitch, velocity, start, end in notes(compose([seed, 1], 30.0)):
            line = f"{name} {program} {pitch} {velocity} {start:.4f} {end:.4f}\n"
            digest.update(line.encode())
    assert digest.hexdigest() == PLAIN
    assert not any(i.pitch_bends for i in compose([0, 1], 30.0).instruments)


def test_patterns_fill_their_bars():
    for (beats, unit), grooves in wide._GROOVES.items():
        for groove in grooves:
            words = groove.split()
            assert set(words[::2]) <= {*wide._VOICES, *wide._KIT} and len(words) % 2 == 0
            assert {len(word) for word in words[1::2]} == {beats * 16 // unit}, groove
            assert set("".join(words[1::2])) <= set("Xxo."), groove
    for (beats, unit), lines in wide._LINES.items():
        assert {len(line) for line in lines} == {beats * 16 // unit}, lines
        assert set("".join(lines)) <= set("12345678hn/SPxg-.")
    assert set(wide._GROOVES) == set(wide._LINES) == set(wide._METRES)


@pytest.mark.parametrize("seed", range(12))
def test_songs_are_playable(seed):
    midi = compose(seed, 25, style="wide")
    names = [instrument.name for instrument in midi.instruments]
    assert names == [name for name in PARTS if name in names]
    for instrument in midi.instruments:
        assert all(0 <= note.start < note.end <= 25 for note in instrument.notes)
        low, high = {"bass": (24, 67), "drums": (35, 81)}.get(instrument.name, (40, 80))
        assert all(low <= note.pitch <= high for note in instrument.notes)
        for pitch in {note.pitch for note in instrument.notes}:
            spans = sorted((n.start, n.end) for n in instrument.notes if n.pitch == pitch)
            assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    bass = part(midi, "bass")
    spans = sorted((note.start, note.end) for note in bass.notes)  # one string sounds at a time
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    for bend in bass.pitch_bends:
        assert -8192 <= bend.pitch <= 8191 and 0 <= bend.time < 25


def test_the_same_seed_is_the_same_song_and_a_longer_one_begins_like_it():
    def begun(song, until):
        bends = [(b.pitch, b.time) for b in part(song, "bass").pitch_bends if b.time < until]
        return [note for note in notes(song) if note[5] < until], bends

    for seed in range(10):
        short, same, long = (compose(seed, s, style="wide") for s in (20, 20, 60))
        assert begun(short, 21) == begun(same, 21)
        assert begun(short, 18) == begun(long, 18)
    assert notes(compose(0, 20, style="wide")) != notes(compose(1, 20, style="wide"))


def test_every_tempo_and_metre(songs):
    tempos = [tempo_of(song) for song in songs]
    assert 60 <= min(tempos) < 70 and 180 < max(tempos) <= 190
    metres = Counter(
        (s.time_signature_changes[0].numerator, s.time_signature_changes[0].denominator)
        for s in songs
    )
    assert set(metres) == {(4, 4), (3, 4), (6, 8), (5, 4), (7, 8)}
    assert metres[4, 4] > 50


def test_articulations_of_the_bass(songs):
    found = Counter()
    for song in songs:
        bass, step = part(song, "bass"), 15 / tempo_of(song)
        played = bass.notes
        pairs = list(zip(played, played[1:], strict=False))
        shares = [(a.end - a.start) / (b.start - a.start) for a, b in pairs]
        found["slide"] += bool(bass.pitch_bends)
        found["dead"] += any(n.velocity < 50 and n.end - n.start < 0.5 * step for n in played)
        found["ghost"] += sum(n.velocity < 50 for n in played) > 5
        found["slap"] += sum(n.velocity > 112 for n in played) > 20
        found["octave jump"] += sum(abs(a.pitch - b.pitch) == 12 for a, b in pairs) > 3
        found["high register"] += np.median([n.pitch for n in played]) > 45
        found["staccato"] += np.median(shares) < 0.5
        found["legato"] += sum(a.end == b.start for a, b in pairs) > len(pairs) / 2
        found["rest"] += max(b.start - a.end for a, b in pairs) > 24 * step
    assert all(count >= 5 for count in found.values()), found
    assert len(found) == 9


def test_playing_of_the_drums(songs):
    found = Counter()
    for song in songs:
        played, step = part(song, "drums").notes, 15 / tempo_of(song)
        pitches = Counter(note.pitch for note in played)
        hats = sum(pitches[pitch] for pitch in (42, 44, 46))
        snares = np.array([(n.start, n.velocity) for n in played if n.pitch in (38, 40)])
        found["ride"] += pitches[51] > hats
        found["cross-stick"] += pitches[37] > 20
        found["toms"] += sum(pitches[pitch] for pitch in (43, 45, 48)) > hats
        found["soft"] += np.percentile([n.velocity for n in played], 90) < 60
        found["ghost"] += len(snares) > 0 and np.mean(snares[:, 1] < 50) > 0.5
        gaps = np.diff(snares[:, 0]) if len(snares) else np.array([])
        found["flam"] += np.sum((gaps > 0.02) & (gaps < 0.04)) > 3
        off = (starts(song, "drums", 42, 51) / step) % 4  # sixteenths within a beat
        late = (off > 2.3) & (off < 2.8)
        found["swing"] += np.sum(late) > 0.2 * len(off)
    assert all(count >= 5 for count in found.values()), found
    assert len(found) == 7


def test_one_source_rests_while_the_other_plays(songs):
    found = Counter()
    for song in songs:
        bar = 60 / tempo_of(song) * 4
        for name, other in (("bass", "drums"), ("drums", "bass")):
            onsets, others = starts(song, name), starts(song, other)
            for a, b in zip(onsets, onsets[1:], strict=False):
                if b - a > 1.5 * bar and np.sum((others > a + 0.2) & (others < b - 0.2)) > 2:
                    found[name] += 1
    assert min(found["bass"], found["drums"]) > 10, found


def test_sections_differ_in_dynamics(songs):
    spreads = []
    for song in songs:
        played = part(song, "drums").notes
        means = [
            np.mean([n.velocity for n in played if begin <= n.start < begin + 8] or [np.nan])
            for begin in range(0, int(SECONDS), 8)
        ]
        spreads.append(np.nanmax(means) / np.nanmin(means))
    assert np.median(spreads) > 1.15


def test_a_stretched_pattern_takes_two_bars_and_a_doubled_one_half():
    pattern = "X.......x.x....."
    assert wide._in_feel(pattern, "half", 0) + wide._in_feel(pattern, "half", 1) == "".join(
        f"{stroke}." for stroke in pattern
    )
    assert wide._in_feel(pattern, "double", 0) == "X...xx.." * 2
    assert wide._in_feel(pattern, "plain", 1) == pattern


def test_slides_end_on_the_pitch():
    note = pretty_midi.Note(90, 40, 1.0, 2.0)
    bends = wide.glides([(note, -2.0), (pretty_midi.Note(90, 45, 2.0, 3.0), 0.0)])
    assert (bends[0].pitch, bends[0].time) == (-8192, 1.0)
    assert bends[-1].pitch == 0 and 1.0 < bends[-1].time < 1.2
    semitones = [bend.pitch / 4096 for bend in bends]
    assert semitones == sorted(semitones)


def test_tidy_ends_a_note_where_its_pitch_begins_again():
    played = [(60, 0.0, 2.0), (62, 0.5, 1.5), (60, 1.0, 3.0), (60, 1.01, 2.0)]
    each = [pretty_midi.Note(90 + i, *note) for i, note in enumerate(played)]
    got = [(n.pitch, n.start, n.end, n.velocity) for n in tidy(each, apart=0.02)]
    assert got == [(60, 0.0, 1.0, 90), (62, 0.5, 1.5, 91), (60, 1.01, 2.0, 93)]
    alone = tidy([pretty_midi.Note(90, *note) for note in played[:3]], alone=True)
    assert [(n.start, n.end) for n in alone] == [(0.0, 0.5), (0.5, 1.0), (1.0, 3.0)]


def test_wide_songs_are_rendered(tmp_path):
    options = {"seconds": 3.0, "sample_rate": 8000, "parts": ("bass", "drums")}
    (track,), _ = make_synthetic(tmp_path, tracks=1, style="wide", **options)
    whole = pretty_midi.PrettyMIDI(str(track / "all_src.mid"))
    song = compose([0, 0], 3.0, parts=options["parts"], style="wide")
    assert whole.get_tempo_changes()[1] == pytest.approx([tempo_of(song)], rel=1e-4)
    assert [len(i.notes) for i in whole.instruments] == [len(i.notes) for i in song.instruments]
    assert yaml.safe_load((track / "metadata.yaml").read_text())["generator"]["song"] == 0
    with pytest.raises(ValueError, match="another style"):
        make_synthetic(tmp_path, tracks=1, **options)
    with pytest.raises(ValueError, match="style is 'x', expected plain or wide"):
        make_synthetic(tmp_path, tracks=1, style="x", **options)
