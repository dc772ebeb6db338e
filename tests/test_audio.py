"""Audio files, resampling, levels."""

import math
import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jukebox_core import audio
from jukebox_core.audio.stream import open_audio

RATE = 22050


def noise(*shape, seed=0):
    """Uniform samples on the 24-bit grid."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**23), 2**23, shape, generator=generator).float() / 2**23


def tone(frequency, samples, rate=RATE):
    phase = frequency * torch.arange(samples, dtype=torch.float64) / rate
    return (0.5 * torch.sin(2 * math.pi * phase)).float()


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff"])
@pytest.mark.parametrize("shape", [(1000,), (1, 1000), (2, 1000)])
def test_24_bit_samples_survive_a_file(tmp_path, suffix, shape):
    x = noise(*shape)
    audio.save(tmp_path / f"x{suffix}", x, RATE)
    y, rate = audio.load(tmp_path / f"x{suffix}")
    assert rate == RATE and y.dtype == torch.float32
    assert torch.equal(y, x.reshape(-1, 1000))
    assert audio.info(tmp_path / f"x{suffix}") == (1000, RATE, y.shape[0])


def test_integer_files_hold_the_nearest_sample_and_clip(tmp_path):
    x = torch.tensor([0.3, -0.7, 1.0, 1.5, -1.0, -3.0, 2**-16])
    audio.save(tmp_path / "x.wav", x, RATE, subtype="PCM_16")
    top = 1 - 2**-15
    expected = [round(0.3 * 2**15) / 2**15, round(-0.7 * 2**15) / 2**15, top, top, -1, -1, 0]
    assert audio.load(tmp_path / "x.wav")[0][0].tolist() == expected


def test_float_wav_keeps_what_is_beyond_full_scale(tmp_path):
    x = torch.tensor([1.5, -2.25, 1e-9])
    audio.save(tmp_path / "x.wav", x, RATE)
    assert torch.equal(audio.load(tmp_path / "x.wav")[0][0], x)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_equal_audio_gives_equal_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        audio.save(tmp_path / f"{name}{suffix}", noise(2, 3000), RATE)
    first = (tmp_path / f"a{suffix}").read_bytes()
    assert first == (tmp_path / f"b{suffix}").read_bytes()
    assert b"PEAK" not in first[:100]  # libsndfile's chunk with the time of writing


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_lossy_formats(tmp_path, suffix):
    x = tone(440, 3 * RATE)
    audio.save(tmp_path / f"x{suffix}", x, RATE)
    y, rate = audio.load(tmp_path / f"x{suffix}")
    middle = slice(RATE, 2 * RATE)
    assert rate == RATE and y.shape == (1, 3 * RATE)
    assert (y[0, middle] - x[middle]).abs().max() < 0.02


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff", ".ogg", ".mp3"])
def test_a_segment_is_a_slice_of_the_whole(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    audio.save(path, noise(2, 50000) / 4, RATE)
    whole, _ = audio.load(path)
    for start, length in ((0, 1), (12345, 30000), (0, 50000), (49999, 1)):
        segment = audio.load_segment(path, start, length)
        assert torch.equal(segment, whole[:, start : start + length])
    with pytest.raises(ValueError, match="has 50000 samples, .*49999 to 50001"):
        audio.load_segment(path, 49999, 2)
    with pytest.raises(ValueError, match="start is -1 and length 5"):
        audio.load_segment(path, -1, 5)


def bad_files(folder):
    """Path and what the error must say."""
    (folder / "text.wav").write_text("hello")
    (folder / "text.mp3").write_text("hello\nthere")
    (folder / "bytes.raw").write_bytes(b"\0" * 100)
    (folder / "zero.flac").touch()
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "empty.wav", np.zeros((0, 1)), RATE)
    for name, values in (("nan", [np.nan]), ("inf", [np.inf]), ("both", [np.inf, -np.inf])):
        samples = np.zeros(100, np.float32)
        samples[3 : 3 + len(values)] = values
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    audio.save(folder / "whole.flac", noise(20000), RATE)
    content = (folder / "whole.flac").read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    return {
        "text.wav": "cannot be read as audio",
        "text.mp3": "no MPEG frames",
        "bytes.raw": "cannot be read as audio",
        "zero.flac": "cannot be read as audio: it is empty",
        "folder.wav": "is a folder",
        "empty.wav": "no samples",
        "nan.wav": "NaN or infinite",
        "inf.wav": "NaN or infinite",
        "both.wav": "NaN or infinite",
        "cut.flac": r"is damaged after 0\.\d s and cannot be read as audio",
    }


def test_bad_files_are_refused_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=words) as caught:
            audio.load(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
        with pytest.raises(ValueError, match=name):
            audio.load_segment(tmp_path / name, 0, 20000)
    with pytest.raises(FileNotFoundError, match="there is no audio file"):
        audio.load(tmp_path / "missing.wav")
    with pytest.raises(FileNotFoundError, match="there is no audio file"):
        audio.info(tmp_path / "missing.wav")
    assert capfd.readouterr() == ("", "")  # decoders chatter on stderr otherwise


def fake_ffmpeg(folder, script):
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_other_formats_go_through_ffmpeg(tmp_path, monkeypatch):
    audio.save(tmp_path / "decoded.wav", noise(2, 500), 44100)
    (tmp_path / "x.m4a").write_bytes(b"....ftypM4A ")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_ffmpeg(tmp_path, f'for last; do :; done; cp "{tmp_path}/decoded.wav" "$last"')
    x, rate = audio.load(tmp_path / "x.m4a")
    assert rate == 44100 and torch.equal(x, noise(2, 500))
    assert audio.info(tmp_path / "x.m4a") == (500, 44100, 2)
    assert torch.equal(audio.load_segment(tmp_path / "x.m4a", 10, 20), x[:, 10:30])
    with open_audio(tmp_path / "x.m4a") as reader:
        temporary = Path(reader._file.name)
        assert temporary.exists()
    assert not temporary.exists()
    fake_ffmpeg(tmp_path, "echo 'line one' >&2; echo 'x.m4a: Invalid data' >&2; exit 1")
    with pytest.raises(ValueError, match=r"nor ffmpeg .* \(x.m4a: Invalid data\)$"):
        audio.load(tmp_path / "x.m4a")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="install ffmpeg"):
        audio.load(tmp_path / "x.m4a")


@pytest.mark.parametrize(
    ("name", "samples", "options", "words"),
    [
        ("x.txt", torch.zeros(5), {}, "suffix is '.txt', expected .aif"),
        ("x.wav", torch.zeros(1, 1, 5), {}, r"shape \(1, 1, 5\)"),
        ("x.wav", torch.zeros(2, 0), {}, r"shape \(2, 0\)"),
        ("x.wav", torch.zeros(5, dtype=torch.int32), {}, "int32"),
        ("x.wav", torch.tensor([0.0, math.nan]), {}, "NaN or infinite"),
        ("x.flac", torch.tensor([0.0, math.inf]), {}, "NaN or infinite"),
        ("x.wav", torch.zeros(5), {"subtype": "NONE"}, "cannot write"),
        ("x.flac", torch.zeros(9, 5), {}, "cannot write"),  # flac has up to eight channels
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, name, samples, options, words):
    (tmp_path / name).write_text("old")
    with pytest.raises(ValueError, match=words):
        audio.save(tmp_path / name, samples, RATE, **options)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


@pytest.mark.parametrize(("start", "to"), [(44100, 22050), (16000, 22050), (22050, 44100)])
def test_resampling_keeps_a_tone(start, to):
    x, expected = tone(1000, start * 2, start), tone(1000, to * 2, to)
    y = audio.resample(x, start, to)
    middle = slice(to // 2, to)
    assert y.shape == expected.shape
    assert (y - expected)[middle].abs().max() < 1e-5


def test_resampling_shapes_and_lengths():
    x = noise(3, 2, 1001)
    assert audio.resample(x, RATE, RATE) is x
    y = audio.resample(x, 44100, 22050, length=600)
    assert y.shape == (3, 2, 600) and y.dtype == torch.float32
    assert torch.equal(y[..., 510:], torch.zeros(3, 2, 90))
    single = audio.resample(x[1, 1], 44100, 22050)
    assert torch.equal(single[:400], y[1, 1, :400])
    assert audio.resample(x, 44100, 22050, length=10).shape == (3, 2, 10)
    assert audio.resample(torch.zeros(2, 0), 44100, 22050).shape == (2, 0)
    with pytest.raises(ValueError, match="from 0 to 22050"):
        audio.resample(x, 0, 22050)


def test_mono_is_the_mean_of_the_channels():
    x = torch.tensor([[1.0, 2.0], [3.0, -2.0]])
    assert audio.to_mono(x).tolist() == [2.0, 0.0]
    assert torch.equal(audio.to_mono(x[:1]), x[0])
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        audio.to_mono(x[0])


def test_levels():
    square = torch.tensor([0.1, -0.1]).repeat(500)
    assert audio.rms_dbfs(square).item() == pytest.approx(-20, abs=1e-4)
    assert audio.rms_dbfs(torch.stack([square, 10 * square])).tolist() == pytest.approx(
        [-20, 0], abs=1e-4
    )
    assert audio.rms_dbfs(torch.zeros(10)).item() == -math.inf
    assert audio.is_silent(torch.zeros(10)) and audio.is_silent(torch.zeros(0))
    assert not audio.is_silent(square * 0.0101) and audio.is_silent(square * 0.0099)
    assert audio.is_silent(square, threshold_dbfs=-19.9)


def test_the_original_rule_of_silence_depends_on_the_length():
    x = torch.full((65536,), 0.0038)  # norm / length = 0.0038 / sqrt(65536) = 1.48e-5
    assert audio.reference_is_silent(x) and not audio.reference_is_silent(x * 1.02)
    assert not audio.reference_is_silent(x[:1000])
    assert not audio.is_silent(x)
