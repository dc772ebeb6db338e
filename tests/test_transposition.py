"""Transposition: tones against their analytic transposition, and where it enters the training."""

import numpy as np
import pytest
import torch
from conftest import RATE, write_data_set

from jukebox_core.audio.transposition import ratio, room, span, transpose
from jukebox_core.datasets.crops import Augmentation, CropDataset
from jukebox_core.datasets.manifest import load_manifest

TONES = {"bass": 220.0, "drums": 1000.0}
SAMPLES = 4000


def tone(hertz, samples=SAMPLES):
    return torch.sin(2 * torch.pi * hertz / RATE * torch.arange(samples, dtype=torch.float64))


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Two songs, a tone for each source."""
    sources = {name: 0.3 * tone(hertz, 3 * RATE).float() for name, hertz in TONES.items()}
    songs = {f"Track{n:05d}": ("train", sources) for n in (1, 2)}
    return load_manifest(write_data_set(tmp_path_factory.mktemp("tones"), songs))


def pitch(waveform):
    """Of a tone, to a hundredth of a semitone: the slope of the analytic signal's phase."""
    spectrum = np.fft.fft(waveform.numpy() * np.hanning(len(waveform)))
    spectrum[len(spectrum) // 2 :] = 0
    inner = slice(len(waveform) // 4, 3 * len(waveform) // 4)
    phase = np.unwrap(np.angle(np.fft.ifft(spectrum)))[inner]
    return np.polyfit(np.arange(len(phase)), phase, 1)[0] * RATE / (2 * np.pi)


@pytest.mark.parametrize("semitones", (-12, -3, -0.5, 1, 7, 12))
def test_a_tone_becomes_the_tone_of_the_other_frequency(semitones):
    pair = torch.stack([tone(220), tone(1000)])
    samples = room(SAMPLES, semitones)
    assert span(samples, semitones) <= SAMPLES < span(samples + 2, semitones) + 2
    found = transpose(pair, semitones, samples)
    inner = slice(200, samples - 200)
    for row, hertz in zip(found, (220, 1000), strict=True):
        expected = tone(hertz * 2 ** (semitones / 12), samples)
        assert torch.allclose(row[inner], expected[inner], atol=2e-4)


def test_nothing_is_resampled_by_no_semitones():
    waveform = torch.randn(2, 50)
    assert torch.equal(transpose(waveform, 0, 50), waveform)
    assert span(50, 0) == room(50, 0) == 50


def test_too_little_audio_is_refused():
    with pytest.raises(ValueError, match="transposed by 12 semitones need 202, .* has 201"):
        transpose(torch.zeros(1, 201), 12, 100)


def test_the_sources_of_a_crop_are_transposed_alike(tones):
    augmentation = Augmentation(transpose_semitones=2)
    items = CropDataset(tones.split("train"), "both", 4096, tones.alpha, augmentation=augmentation)
    found = []
    for index in range(40):
        bass, drums, mixture = items[index]
        assert torch.equal(mixture, 0.5 * bass + 0.5 * drums)
        steps = [
            12 * np.log2(pitch(row) / hertz)
            for row, hertz in zip((bass, drums), TONES.values(), strict=True)
        ]
        assert steps == pytest.approx([round(steps[0])] * 2, abs=0.02)
        found.append(round(steps[0]))
    assert set(found) == {-2, -1, 0, 1, 2}


def test_sources_of_different_songs_are_transposed_apart(tones):
    augmentation = Augmentation(transpose_semitones=5)
    items = CropDataset(
        tones.split("train"), "sources", 4096, tones.alpha, 0, True, "random", augmentation
    )
    steps = [
        [round(12 * np.log2(pitch(x) / f)) for x, f in zip(items[i], TONES.values(), strict=True)]
        for i in range(10)
    ]
    assert any(bass != drums for bass, drums in steps)


def test_only_songs_long_enough_for_the_highest_key_are_drawn_from(tmp_path):
    songs = {
        f"Track{n:05d}": ("train", {name: tone(220, samples).float() for name in TONES})
        for n, samples in ((1, 4096), (2, 9000))
    }
    manifest = load_manifest(write_data_set(tmp_path, songs))

    def items(semitones):
        augmentation = Augmentation(transpose_semitones=semitones)
        tracks = manifest.split("train")
        return CropDataset(tracks, "bass", 4096, manifest.alpha, augmentation=augmentation)

    assert (items(0).samples, items(12).samples) == (4096 + 9000, 9000)
    with pytest.raises(ValueError, match="no song is as long as a crop of 16386 samples"):
        items(24)
    with pytest.raises(
        ValueError, match="transpose_semitones is -1, expected an integer at least 0"
    ):
        items(-1)


def test_ratio_is_the_equal_tempered_one():
    assert [ratio(s) for s in (-12, 0, 12)] == [0.5, 1, 2]
    assert ratio(1) ** 12 == pytest.approx(2)
