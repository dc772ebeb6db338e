"""Damaged and missing files: replaced by a rule, reported once, an error if there are many."""

import dataclasses
from itertools import accumulate

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, write_data_set

from jukebox_core.datasets.bad_files import BadFiles, warn_on_stderr
from jukebox_core.datasets.batches import Batches
from jukebox_core.datasets.cache import AudioCache
from jukebox_core.datasets.crops import CropDataset
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.presets import PRESETS
from jukebox_core.prior.codes import encode_songs
from jukebox_core.vqvae.model import VQVAE

CROP, SONGS, ITEMS = 2048, 20, 60


def noise(number, samples):
    """Two sources of noise; the second is silent in its first half."""
    generator = torch.Generator().manual_seed(number)
    bass, drums = 0.1 * torch.randn(2, samples, generator=generator)
    drums[: samples // 2] = 0
    return {"bass": bass, "drums": drums}


def write(folder):
    songs = {f"T{n:02d}": ("train", noise(n, 20_000 + 500 * n)) for n in range(SONGS)}
    return load_manifest(write_data_set(folder, songs)).split("train")


@pytest.fixture
def tracks(tmp_path):
    return write(tmp_path)


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def crops(tracks, contents="sources", **kwargs):
    return CropDataset(tracks, contents, CROP, {"bass": 0.5, "drums": 0.5}, seed=3, **kwargs)


def place(path, start, samples):
    """CROP samples of a file, or None if they are not to be had."""
    try:
        with soundfile.SoundFile(path) as file:
            assert file.frames == samples
            file.seek(start)
            read = file.read(CROP, dtype="float32")
    except (soundfile.LibsndfileError, AssertionError):
        return None
    return torch.from_numpy(read) if len(read) == CROP else None


def by_the_rule(tracks, index, skip_silent=True, seed=3):
    """Item `index` of both sources, and the songs it drew and could not read."""
    generator = np.random.default_rng((seed, index))
    edges = [end / sum(t.samples for t in tracks) for end in accumulate(t.samples for t in tracks)]
    last, failed = None, set()
    for _ in range(20):
        chosen = generator.random()
        track = next(t for t, edge in zip(tracks, edges, strict=True) if chosen < edge)
        start = int(generator.integers(track.samples - CROP + 1))
        rows = [place(track.sources[name], start, track.samples) for name in ("bass", "drums")]
        if any(row is None for row in rows):
            failed.add(track.name)
            continue
        last = torch.stack(rows)
        if not skip_silent or (last.square().mean(1) >= 1e-6).all():
            break
    return last, failed


def damage(tracks, how):
    """Damage two of the songs; their names."""
    first, second = tracks[4], tracks[11]
    if how == "cut":
        cut(first.sources["bass"])
        cut(second.sources["drums"], 0.9)
    elif how == "missing":
        first.sources["bass"].unlink()
        second.sources["drums"].unlink()
    elif how == "no audio":
        first.sources["bass"].write_bytes(b"nothing")
        second.sources["drums"].write_bytes(b"")
    else:  # whole files, of another length
        soundfile.write(first.sources["bass"], np.ones(first.samples + 1), RATE)
        soundfile.write(second.sources["drums"], np.ones(second.samples - 1), RATE)
    return {first.name, second.name}


@pytest.mark.parametrize("how", ("cut", "missing", "no audio", "other length"))
@pytest.mark.parametrize("skip_silent", (True, False))
def test_items_are_those_of_the_rule_whatever_is_kept(tracks, how, skip_silent):
    damaged = damage(tracks, how)
    expected, failed = zip(
        *(by_the_rule(tracks, index, skip_silent) for index in range(ITEMS)), strict=True
    )
    assert set().union(*failed) == damaged
    for budget in (0, 400_000, 1 << 30):
        items = crops(tracks, skip_silent=skip_silent, cache=AudioCache(budget))
        for index in reversed(range(ITEMS)):
            assert torch.equal(items[index], expected[index])
        assert {song for song, _ in items.bad_files.files.values()} == damaged


def test_items_that_do_not_meet_a_damaged_file_stay_as_they_are(tmp_path):
    whole, tracks = write(tmp_path / "whole"), write(tmp_path / "damaged")
    damage(tracks, "missing")
    before, after = crops(whole, skip_silent=False), crops(tracks, skip_silent=False)
    met = [bool(by_the_rule(tracks, index, False)[1]) for index in range(ITEMS)]
    assert any(met) and not all(met)
    assert [not torch.equal(before[index], after[index]) for index in range(ITEMS)] == met


@pytest.mark.parametrize("workers", (0, 2))
def test_every_file_is_named_once_by_the_main_process(tracks, workers, capfd):
    damage(tracks, "cut")
    files = {str(tracks[4].sources["bass"]), str(tracks[11].sources["drums"])}
    items, said = crops(tracks), []
    for _ in range(2):
        for start in (0, 8):
            steps = Batches(items, 8, workers=workers).steps(start, start + 8, said.append)
            for batch, step in zip(steps, range(start, start + 8), strict=True):
                expected = [by_the_rule(tracks, 4 * step + n)[0] for n in range(4)]
                assert torch.equal(batch, torch.stack(expected, 1).flatten(0, 1))
    assert len(said) == 2 and items.bad_files.files.keys() == files
    assert all(sum(file in message for message in said) == 1 for file in files)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("workers", (0, 2))
def test_more_than_a_tenth_is_an_error_that_names_them(tracks, workers):
    damage(tracks, "missing")
    tracks[0].sources["bass"].unlink()
    said, items = [], crops(tracks)
    with pytest.raises(ValueError, match="^3 of 20 songs cannot be read, more than a") as caught:
        list(Batches(items, 8, workers=workers).steps(0, 60, said.append))
    assert len(said) == 3 and "Traceback" not in str(caught.value)
    for message in (tracks[n].sources[name] for n, name in ((0, "bass"), (4, "bass"))):
        assert str(message) in str(caught.value)


def test_two_files_of_one_song_are_one_song(tracks):
    for n in (0, 4):
        for path in tracks[n].sources.values():
            path.unlink()
    both = crops(tracks, pairing="random")
    for index in range(ITEMS):
        both[index]
    assert len(both.bad_files.files) == 4
    both.bad_files.check()


@pytest.mark.parametrize("workers", (0, 1))
def test_nothing_readable_is_an_error(tracks, workers):
    for track in tracks:
        cut(track.sources["bass"], 0.01)
    with pytest.raises(ValueError, match="^3 of 20 songs cannot be read"):
        list(Batches(crops(tracks), 8, workers=workers).steps(0, 2, lambda message: None))
    endless = dataclasses.replace(tracks[0], samples=10**12)  # all draws fall on it
    intact = [dataclasses.replace(t, sources={"drums": t.sources["drums"]}) for t in tracks[1:]]
    items = CropDataset([endless, *intact], "drums", CROP, {"drums": 1.0})
    with pytest.raises(ValueError, match="^20 draws in a row are unreadable: .*T00/drums.flac"):
        list(Batches(items, 8, workers=workers).steps(0, 2, lambda message: None))


def test_the_tenth_is_counted_over_all_workers():
    main, workers = BadFiles(20), (BadFiles(20), BadFiles(20))
    for number, worker in enumerate(workers):
        worker.add("both", f"{number}.flac", ValueError("damaged"))
        worker.add(f"song {number}", "same.flac" if number else "x.flac", OSError(5, "gone", "y"))
        worker.check()
        main.learn(worker.files)
        main.learn(worker.files)
    assert len(main.news()) == 4 and main.news() == []
    with pytest.raises(ValueError, match="3 of 20 .*0.flac: damaged; x.flac: gone: y; "):
        main.check()


def test_a_long_list_is_cut_short():
    found = BadFiles(100)
    for number in range(14):
        found.add(f"song {number}", f"{number}.flac", ValueError("two\nlines"))
    with pytest.raises(ValueError, match="14 of 100 .*9.flac: two lines and 4 more; restore"):
        found.check()


def test_warnings_are_lines_on_stderr(capsys):
    warn_on_stderr("look")
    assert capsys.readouterr() == ("", "warning: look\n")


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return VQVAE(PRESETS["tiny"].vqvae).eval().requires_grad_(False)


@pytest.mark.parametrize("how", ("cut", "missing", "no audio", "other length"))
def test_songs_that_cannot_be_read_are_not_encoded(tracks, codec, how):
    whole = encode_songs(codec, tracks, "bass", CROP)
    damage(tracks, how)
    tracks[7].sources["bass"].write_bytes(tracks[7].sources["bass"].read_bytes()[:-1])
    said = []
    songs = encode_songs(codec, tracks, "bass", CROP, warn=said.append)
    kept = [song for n, song in enumerate(whole) if n not in (4, 7)]
    assert len(songs) == len(kept) == 18
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(songs, kept, strict=True))
    assert all((a.power == b.power).all() for a, b in zip(songs, kept, strict=True))
    assert len(said) == 2
    assert all(str(tracks[n].sources["bass"]) in said[i] for i, n in enumerate((4, 7)))
    tracks[19].sources["bass"].unlink()
    with pytest.raises(ValueError, match="3 of 20 songs cannot be read, .*T19/bass.flac"):
        encode_songs(codec, tracks, "bass", CROP, warn=said.append)
