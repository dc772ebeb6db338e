"""Audio block by block: the same samples and bytes as in one piece."""

import errno
import math

import pytest
import soundfile
import torch
from full_disk import files_up_to

from jukebox_core import audio
from jukebox_core.audio.stream import AudioWriter, Resampler, open_audio, survey

RATE = 22_050


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**22), 2**22, shape, generator=generator).float() / 2**23


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff", ".ogg", ".mp3"])
@pytest.mark.parametrize("size", [777, 1 << 16])
def test_blocks_are_the_file(tmp_path, suffix, size):
    path = tmp_path / f"x{suffix}"
    audio.save(path, noise(2, 30_000), RATE)
    whole, _ = audio.load(path)
    with open_audio(path) as reader:
        assert (reader.rate, reader.channels) == (RATE, 2)
        for _ in range(2):  # as often as one likes
            blocks = list(reader.blocks(size))
            assert torch.equal(torch.cat(blocks, 1), whole)
            assert max(block.shape[1] for block in blocks) <= size
        found = survey(reader)
    assert found.frames == whole.shape[1]
    assert found.level == pytest.approx(audio.rms_dbfs(whole.flatten()).item(), abs=1e-3)


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [(".wav", None), (".wav", "PCM_16"), (".flac", None), (".aiff", None), (".mp3", None)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_written_in_blocks_has_the_bytes_of_one_saved(tmp_path, suffix, subtype, channels):
    x = 3 * noise(channels, 10_000)  # beyond full scale in places
    audio.save(tmp_path / f"a{suffix}", x, RATE, subtype=subtype)
    with AudioWriter(tmp_path / f"b{suffix}", RATE, channels, subtype=subtype) as writer:
        for block in x.split(3_000, 1):
            writer.write(block)
    assert writer.frames == 10_000
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_a_wav_that_is_to_grow_beyond_4_gib_is_rf64(tmp_path):
    x = noise(2, 5_000)
    with AudioWriter(tmp_path / "x.wav", RATE, 2, frames=1 << 29) as writer:
        writer.write(x)
    assert soundfile.info(tmp_path / "x.wav").format == "RF64"
    y, rate = audio.load(tmp_path / "x.wav")
    assert rate == RATE and torch.equal(x, y)


def test_a_wav_that_grows_beyond_its_format_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("jukebox_core.audio.stream._WAV_LIMIT", 3_000_000)
    with AudioWriter(tmp_path / "x.wav", RATE, 1) as writer:
        writer.write(noise(1, 700_000))
        with pytest.raises(ValueError, match=r"x\.wav .* 4 GiB .* write flac"):
            writer.write(noise(1, 100_000))


def test_blocks_of_another_shape_are_refused(tmp_path):
    with AudioWriter(tmp_path / "x.flac", RATE, 2) as writer:
        with pytest.raises(ValueError, match=r"\(1, 5\), expected \[2, t\]"):
            writer.write(torch.zeros(1, 5))


FORMATS = [
    (".wav", None),
    (".wav", "PCM_16"),
    (".flac", None),
    (".aiff", None),
    (".aif", "PCM_16"),
    (".ogg", None),
    (".mp3", None),
]


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_a_disk_without_room_is_an_error_that_names_the_file(tmp_path, suffix, subtype):
    path = tmp_path / f"x{suffix}"
    path.write_text("old")
    x = noise(2, 200_000)

    def in_blocks(finish):
        writer = AudioWriter(path, RATE, 2, subtype=subtype)
        for block in x.split(5_000, 1):
            writer.write(block)
        finish(writer)

    def inside_with():
        with AudioWriter(path, RATE, 2, subtype=subtype) as writer:
            for block in x.split(5_000, 1):
                writer.write(block)

    for write in (
        lambda: audio.save(path, x, RATE, subtype=subtype),
        lambda: in_blocks(AudioWriter.close),
        inside_with,
    ):
        with files_up_to(20_000), pytest.raises(OSError) as caught:
            write()
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
        assert path.read_text() == "old"


def test_after_an_error_a_writer_is_closed(tmp_path):
    writer = AudioWriter(tmp_path / "x.wav", RATE, 1)
    with files_up_to(20_000), pytest.raises(OSError):
        writer.write(noise(1, 100_000))
    writer.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_a_file_appears_when_it_is_whole(tmp_path, suffix, subtype):
    path = tmp_path / f"x{suffix}"
    with AudioWriter(path, RATE, 1, subtype=subtype) as writer:
        writer.write(noise(1, 9_000))
        assert not path.exists()
    writer.close()  # once more
    assert audio.info(path).frames == 9_000
    before = path.read_bytes()
    with (
        pytest.raises(ValueError, match="NaN"),
        AudioWriter(path, RATE, 1, subtype=subtype) as writer,
    ):
        writer.write(torch.full((1, 9_000), math.nan))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_silence_has_no_level(tmp_path):
    audio.save(tmp_path / "x.wav", torch.zeros(1, 100), RATE)
    with open_audio(tmp_path / "x.wav") as reader:
        assert survey(reader) == (100, -math.inf)


@pytest.mark.parametrize("rates", [(44_100, RATE), (48_000, RATE), (8_000, RATE), (RATE, RATE)])
@pytest.mark.parametrize("length", [1, 50, 9_001, 100_000])
@pytest.mark.parametrize("size", [137, 1 << 16])
def test_resampling_in_pieces(rates, length, size):
    x = noise(length)
    resampler = Resampler(*rates)
    parts = [resampler.push(piece) for piece in x.split(size)]
    streamed = torch.cat([*parts, resampler.finish()])
    expected = audio.resample(x, *rates)
    assert streamed.shape == expected.shape
    torch.testing.assert_close(streamed, expected, atol=1e-6, rtol=0)


def test_rates_that_cannot_be():
    with pytest.raises(ValueError, match="from 0 to 22050 Hz"):
        Resampler(0, RATE)
