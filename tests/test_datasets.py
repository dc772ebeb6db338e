"""Crops: which audio they hold, and that their order depends on seed and step alone."""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, tone_and_noise, write_data_set

from jukebox_core import audio
from jukebox_core.datasets.batches import Batches, collate
from jukebox_core.datasets.cache import AudioCache
from jukebox_core.datasets.crops import Augmentation, CropDataset, hold_out, split_for_validation
from jukebox_core.datasets.manifest import load_manifest

CROP = 2048


@pytest.fixture(scope="module")
def manifest(tiny_data):
    return load_manifest(tiny_data)


def crops(manifest, contents, **kwargs):
    return CropDataset(manifest.split("train"), contents, CROP, manifest.alpha, **kwargs)


def found_in(crop, file):
    """Where a crop lies in a file, or None."""
    whole = audio.load(file)[0][0]
    for start in (whole[: 1 - CROP] == crop[0]).nonzero().flatten().tolist():
        if torch.equal(whole[start : start + CROP], crop):
            return start
    return None


def test_rows_are_aligned_parts_of_one_song_and_the_mixture_is_the_files(manifest):
    items = crops(manifest, "both", seed=3)
    assert items.rows == 3
    for index in range(5):
        bass, drums, mixture = items[index]
        for track in manifest.split("train"):
            start = found_in(drums, track.sources["drums"])
            if start is not None:
                break
        assert found_in(bass, track.sources["bass"]) == start
        assert found_in(mixture, track.mixture) == start
        assert torch.equal(mixture, 0.5 * bass + 0.5 * drums)


def test_contents_choose_rows_of_the_same_crops(manifest):
    both = crops(manifest, "both")[4]
    assert torch.equal(crops(manifest, "sources")[4], both[:2])
    assert torch.equal(crops(manifest, "mixtures")[4], both[2:])
    assert torch.equal(crops(manifest, "drums")[4], both[1:2])
    for contents, names in (
        ("both", ("bass", "drums", "mixture")),
        ("sources", ("bass", "drums")),
        ("mixtures", ("mixture",)),
        ("drums", ("drums",)),
    ):
        assert crops(manifest, contents).names == names
    with pytest.raises(ValueError, match="contents is 'piano', expected mixtures, .*bass, drums"):
        crops(manifest, "piano")


def test_an_item_depends_on_seed_and_index_alone(manifest):
    items, same, other = (crops(manifest, "sources", seed=seed) for seed in (5, 5, 6))
    backwards = [items[index] for index in reversed(range(6))][::-1]
    torch.manual_seed(1)
    np.random.seed(1)
    for index in range(6):
        assert torch.equal(same[index], backwards[index])
        assert not torch.equal(other[index], backwards[index])
    assert not torch.equal(backwards[0], backwards[1])


def test_the_cache_changes_nothing_and_keeps_its_budget(manifest):
    size = 4 * manifest.tracks[0].samples
    results = []
    for budget in (0, 3 * size + 1, 1 << 30):
        cache = AudioCache(budget)
        items = crops(manifest, "sources", cache=cache)
        results.append(torch.stack([items[index] for index in range(12)]))
        assert sum(kept.nbytes for kept in cache._kept.values()) <= budget
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("suffix", (".wav", ".flac"))
def test_without_room_only_the_crop_is_decoded(tmp_path, suffix, monkeypatch):
    samples, path = 50_000, tmp_path / f"x{suffix}"
    audio.save(path, 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0)), RATE)
    whole, decoded = audio.load(path)[0][0], []

    class Counting(soundfile.SoundFile):
        def read(self, *args, **kwargs):
            read = super().read(*args, **kwargs)
            decoded.append(len(read))
            return read

    monkeypatch.setattr(soundfile, "SoundFile", Counting)
    cache, generator = AudioCache(0), np.random.default_rng(0)
    places = [(int(start), CROP) for start in generator.integers(samples - CROP + 1, size=30)]
    places += [(0, 1), (samples - 1, 1), (samples - CROP, CROP), (0, samples)]
    for start, length in places:
        crop = cache.read(path, start, length, samples)
        assert torch.equal(crop, whole[start : start + length])
    assert decoded == [length for _, length in places]


def test_songs_are_as_likely_as_they_are_long(tmp_path):
    songs = {
        name: ("train", {"bass": torch.full((length,), level), "drums": torch.full((length,), 0.5)})
        for name, length, level in (("Track00001", 3000, 0.25), ("Track00002", 9000, 0.75))
    }
    manifest = load_manifest(write_data_set(tmp_path, songs))
    items = CropDataset(manifest.split("train"), "bass", 1000, manifest.alpha)
    drawn = [items[index][0, 0].item() for index in range(400)]
    assert drawn.count(0.75) / 400 == pytest.approx(0.75, abs=0.07)
    assert items.samples == 12000


def test_silent_places_are_drawn_again(tmp_path):
    bass, drums = tone_and_noise(1, RATE)["bass"], torch.zeros(RATE)
    drums[-3000:] = 0.5
    data = write_data_set(tmp_path, {"Track00001": ("train", {"bass": bass, "drums": drums})})
    manifest = load_manifest(data)

    def heard(**kwargs):
        items = crops(manifest, "sources", **kwargs)
        return [items[index][1].abs().max().item() > 0 for index in range(30)]

    assert sum(heard(skip_silent=True)) > sum(heard(skip_silent=False))
    assert sum(heard(skip_silent=False)) < 12
    # twenty tries at 15% each: 96% of the items find a place
    assert sum(heard(skip_silent=True)) >= 26


def test_random_pairing_takes_sources_from_different_songs(manifest):
    def songs(crop):
        return [
            next(
                t.name
                for t in manifest.split("train")
                if found_in(row, t.sources[name]) is not None
            )
            for name, row in zip(("bass", "drums"), crop, strict=True)
        ]

    items = crops(manifest, "sources", pairing="random")
    pairs = [songs(items[index]) for index in range(8)]
    assert any(bass != drums for bass, drums in pairs)
    assert all(
        bass == drums
        for bass, drums in map(songs, map(crops(manifest, "sources").__getitem__, range(8)))
    )


def test_augmentation_scales_sources_before_they_are_mixed(manifest):
    plain = crops(manifest, "both")
    changed = crops(manifest, "both", augmentation=Augmentation(gain_db=6.0, polarity=True))
    gains = []
    for index in range(10):
        before, after = plain[index], changed[index]
        assert torch.allclose(after[2], 0.5 * after[0] + 0.5 * after[1])
        for row in (0, 1):
            gain = (after[row] @ before[row] / before[row].square().sum()).item()
            assert torch.allclose(after[row], gain * before[row], atol=1e-5)
            gains.append(gain)
    decibels = 20 * np.log10(np.abs(gains))
    assert np.abs(decibels).max() <= 6.001 and decibels.std() > 1
    assert min(gains) < 0 < max(gains)


def test_production_changes_the_sources_and_nothing_else(manifest):
    rest = Augmentation(gain_db=6.0, polarity=True)
    before = crops(manifest, "both", augmentation=rest)
    always = dataclasses.replace(rest, production=1.0)
    changed = crops(manifest, "both", augmentation=always)
    different = 0
    for index in range(10):
        plain, processed = before[index], changed[index]
        assert torch.equal(processed, changed[index])
        assert torch.allclose(processed[2], 0.5 * processed[0] + 0.5 * processed[1])
        # the same place, gain and sign: the effects keep the level
        levels = processed[:2].norm(dim=1)
        assert torch.allclose(levels, plain[:2].norm(dim=1), rtol=1e-4)
        different += sum(not torch.equal(a, b) for a, b in zip(plain[:2], processed, strict=False))
    assert different > 15
    half = crops(manifest, "sources", augmentation=dataclasses.replace(rest, production=0.5))
    same = [torch.equal(half[i][row], before[i][row]) for i in range(20) for row in (0, 1)]
    assert 8 <= sum(same) <= 32


def test_short_songs_are_left_out_and_all_short_is_an_error(tmp_path):
    songs = {
        f"Track{n:05d}": ("train", tone_and_noise(n, length))
        for n, length in enumerate((1000, 5000), start=1)
    }
    tracks = load_manifest(write_data_set(tmp_path, songs)).split("train")
    alpha = {"bass": 0.5, "drums": 0.5}
    assert CropDataset(tracks, "bass", 2000, alpha).samples == 5000
    with pytest.raises(
        ValueError, match="no song is as long as a crop of 6000 .* longest has 5000"
    ):
        CropDataset(tracks, "bass", 6000, alpha)
    with pytest.raises(ValueError, match="no songs to draw crops from"):
        CropDataset([], "bass", 6000, alpha)
    damaged = dataclasses.replace(tracks[1], samples=6000)
    with pytest.raises(ValueError, match="has 5000 samples.*6000"):
        CropDataset([damaged], "bass", 2000, alpha)[0]


def test_batches_are_ordered_by_row(manifest):
    items = crops(manifest, "both")
    batch = next(Batches(items, 6).steps(2, 3))
    for position, index in enumerate((4, 5)):
        for row in range(3):
            assert torch.equal(batch[2 * row + position], items[index][row])
    assert torch.equal(collate([items[4], items[5]]), batch)


def test_a_step_reads_the_same_items_however_it_is_computed(manifest):
    items = crops(manifest, "sources")
    plain = list(Batches(items, 8).steps(0, 3))
    resumed = list(Batches(items, 8).steps(2, 3))
    assert torch.equal(plain[2], resumed[0])
    workers = list(Batches(items, 8, workers=2).steps(0, 3))
    assert all(torch.equal(a, b) for a, b in zip(plain, workers, strict=True))
    for accumulate in (1, 2):
        parts = [
            list(Batches(items, 8, processes=2, rank=rank, accumulate=accumulate).indices(1, 2))
            for rank in (0, 1)
        ]
        assert all(len(part) == accumulate for part in parts)
        assert sorted(index for rank in parts for part in rank for index in part) == [4, 5, 6, 7]


def test_loading_draws_nothing_from_the_global_generator(manifest):
    before = torch.get_rng_state()
    list(Batches(crops(manifest, "sources"), 4).steps(0, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_sizes_that_do_not_divide_are_refused(manifest):
    with pytest.raises(
        ValueError, match="batch size 8 does not divide into 3 rows .* multiple of 3"
    ):
        Batches(crops(manifest, "both"), 8)
    with pytest.raises(ValueError, match="multiple of 8"):
        Batches(crops(manifest, "sources"), 4, processes=2, accumulate=2)


def test_validation_never_shares_a_song_with_training(manifest):
    train, validation = split_for_validation(manifest)
    assert [t.split for t in validation] == ["validation"] and len(train) == 4
    assert [t.split for t in split_for_validation(manifest, "test")[1]] == ["test"] * 2
    without = dataclasses.replace(
        manifest, tracks=tuple(t for t in manifest.tracks if t.split != "validation")
    )
    train, validation = split_for_validation(without)
    assert len(train) == 3 and len(validation) == 1
    assert {t.split for t in validation} == {"train"}
    assert not {t.name for t in train} & {t.name for t in validation}
    with pytest.raises(ValueError, match="no songs in that split"):
        split_for_validation(without, "validation")
    with pytest.raises(ValueError, match="validate_on is 'train'"):
        split_for_validation(manifest, "train")
    with pytest.raises(ValueError, match="no songs in its train split"):
        split_for_validation(dataclasses.replace(manifest, tracks=()))


def test_held_out_songs_do_not_depend_on_the_order(manifest):
    tracks = [dataclasses.replace(manifest.tracks[0], name=f"T{n}") for n in range(60)]
    train, held = hold_out(tracks)
    assert len(held) == 3 and len(train) == 57
    assert {t.name for t in hold_out(tracks[::-1])[1]} == {t.name for t in held}
    assert hold_out(tracks[:1]) == (tracks[:1], [])
