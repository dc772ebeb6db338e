"""What players play is decoded, all of it; damage is reported; nothing but files is opened."""

import io
import os
import shutil
import socket
import struct
import subprocess
import warnings

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jukebox_core import audio
from jukebox_core.audio import mpeg_frames
from jukebox_core.audio.mpeg_frames import find_stretches
from jukebox_core.audio.stream import open_audio, survey

RATE = 44_100
SECONDS = 4
ENCODERS = (("VARIABLE", 0.5), ("VARIABLE", 0.0), ("CONSTANT", 0.6))
"""(mode, compression); with the first, frames refer to bytes of frames long before them."""


def clicks(seconds=SECONDS, channels=2):
    """Loud bursts of noise over soft tones: an encoder saves bits in between, and spends them."""
    rng = np.random.default_rng(0)
    time = np.arange(int(seconds * RATE)) / RATE
    x = np.zeros((len(time), channels))
    for number, hertz in enumerate((55, 110, 220.5, 331, 442, 887, 1760, 3520)):
        x += 0.02 * np.sin(2 * np.pi * hertz * (1 + 1e-5 * number) * time)[:, None]
    envelope = np.exp(-np.arange(2000) / 200)[:, None]
    for start in range(3000, len(time) - 2000, 7001):
        x[start : start + 2000] += envelope * rng.standard_normal((2000, channels))
    return x.clip(-1, 1).astype(np.float32)


def encoded(x, **options):
    file = io.BytesIO()
    soundfile.write(file, x, RATE, **options)
    return file.getvalue()


def mp3(x, mode="VARIABLE", level=0.5):
    return encoded(x, format="MP3", bitrate_mode=mode, compression_level=level)


def without_info(data):
    """An mp3 as `ffmpeg -f mp3 pipe:1` writes it: no frame tells the number of frames."""
    (stretch,) = find_stretches(io.BytesIO(data), 0, len(data))
    start, end = stretch.spans[0]
    return data[start + len(stretch.info) : end]


def frames(data):
    """(start, size) of every frame of an mp3."""
    found = mpeg_frames._frames(io.BytesIO(data), 0, len(data), False)
    return [(start, header.size) for start, header, _ in found]


def id3(content):
    size = bytes(len(content) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x04\0\0" + size + content


def everywhere(path):
    """Samples [C, T], on whose number all functions agree."""
    whole, rate = audio.load(path)
    assert audio.info(path) == (whole.shape[1], rate, whole.shape[0])
    with open_audio(path) as reader:
        assert survey(reader).frames == whole.shape[1]
        for size in (5_003, 1 << 16):
            assert torch.equal(torch.cat(list(reader.blocks(size)), 1), whole)
    start = whole.shape[1] // 3
    assert torch.equal(audio.load_segment(path, start, 1000), whole[:, start : start + 1000])
    with pytest.raises(ValueError, match=f"has {whole.shape[1]} samples"):
        audio.load_segment(path, whole.shape[1] - 9, 10)
    return whole


def written(path, data):
    path.write_bytes(data)
    return path


@pytest.fixture(autouse=True, name="alone")
def only_what_is_expected(monkeypatch, tmp_path):
    """Without ffmpeg nothing but the package's own decoding can succeed; warnings are errors."""
    if shutil.which("ffmpeg"):
        (tmp_path / "bin").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Length and continuity


@pytest.mark.parametrize("encoder", ENCODERS)
def test_blocks_of_an_mp3_are_the_whole_bit_for_bit(tmp_path, encoder):
    data = mp3(clicks(), *encoder)
    whole = everywhere(written(tmp_path / "x.mp3", data))
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    assert torch.equal(whole, torch.from_numpy(expected.T))  # gapless, as libsndfile has it
    assert whole.shape[1] == SECONDS * RATE


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_mp3_whose_length_is_not_written_anywhere(tmp_path, encoder):
    data = mp3(np.concatenate([0.01 * clicks(1), clicks(2)]), *encoder)
    stripped = without_info(data)
    whole = everywhere(written(tmp_path / "x.mp3", stripped))
    assert whole.shape[1] == 1152 * len(frames(stripped))
    # The same samples, but for the encoder's delay, which only the info frame tells.
    known, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    delay = 1105
    assert np.array_equal(whole.T[delay : delay + len(known)], known)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("quality", (("-q:a", "0"), ("-q:a", "2"), ("-b:a", "128k")))
@pytest.mark.parametrize("options", ((), ("-ac", "1", "-ar", "22050")))
def test_samples_are_those_of_ffmpeg(tmp_path, monkeypatch, quality, options):
    monkeypatch.undo()
    soundfile.write(tmp_path / "x.wav", clicks(), RATE)

    def ffmpeg(*words):
        command = ["ffmpeg", "-v", "error", "-nostdin", *words, "-"]
        return subprocess.run(command, check=True, capture_output=True).stdout

    files = []
    for name in ("seekable.mp3", "piped.mp3"):
        files.append(tmp_path / name)
        data = ffmpeg("-i", str(tmp_path / "x.wav"), *quality, *options, "-f", "mp3")
        if name.startswith("seekable"):
            target = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "x.wav"), *quality, *options]
            subprocess.run([*target, str(files[-1])], check=True)
        else:
            files[-1].write_bytes(data)
    for path in files:
        whole = everywhere(path)
        raw = np.frombuffer(ffmpeg("-i", str(path), "-f", "f32le"), "<f4")
        assert whole.T.shape == raw.reshape(-1, len(whole)).shape
        assert np.abs(whole.T.numpy() - raw.reshape(-1, len(whole))).max() < 1e-5


def test_joined_mp3s_are_one_after_the_other(tmp_path):
    first, second = mp3(clicks(2)), mp3(clicks(1) * 0.5, "CONSTANT", 0.5)
    parts = [
        audio.load(written(tmp_path / name, data))[0]
        for name, data in (("a.mp3", first), ("b.mp3", second))
    ]
    expected = torch.cat(parts, 1)
    assert torch.equal(everywhere(written(tmp_path / "ab.mp3", first + second)), expected)
    tags = b"TAG" + bytes(125)
    tagged = id3(b"a" * 999) + first + tags + id3(b"b" * 30_000) + second + tags
    assert torch.equal(everywhere(written(tmp_path / "tagged.mp3", tagged)), expected)


def test_joined_mp3s_that_tell_no_length(tmp_path):
    data = without_info(mp3(clicks(1)))
    single = audio.load(written(tmp_path / "a.mp3", data))[0]
    joined = everywhere(written(tmp_path / "aa.mp3", data + data))
    assert joined.shape[1] == 2 * single.shape[1]
    assert torch.equal(joined[:, : single.shape[1]], single)


def test_joined_layer_2_of_falling_bit_rates():
    """A decoder would estimate the length of all from the large first frame."""
    header = {384: b"\xff\xfd\xe4\x04", 32: b"\xff\xfd\x14\x04"}  # kbit/s at 48 kHz
    data = b"".join(
        (header[rate] + bytes(144 * rate // 48 - 4)) * count for rate, count in ((384, 5), (32, 90))
    )
    (stretch,) = find_stretches(io.BytesIO(data), 0, len(data))
    assert stretch.frames == 95
    # 144 * 384 / 48 bytes for every frame that there is, so that none is left out.
    assert stretch.claimed() >= 95 * 1152


def test_a_format_that_changes_is_refused(tmp_path):
    data = mp3(clicks(1)) + mp3(clicks(1, channels=1))
    path = written(tmp_path / "x.mp3", data)
    for read in (audio.info, audio.load):
        with pytest.raises(ValueError, match=r"x\.mp3 changes .* after 1\.0 s"):
            read(path)


def test_joined_oggs_are_one_after_the_other(tmp_path):
    data = encoded(clicks(1), format="OGG", subtype="VORBIS")
    single = everywhere(written(tmp_path / "a.ogg", data))
    joined = everywhere(written(tmp_path / "aaa.ogg", data * 3))
    assert torch.equal(joined, torch.cat([single] * 3, 1))


# What players skip


def junk_before():
    rng = np.random.default_rng(1)
    return {
        "ID3 and zeros": id3(b"TIT2" * 20) + bytes(4096),
        "zeros": bytes(70_000),
        "two tags": id3(rng.bytes(100_000)) + id3(b"x"),
        "junk": b"HTTP/1.0 200 OK\r\n\r\n" + rng.bytes(2000),
    }


@pytest.mark.parametrize("junk", junk_before())
def test_junk_before_an_mp3(tmp_path, junk):
    data = mp3(clicks(1))
    expected = audio.load(written(tmp_path / "a.mp3", data))[0]
    mixed = junk_before()[junk] + data + b"TAG" + bytes(125)
    assert torch.equal(everywhere(written(tmp_path / "x.mp3", mixed)), expected)


@pytest.mark.parametrize("every", (1, 2, 20))
def test_junk_between_frames(tmp_path, every):
    data = without_info(mp3(clicks(2)))
    expected = audio.load(written(tmp_path / "a.mp3", data))[0]
    rng, pieces = np.random.default_rng(2), []
    for number, (start, size) in enumerate(frames(data)):
        junk = rng.bytes(1 + number % 50) if number % every == 0 else b""
        pieces.append(junk + data[start : start + size])
    path = written(tmp_path / "x.mp3", b"".join(pieces))
    with pytest.warns(audio.DamagedAudioWarning, match=r"x\.mp3 is damaged"):
        assert torch.equal(everywhere(path), expected)


@pytest.mark.parametrize("suffix", (".wav", ".mp3", ".flac", ".raw", ".m4a", ""))
@pytest.mark.parametrize("form", ("WAV", "FLAC", "MP3", "OGG", "AIFF"))
def test_the_content_counts_and_not_the_name(tmp_path, form, suffix):
    x = clicks(0.2)
    x[:5000] = 0  # a wav of silence is nothing but zeros behind its header
    data = encoded(x, format=form)
    expected = soundfile.read(io.BytesIO(data), dtype="float32")[0].T
    for before in (b"", bytes(500), id3(bytes(300))):
        path = written(tmp_path / f"x{suffix}", before + data)
        assert torch.equal(audio.load(path)[0], torch.from_numpy(expected))
        assert audio.info(path).frames == x.shape[0]


def test_tags_around_a_flac(tmp_path):
    data = encoded(clicks(1), format="FLAC")
    tag = b"APETAGEX" + struct.pack("<4I", 2000, 64, 1, 0x80000000) + bytes(8)
    path = written(tmp_path / "x.flac", id3(b"\xff" * 999) + data + bytes(32 + 32) + tag)
    assert everywhere(path).shape == (2, RATE)
    path = written(tmp_path / "y.flac", data + b"TAG" + bytes(125))
    assert everywhere(path).shape == (2, RATE)


def test_an_mp3_in_a_wav(tmp_path):
    data = mp3(clicks(1))
    expected = audio.load(written(tmp_path / "x.mp3", data))[0]
    form = struct.pack("<HHIIHHH12s", 0x55, 2, RATE, 16_000, 1, 0, 12, bytes(12))
    head = struct.pack("<4sI8sI", b"RIFF", 66 + len(data), b"WAVEfmt ", 30) + form
    content = head + struct.pack("<4sI", b"data", len(data)) + data
    assert torch.equal(everywhere(written(tmp_path / "x.wav", content)), expected)
    with pytest.raises(ValueError, match="damaged"):
        audio.load(written(tmp_path / "cut.wav", content[:-9]))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("options", (("adts", "aac"), ("mp4", "aac"), ("matroska", "mp3")))
def test_other_formats_are_not_taken_for_mp3(tmp_path, monkeypatch, capfd, options):
    monkeypatch.undo()
    soundfile.write(tmp_path / "x.wav", clicks(), RATE)
    form, codec = options
    command = ["ffmpeg", "-v", "error", "-y", "-i", str(tmp_path / "x.wav"), "-c:a", codec]
    subprocess.run([*command, "-f", form, str(tmp_path / "x.bin")], check=True)
    command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "x.bin"), "-f", "f32le", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    expected = torch.from_numpy(np.frombuffer(raw, "<f4").reshape(-1, 2).T.copy())
    for name in ("x.aac", "x.m4a", *(("x.mp3",) if codec == "aac" else ())):
        shutil.copy(tmp_path / "x.bin", tmp_path / name)
        assert torch.equal(audio.load(tmp_path / name)[0], expected)
    assert capfd.readouterr() == ("", "")


# Headers


def wav(riff, size, data):
    form = struct.pack("<HHIIHH", 1, 2, RATE, RATE * 4, 4, 16)
    return (
        struct.pack("<4sI8sI", b"RIFF", riff, b"WAVEfmt ", 16)
        + form
        + (struct.pack("<4sI", b"data", size) + data)
    )


STREAMED = {
    "ffmpeg": (0xFFFFFFFF, 0xFFFFFFFF),
    "zeros": (0, 0),
    "wave": (36, 0),
    "sox": (0x7FFFF024, 0x7FFFF000),
    "arecord": (0x80000024, 0x80000000),
}


@pytest.mark.parametrize("program", STREAMED)
def test_a_wav_written_to_a_pipe_is_read_to_its_end(tmp_path, program):
    data = (clicks(1) * 32767).astype("<i2").tobytes()
    path = written(tmp_path / "x.wav", wav(*STREAMED[program], data))
    expected = audio.load(written(tmp_path / "y.wav", wav(36 + len(data), len(data), data)))[0]
    assert torch.equal(everywhere(path), expected)


@pytest.mark.parametrize("kept", range(12, 36, 4))
def test_an_rf64_that_ends_in_its_sizes_is_refused(tmp_path, kept):
    data = encoded(clicks(0.1), format="RF64", subtype="PCM_16")
    with pytest.raises(ValueError, match=r"x\.wav"):
        audio.load(written(tmp_path / "x.wav", data[:kept]))


def test_a_wav_without_samples_stays_empty(tmp_path):
    for name, data in (
        ("a.wav", wav(36, 0, b"")),
        ("b.wav", wav(36 + 14, 0, b"LIST" + struct.pack("<I", 6) + b"INFOab")),
    ):
        with pytest.raises(ValueError, match="has no samples"):
            audio.load(written(tmp_path / name, data))


def test_a_flac_written_to_a_pipe_is_read_to_its_end(tmp_path):
    data = bytearray(encoded(clicks(), format="FLAC", subtype="PCM_16"))
    expected = audio.load(written(tmp_path / "y.flac", data))[0]
    data[21] &= 0xF0  # 36 bits of STREAMINFO: the number of samples
    data[22:26] = bytes(4)
    assert torch.equal(everywhere(written(tmp_path / "x.flac", data)), expected)
    with pytest.raises(ValueError, match="is damaged"):
        audio.info(written(tmp_path / "cut.flac", data[: len(data) // 2]))


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAV", "IMA_ADPCM"),
        ("WAVEX", "PCM_24"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("AIFF", "PCM_24"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
    ],
)
@pytest.mark.parametrize("kept", (0.5, 0.97, -1))
def test_half_a_file_is_damaged(tmp_path, form, subtype, kept):
    x = clicks(2) if subtype != "OPUS" else clicks(2)[: 48_000 * 1]
    file = io.BytesIO()
    soundfile.write(file, x, 48_000, format=form, subtype=subtype)
    data = file.getvalue()
    everywhere(written(tmp_path / "whole", data))
    path = written(tmp_path / "cut", data[: kept if kept == -1 else int(kept * len(data))])
    with pytest.raises(ValueError, match="damaged"):
        audio.load(path)
    with pytest.raises(ValueError, match="damaged"), open_audio(path) as reader:
        survey(reader)
    if form != "FLAC":  # whose header is sound; only decoding tells
        for read in (audio.info, lambda path: audio.load_segment(path, 0, 100)):
            with pytest.raises(ValueError, match="damaged"):
                read(path)


def test_a_hole_in_an_ogg_is_damage(tmp_path):
    data = encoded(clicks(), format="OGG", subtype="VORBIS")
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    path = written(tmp_path / "x.ogg", b"".join(pages[:4] + pages[5:]))
    with pytest.raises(ValueError, match=r"x\.ogg is damaged"):
        audio.load(path)


def test_two_flacs_in_one_are_not_half_read(tmp_path):
    data = encoded(clicks(1), format="FLAC")
    with pytest.raises(ValueError, match=r"another FLAC file begins in it after 1\.0 s"):
        audio.load(written(tmp_path / "x.flac", data + data))


@pytest.mark.parametrize("kept", (0.5, 0.9, -1))
@pytest.mark.parametrize("info", (True, False))
def test_a_truncated_mp3_is_decoded_with_a_warning(tmp_path, kept, info):
    data = mp3(clicks())
    data = data if info else without_info(data)
    whole = audio.load(written(tmp_path / "whole.mp3", data))[0]
    path = written(tmp_path / "x.mp3", data[: kept if kept == -1 else int(kept * len(data))])
    with pytest.warns(audio.DamagedAudioWarning, match=r"x\.mp3 is damaged \(truncated\)"):
        there = everywhere(path)
    share = there.shape[1] / whole.shape[1]
    assert share == pytest.approx(1 if kept == -1 else kept, abs=0.1)
    # The last frame overlaps with one that is missing.
    same = there.shape[1] - 2 * 1152
    assert torch.equal(there[:, :same], whole[:, :same])
    with open_audio(path) as reader:
        assert "truncated" in reader.warning


@pytest.mark.parametrize(
    ("field", "values"),
    {22: (0, 65_535), 24: (0, 1, 2**31, 2**31 - 1), 34: (0,), 40: (2**30,)}.items(),
)
def test_headers_that_cannot_be(tmp_path, field, values):
    for value in values:
        data = bytearray(wav(36 + 4000, 4000, bytes(4000)))
        form = "<H" if field in (22, 34) else "<I"
        struct.pack_into(form, data, field, value)
        path = written(tmp_path / "x.wav", data)
        for read in (audio.info, audio.load):
            with pytest.raises(ValueError, match=r"x\.wav") as caught:
                read(path)
            assert "\n" not in str(caught.value)


def test_a_flac_that_claims_days_takes_no_memory(tmp_path):
    data = bytearray(encoded(clicks(1), format="FLAC"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    path = written(tmp_path / "x.flac", data)
    with pytest.raises(ValueError, match="44100 of 68719476735 samples"):
        audio.load(path)


# What is no file


def special_files(folder):
    os.mkfifo(folder / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(folder)  # a socket's name is short
        bound.bind("socket.mp3")
        os.chdir(here)
    (folder / "link.wav").symlink_to("pipe.wav")
    return {
        folder / "pipe.wav": "named pipe",
        folder / "link.wav": "named pipe",
        folder / "socket.mp3": "socket",
        "/dev/zero": "device",
        "/dev/null": "device",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_only_files_are_opened(tmp_path):
    for path, kind in special_files(tmp_path).items():
        for read in (audio.info, audio.load, lambda path: audio.load_segment(path, 0, 1)):
            with pytest.raises(ValueError, match=f"is a {kind}, expected an audio file"):
                read(path)
        with pytest.raises(ValueError, match=kind), open_audio(path):
            pass


def test_an_error_of_the_disk_is_told(tmp_path, monkeypatch):
    from jukebox_core.audio import decoding

    def broken(self, size):
        raise OSError(5, "Input/output error")

    for form in ("FLAC", "MP3"):
        path = written(tmp_path / "x", encoded(clicks(1), format=form))
        with open_audio(path) as reader:
            monkeypatch.setattr(decoding._Bytes, "_next", broken)
            with pytest.raises(OSError, match="Input/output error") as caught:
                list(reader.blocks(1000))
            assert caught.value.filename == str(path)
            monkeypatch.undo()


SOUNDS = {
    "wav": lambda: encoded(clicks(0.2), format="WAV"),
    "aiff": lambda: encoded(clicks(0.2), format="AIFF"),
    "flac": lambda: encoded(clicks(0.2), format="FLAC"),
    "ogg": lambda: encoded(clicks(0.2), format="OGG"),
    "caf": lambda: encoded(clicks(0.2), format="CAF"),
    "w64": lambda: encoded(clicks(0.2), format="W64"),
    "mp3": lambda: mp3(clicks(0.2)),
}


@pytest.mark.parametrize("form", SOUNDS)
@settings(max_examples=40)
@given(
    places=st.lists(st.tuples(st.integers(0, 120), st.binary(min_size=1, max_size=8)), max_size=3),
    cut=st.one_of(st.none(), st.integers(0, 4000)),
)
def test_whatever_the_bytes_are_a_file_is_read_or_refused(tmp_path_factory, form, places, cut):
    data = bytearray(SOUNDS[form]())
    for place, content in places:
        data[place : place + len(content)] = content
    path = tmp_path_factory.mktemp("any") / "x"
    path.write_bytes(data if cut is None else data[: len(data) - cut])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole, _ = audio.load(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert 0 < whole.shape[1] < 10 * RATE
