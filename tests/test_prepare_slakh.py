"""Slakh2100 to aligned sources: exact sums, what is skipped, splits, resuming."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile
import torch
import yaml

from data import slakh
from data.render import Renderer
from data.slakh import prepare, quantise_sources
from data.synthetic import make_synthetic
from jukebox_core import audio
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.files import sha256
from scripts.prepare_slakh import main

RATE = 8000
SHARED = Path(os.environ.get("LATENT_SEPARATION_SHARED", Path(__file__).parents[2] / "shared"))
FAST = {"sample_rate": RATE, "workers": 2}


def verify_checksums(manifest):
    for track in manifest.tracks:
        for name, file in {"mixture": track.mixture, **track.sources}.items():
            assert sha256(file) == track.checksums[name]


def noise(seed, samples=4000, level=0.2):
    return level * np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)


def entry(inst_class, **values):
    drums = inst_class == "Drums"
    return {"inst_class": inst_class, "is_drum": drums, "audio_rendered": True, **values}


def write_track(folder, *classes, samples=4000, seed=0, rate=RATE, **waves):
    """A track with one stem of noise per class; S00 and so on, or the wave given for it."""
    (folder / "stems").mkdir(parents=True)
    stems = {}
    for index, what in enumerate(classes):
        name = f"S{index:02d}"
        stems[name] = what if isinstance(what, dict) else entry(what)
        wave = waves.get(name, noise(100 * seed + index, samples))
        soundfile.write(folder / f"stems/{name}.flac", wave, rate, subtype="PCM_24")
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"stems": stems}))
    return folder


@pytest.fixture
def dataset(tmp_path):
    """Seven tracks: four to train, one to validate, two to test."""
    numbers = {"train": (1, 2, 3, 4), "validation": (5,), "test": (6, 7)}
    for split, names in numbers.items():
        for number in names:
            folder = tmp_path / "slakh" / split / f"Track{number:05d}"
            write_track(folder, "Bass", "Drums", "Piano", seed=number)
    return tmp_path / "slakh"


def load_track(track):
    return {
        name: audio.load(path)[0][0]
        for name, path in {"mixture": track.mixture, **track.sources}.items()
    }


def splits(manifest):
    return {track.name[-1]: track.split for track in manifest.tracks}


def tree(folder):
    return {
        str(path.relative_to(folder)): (sha256(path), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# The exact sum


@pytest.mark.parametrize("sources", [("bass", "drums"), ("bass", "drums", "piano")])
def test_the_mixture_is_the_weighted_sum_to_the_last_bit(dataset, tmp_path, sources):
    manifest, skipped = prepare(dataset, tmp_path / "out", sources=sources, **FAST)
    assert skipped == {} and len(manifest.tracks) == 7
    assert manifest.sources == sources
    assert manifest.alpha == dict.fromkeys(sources, 1 / len(sources))
    for track in manifest.tracks:
        files = load_track(track)
        total = torch.zeros(track.samples)
        for name in sources:
            assert files[name].dtype == torch.float32 and files[name].abs().max() > 0.1
            total += manifest.alpha[name] * files[name]
        assert torch.equal(total, files["mixture"])
        for path in (track.mixture, *track.sources.values()):
            info = soundfile.info(path)
            assert (info.subtype, info.samplerate, info.channels) == ("PCM_24", RATE, 1)


@pytest.mark.parametrize("sources", [("bass", "drums", "other"), ("other", "bass"), ("other",)])
def test_other_is_the_sum_of_all_other_stems(tmp_path, sources):
    classes = ("Bass", "Piano", "Drums", entry("Organ", audio_rendered=False), "Guitar", "Piano")
    songs = tmp_path / "slakh"
    for number in (1, 2, 3):
        folder = write_track(songs / f"Track{number:05d}", *classes, seed=number)
        soundfile.write(folder / "stems/S05.flac", noise(7, 3000), RATE, subtype="PCM_24")
    manifest, _ = prepare(songs, tmp_path / "out", sources=sources, **FAST)
    rest = {"bass": ("S00",), "drums": ("S02",)}
    taken = {stem for name in sources for stem in rest.get(name, ())}
    rest["other"] = sorted({"S00", "S01", "S02", "S04", "S05"} - taken)
    for track in manifest.tracks:
        files = load_track(track)
        gain = 1 / max(1, max(files[name].abs().max() for name in sources))
        assert gain == 1
        for name in sources:
            expected = torch.zeros(track.samples, dtype=torch.float64)
            for stem in rest[name]:
                part = audio.load(songs / track.name / f"stems/{stem}.flac")[0][0]
                expected[: len(part)] += part
            torch.testing.assert_close(
                files[name].double(), expected, rtol=0, atol=len(sources) / 2**23
            )


def test_silent_sources_are_kept_if_two_others_sound(tmp_path):
    songs = tmp_path / "slakh"
    write_track(songs / "Track00001", "Bass", "Drums")
    write_track(songs / "Track00002", "Bass", "Drums", "Piano", S02=np.zeros(4000, np.float32))
    write_track(songs / "Track00003", "Bass", "Piano", S01=np.zeros(4000, np.float32))
    write_track(songs / "Track00004", "Piano", "Guitar")
    names = ("bass", "drums", "piano", "other")
    manifest, skipped = prepare(songs, tmp_path / "out", sources=names, keep_silent=True, **FAST)
    assert list(skipped) == ["Track00003"]
    assert "drums and piano and other are silent" in skipped["Track00003"]
    sounding = {"Track00001": names[:2], "Track00002": names[:2], "Track00004": names[2:]}
    for track in manifest.tracks:
        files = load_track(track)
        for name in names:
            assert (files[name].abs().max() > 0.1) == (name in sounding[track.name])
        assert torch.equal(sum(0.25 * files[name] for name in names), files["mixture"])
    with pytest.raises(ValueError, match="another keep_silent"):
        prepare(songs, tmp_path / "out", sources=names, **FAST)


def test_a_track_with_nothing_else_has_no_other(tmp_path):
    write_track(tmp_path / "slakh/Track00001", "Bass", "Drums", "Piano")
    write_track(tmp_path / "slakh/Track00002", "Bass", "Drums")
    _, skipped = prepare(
        tmp_path / "slakh", tmp_path / "out", sources=("bass", "drums", "other"), **FAST
    )
    assert skipped == {"Track00002": "it has no rendered stem of other (of bass, drums)"}


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_quantised_sources_are_close_and_never_clip(n):
    sources = np.random.default_rng(n).uniform(-1, 1, (n, 5000))
    whole, mean, gain = quantise_sources(sources)
    assert np.array_equal(whole.sum(0), n * mean) and np.array_equal(whole % n, 0 * whole)
    assert gain == pytest.approx(1, abs=1e-5) and np.abs(whole).max() < 2**23
    assert np.abs(whole / 2**23 - sources * gain).max() <= n / 2 / 2**23 * 1.0001
    as_float = (whole / 2**23).astype(np.float32)
    alpha = np.float32(1 / n)
    total = sum(alpha * source for source in as_float)
    assert np.array_equal(total, (mean / 2**23).astype(np.float32))
    whole, _, gain = quantise_sources(sources * 3)
    assert gain == pytest.approx(1 / 3, rel=1e-3) and 2**23 - 2 * n <= np.abs(whole).max() < 2**23


def test_one_gain_for_the_song_where_a_sum_would_clip(tmp_path):
    wave = noise(1, level=0.9)
    folder = tmp_path / "slakh/train/Track00001"
    write_track(folder, "Bass", "Bass", "Drums", S00=wave, S01=wave, S02=wave)
    manifest, _ = prepare(tmp_path / "slakh", tmp_path / "out", **FAST)
    content = json.loads((tmp_path / "out/manifest.json").read_text())
    gain = content["tracks"][0]["gain"]
    assert gain == pytest.approx(1 / (2 * np.abs(wave).max()), rel=1e-3)
    files = load_track(manifest.tracks[0])
    assert torch.equal(0.5 * files["bass"] + 0.5 * files["drums"], files["mixture"])
    expected = torch.from_numpy(wave)
    assert torch.allclose(files["bass"], 2 * gain * expected, atol=1e-6)
    assert torch.allclose(files["drums"], gain * expected, atol=1e-6)


# Reading


def test_stems_of_a_class_are_added_padded_and_made_mono(tmp_path):
    folder = tmp_path / "slakh/train/Track00001"
    a, b, c = noise(1), noise(2, 3990), noise(3, 4007)
    write_track(
        folder,
        "Synth Lead",
        entry("synth_lead"),
        entry("Percussive", is_drum=True),
        entry("Synth Lead", audio_rendered=False),
        S00=np.stack([a, 0 * a], axis=1),
        S01=b,
        S02=c,
    )
    (folder / "stems/S03.flac").unlink()  # flagged as not rendered: it does not count
    manifest, _ = prepare(
        tmp_path / "slakh", tmp_path / "out", sources=["Synth Lead", "drums"], **FAST
    )
    assert manifest.sources == ("synth_lead", "drums")
    files = load_track(manifest.tracks[0])
    lead = np.zeros(4007)
    lead[:4000] += a / 2
    lead[:3990] += b
    for name, expected in (("synth_lead", lead), ("drums", c)):
        assert files[name].shape == (4007,) == files["mixture"].shape
        assert np.abs(files[name].numpy() - expected).max() < 1e-6


def test_wav_stems_of_another_rate_are_resampled(tmp_path):
    folder = write_track(tmp_path / "baby/Track00001", "Bass", "Drums")
    (folder / "stems/S01.flac").unlink()
    wave = noise(3, 8000)
    soundfile.write(folder / "stems/S01.wav", wave, 2 * RATE, subtype="PCM_16")
    manifest, _ = prepare(tmp_path / "baby", tmp_path / "out", **FAST)
    stored, _ = soundfile.read(folder / "stems/S01.wav", dtype="float32")
    expected = audio.resample(torch.from_numpy(stored), 2 * RATE, RATE)
    drums = load_track(manifest.tracks[0])["drums"]
    assert drums.shape == (4000,) and (drums - expected).abs().max() < 1e-6


def test_tracks_that_cannot_be_used_are_skipped_with_the_reason(dataset, tmp_path):
    train = dataset / "train"
    (train / "Track00001/stems/S00.flac").unlink()
    content = (train / "Track00002/stems/S01.flac").read_bytes()
    (train / "Track00002/stems/S01.flac").write_bytes(content[: len(content) // 2])
    soundfile.write(train / "Track00003/stems/S01.flac", np.zeros(4000), RATE)
    (dataset / "test/Track00006/metadata.yaml").write_text("- a list")
    (dataset / "test/Track00007/metadata.yaml").unlink()
    write_track(train / "Track00008", entry("Bass", audio_rendered=False), "Drums", "Piano")
    write_track(train / "Track00009", "Bass", "Piano")
    write_track(dataset / "omitted/Track00010", "Bass", "Drums")
    (train / "notes").mkdir()
    _, skipped = prepare(dataset, tmp_path / "out", **FAST)
    reasons = {name: reason for name, reason in skipped.items() if name != "train/Track00002"}
    assert reasons == {
        "train/Track00001": "stems/S00.flac is missing",
        "train/Track00003": "its drums is silent (RMS under silence_dbfs, -60.0)",
        "train/Track00008": "it has no rendered stem of bass (of drums, piano)",
        "train/Track00009": "it has no rendered stem of drums (of bass, piano)",
        "test/Track00006": "its metadata.yaml does not describe stems",
        "test/Track00007": "it has no metadata.yaml",
    }
    assert "S01.flac" in skipped["train/Track00002"]
    content = json.loads((tmp_path / "out/manifest.json").read_text())
    assert {e["name"]: e["reason"] for e in content["skipped"]} == skipped
    assert [track["origin"] for track in content["tracks"]] == [
        "train/Track00004",
        "validation/Track00005",
    ]


# Splits


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"stems: {{S00: {'1:' * 200_000}1}}", "does not describe stems"),  # a number in base 60
        ("".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}x]\n" for n in range(1, 30)), "not describe"),
        ('stems: {"a\\nb": {inst_class: Bass}, S01: {is_drum: true}}', "stems/a b.flac is missing"),
        (f"stems: {{S00: {{inst_class: {'x' * 5000}}}}}", "no rendered stem of bass .* ... .*x"),
    ],
)
def test_metadata_that_would_take_forever_or_fill_the_screen(tmp_path, text, reason):
    folder = write_track(tmp_path / "slakh/train/Track00001", "Bass", "Drums")
    (folder / "metadata.yaml").write_text(text.replace("*a0", "x"), encoding="utf-8")
    with pytest.raises(ValueError, match=reason) as error:
        prepare(tmp_path / "slakh", tmp_path / "out", **FAST)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500


def test_split_folders_are_honoured(dataset, tmp_path):
    manifest, _ = prepare(dataset, tmp_path / "out", **FAST)
    assert "".join(track.name[-1] for track in manifest.tracks) == "1234567"
    assert [len(manifest.split(name)) for name in ("train", "validation", "test")] == [4, 1, 2]
    assert splits(manifest)["5"] == "validation"
    verify_checksums(manifest)


def test_a_limit_is_shared_out_over_the_splits(dataset, tmp_path):
    (dataset / "train/Track00001/stems/S00.flac").unlink()
    manifest, _ = prepare(dataset, tmp_path / "out", limit=4, **FAST)
    assert splits(manifest) == {"2": "train", "3": "train", "5": "validation", "6": "test"}


def test_explicit_shares_cut_the_train_folder_in_order(dataset, tmp_path):
    for number in range(11, 21):
        write_track(dataset / f"train/Track000{number}", "Bass", "Drums", seed=number)
    (dataset / "train/Track00002/stems/S00.flac").unlink()
    manifest, _ = prepare(dataset, tmp_path / "out", limit=10, split=(0.7, 0, 0.3), **FAST)
    names = [int(track.name[5:]) for track in manifest.tracks]
    assert names == [1, 3, 4, 11, 12, 13, 14, 15, 16, 17]
    assert [track.split for track in manifest.tracks] == ["train"] * 7 + ["test"] * 3
    assert not (tmp_path / "out/.unassigned").exists()
    before = tree(tmp_path / "out")
    prepare(dataset, tmp_path / "out", limit=10, split=(0.7, 0, 0.3), **FAST)
    assert {k: v for k, v in tree(tmp_path / "out").items() if k != "manifest.json"} == {
        k: v for k, v in before.items() if k != "manifest.json"
    }


def test_a_folder_without_splits_is_split_by_song_from_the_seed(tmp_path):
    for number in range(10):
        write_track(tmp_path / f"flat/Track0000{number}", "Bass", "Drums", seed=number)
    results = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        manifest, _ = prepare(tmp_path / "flat", tmp_path / out, seed=seed, **FAST)
        assert [len(manifest.split(name)) for name in ("train", "validation", "test")] == [7, 1, 2]
        results.append(splits(manifest))
    assert results[0] == results[1] != results[2]


# Resuming


def test_a_second_run_reuses_finished_tracks(dataset, tmp_path):
    prepare(dataset, tmp_path / "out", **FAST)
    before = tree(tmp_path / "out")
    damaged = tmp_path / "out/train/Track00002/bass.flac"
    audio.save(damaged, torch.zeros(10), RATE)
    write_track(tmp_path / "new", "Bass", "Drums", "Piano", seed=99, samples=5000)
    shutil.rmtree(dataset / "train/Track00003")
    shutil.move(tmp_path / "new", dataset / "train/Track00003")
    manifest, _ = prepare(dataset, tmp_path / "out", **FAST)
    after = tree(tmp_path / "out")
    changed = {str(Path(name).parent) for name in before if before[name] != after[name]}
    assert changed == {"train/Track00002", "train/Track00003", "."}  # and the manifest
    assert after["train/Track00002/bass.flac"][0] == before["train/Track00002/bass.flac"][0]
    assert manifest.tracks[2].samples == 5000
    verify_checksums(manifest)


def test_an_interrupted_run_goes_on(dataset, tmp_path, monkeypatch):
    whole, _ = prepare(dataset, tmp_path / "whole", **FAST)
    original, calls = slakh.write_json, []

    def interrupted(path, value):
        calls.append(path.name)
        if calls.count("track.json") == 3:
            raise KeyboardInterrupt
        original(path, value)

    monkeypatch.setattr(slakh, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset, tmp_path / "parts", sample_rate=RATE, workers=1)
    out = tmp_path / "parts"
    finished = {str(path.relative_to(out)): path for path in out.rglob("Track*")}
    assert {"train/Track00001", "train/Track00002"} <= set(finished) and len(finished) < 6
    assert all(len(list(path.iterdir())) == 4 for path in finished.values())
    assert not (out / "manifest.json").exists()
    with pytest.raises(FileNotFoundError, match="prepare the data first"):
        load_manifest(out)
    calls.clear()
    calls += ["track.json"] * 3
    prepare(dataset, out, **FAST)
    assert calls.count("track.json") == 3 + 7 - len(finished)
    assert [track.checksums for track in load_manifest(out).tracks] == [
        track.checksums for track in whole.tracks
    ]


def test_other_settings_or_data_are_not_mixed(dataset, tmp_path):
    prepare(dataset, tmp_path / "out", **FAST)
    before = tree(tmp_path / "out")
    with pytest.raises(ValueError, match="another sources, sample_rate"):
        prepare(dataset, tmp_path / "out", sources=("bass", "piano"), sample_rate=4000)
    assert tree(tmp_path / "out") == before
    before = tree(dataset)
    with pytest.raises(ValueError, match="would be mixed"):  # not over the originals
        prepare(dataset, dataset, **FAST)
    assert tree(dataset) == before


# Errors


def test_folders_that_are_not_slakh(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match=rf"did you mean {dataset}\?"):
        prepare(dataset.parent, tmp_path / "out")
    with pytest.raises(ValueError, match="none of the 7 tracks .* no rendered stem of flute"):
        prepare(dataset, tmp_path / "out", sources=("bass", "flute"), **FAST)
    assert not (tmp_path / "out/manifest.json").exists()


# Real metadata, and the two programs together


def test_a_real_slakh_track(tmp_path):
    real = SHARED / "data/slakh/slakh2100_flac_redux/train/Track00001"
    if not real.exists():
        pytest.skip(f"no real Slakh track at {real}")
    folder = tmp_path / "slakh2100_flac_redux/train/Track00001"
    (folder / "stems").mkdir(parents=True)
    shutil.copyfile(real / "metadata.yaml", folder / "metadata.yaml")
    render, rate = Renderer(44100), 44100
    for name in ("S01", "S03"):
        midi = pretty_midi.PrettyMIDI(str(real / f"MIDI/{name}.mid"))
        for instrument in midi.instruments:  # ten seconds of the middle
            instrument.notes = [n for n in instrument.notes if 60 < n.start < 69]
            for note in instrument.notes:
                note.start, note.end = note.start - 60, note.end - 60
        wave = render(midi.instruments, 10 * rate)
        soundfile.write(folder / f"stems/{name}.flac", wave, rate, subtype="PCM_16")
    manifest, skipped = prepare(tmp_path / "slakh2100_flac_redux", tmp_path / "out")
    assert skipped == {}
    (track,) = manifest.tracks
    assert (track.name, track.split, track.samples) == ("Track00001", "train", 220500)
    files = load_track(track)
    assert torch.equal(0.5 * files["bass"] + 0.5 * files["drums"], files["mixture"])
    for source, stem in (("bass", "S03"), ("drums", "S01")):
        stored, _ = audio.load(folder / f"stems/{stem}.flac")
        expected = audio.resample(stored[0], rate, 22050)
        assert (files[source] - expected).abs().max() < 1e-6
        assert not audio.is_silent(files[source])


def test_programs_end_to_end(tmp_path, capsys):
    make_synthetic(tmp_path / "slakh", tracks=3, seconds=2, sample_rate=2 * RATE)
    flags = ["--slakh", str(tmp_path / "slakh"), "--output", str(tmp_path / "out")]
    flags += ["--sample-rate", str(RATE), "--sources", "bass", "drums", "piano"]
    assert main(flags) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "3 tracks (1 train, 1 validation, 1 test; 0.00" in captured.out
    manifest = load_manifest(tmp_path / "out")
    assert manifest.sources == ("bass", "drums", "piano")
    assert all(track.samples == 2 * RATE for track in manifest.tracks)
    assert main([*flags, "--limit", "1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "another limit" in line
    assert main(["--slakh", str(tmp_path / "x"), "--output", str(tmp_path / "y")]) == 1
    assert capsys.readouterr().err == f"error: there is no folder {tmp_path / 'x'}\n"


def test_the_manifest_says_whether_the_songs_were_generated(dataset, tmp_path):
    prepare(dataset, tmp_path / "out", **FAST)
    make_synthetic(tmp_path / "songs", tracks=3, seconds=6, parts=("bass", "drums"))
    prepare(tmp_path / "songs", tmp_path / "generated", **FAST)
    said = [
        json.loads((tmp_path / name / "manifest.json").read_text())["settings"]["generated"]
        for name in ("out", "generated")
    ]
    assert said == [False, True]


def songs_of(folder):
    return {track.name: track.song for track in load_manifest(folder).tracks}


def test_tracks_of_one_song_are_known_by_their_metadata(tmp_path):
    midi = "lmd_matched/O/O/H/TROOHTB128F931F9DF/{}.mid".format
    described = [
        {"UUID": "a", "lmd_midi_dir": midi("a")},
        {"UUID": "b", "lmd_midi_dir": midi("b")},
        {"UUID": "c", "lmd_midi_dir": "elsewhere/c.mid"},
        {"UUID": "c"},
        {"UUID": "d", "song": 7},
        {},
        {"UUID": "c", "generator": {}, "lmd_midi_dir": "composed"},
    ]
    for number, more in enumerate(described, start=1):
        folder = write_track(tmp_path / f"slakh/Track{number:05d}", "Bass", "Drums", seed=number)
        content = yaml.safe_load((folder / "metadata.yaml").read_text())
        (folder / "metadata.yaml").write_text(yaml.safe_dump(content | more))
    prepare(tmp_path / "slakh", tmp_path / "out", split=(0, 0, 1), **FAST)
    assert list(songs_of(tmp_path / "out").values()) == [
        *["TROOHTB128F931F9DF"] * 2,
        *["c"] * 2,
        "7",
        "Track00006",
        "Track00007",
    ]
    content = json.loads((tmp_path / "out/manifest.json").read_text())
    assert ["song" in track for track in content["tracks"]] == [True] * 5 + [False] * 2


def test_excerpts_of_one_song_are_found_by_the_audio_that_they_share(tmp_path):
    """The third track begins within the first, the fifth within the third; others share nothing."""
    long = {"S00": noise(0, 12_000), "S01": noise(1, 12_000)}
    starts = {1: 0, 3: 2_000, 5: 5_000}
    for number in range(1, 7):
        start = starts.get(number, 0)
        waves = {name: wave[start : start + 4_000] for name, wave in long.items()}
        waves = waves if number in starts else {}
        folder = tmp_path / f"slakh/Track{number:05d}"
        write_track(folder, "Bass", "Drums", seed=number, **waves)
    prepare(tmp_path / "slakh", tmp_path / "out", split=(0, 0, 1), **FAST)
    before = (tmp_path / "out/manifest.json").read_bytes()
    assert len({*songs_of(tmp_path / "out").values()}) == 6
    prepare(tmp_path / "slakh", tmp_path / "out", split=(0, 0, 1), find_songs=True, **FAST)
    assert songs_of(tmp_path / "out") == {
        f"Track{number:05d}": "Track00001" if number in starts else f"Track{number:05d}"
        for number in range(1, 7)
    }
    prepare(tmp_path / "slakh", tmp_path / "out", split=(0, 0, 1), **FAST)
    assert (tmp_path / "out/manifest.json").read_bytes() == before


EXCERPTS = SHARED / "data" / "slakh_excerpts"


@pytest.mark.skipif(not EXCERPTS.is_dir(), reason="the excerpts of Slakh2100 are not here")
def test_two_of_the_real_excerpts_are_of_one_song(tmp_path):
    prepare(EXCERPTS / "test", tmp_path / "out", split=(0, 0, 1), find_songs=True, workers=1)
    songs = songs_of(tmp_path / "out")
    assert len(songs) == 12 and songs["Track90011"] == songs["Track90018"]
    assert len({*songs.values()}) == 11
