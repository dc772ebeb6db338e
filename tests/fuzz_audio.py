"""Audio for the fuzzer: every format and header that it can make, and their mutations."""

from __future__ import annotations

import io
import struct
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from fuzz_cases import Case, Random, check, mutated, pick
from fuzz_long_audio import long_file, read_start
from fuzz_ogg import with_checksums
from test_decoding import STREAMED, id3

from jukebox_core import audio
from jukebox_core.audio.decoding import BLOCK
from jukebox_core.audio.stream import open_audio
from jukebox_core.separation.files import check_input

FORMS = {
    ("WAV", "wav"): ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "IMA_ADPCM"),
    ("WAVEX", "wav"): ("PCM_16", "PCM_24", "FLOAT", "DOUBLE"),
    ("RF64", "wav"): ("PCM_16",),
    ("FLAC", "flac"): ("PCM_S8", "PCM_16", "PCM_24"),
    ("OGG", "ogg"): ("VORBIS", "OPUS"),
    ("MP3", "mp3"): ("MPEG_LAYER_III",),
    ("AIFF", "aiff"): ("PCM_S8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE"),
}
MOST_CHANNELS = {"FLAC": 8, "OGG": 8, "MP3": 2}
RATES = (8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000)
MP3_RATES = (8000, 11_025, 16_000, 22_050, 44_100, 48_000)
SIGNALS = "noise clipping DC silence impulse denormals one-silent inverted NaN infinite".split()
LENGTHS = (0, 1, 100, 1151, 2048, 3000, 3000, 3000)
TAGS = (struct.pack(">4sI", b"junk", 5) + b"hello\0", b"LIST\x04\0\0\0INFO", b"id3 \x03\0\0\0abc\0")


class Audio:
    """Sound files in `open_audio`, `check_input`, `info` and `load_segment`."""

    def prepare(self, seeds: Path) -> None:
        seeds.mkdir()

    def make(self, rng: Random, seeds: Path, home: Path) -> Case:
        if rng.random() < 0.025:
            suffix, content, what = long_file(rng)
            path = home / f"song.{suffix}"
            path.write_bytes(content)
            return Case(what, partial(read_start, path), (str(path),))
        kind = pick(rng, ("header", "whole", "whole", "bytes", "bytes", "bytes", "bytes"))
        if kind == "header":
            suffix, (content, what) = "wav", wav_header(rng)
            valid = None
        else:
            suffix, content, what, valid = encoded(rng)
        if kind == "bytes":
            content, valid = mutated(rng, content), None
            if content[:4] == b"OggS" and rng.random() < 0.5:
                content = with_checksums(content)
        if rng.random() < 0.1:
            suffix = pick(rng, ("mp3", "wav", "flac", "ogg", "m4a", "txt", ""))
        path = home / f"song.{suffix}"
        path.write_bytes(content)
        return Case(f"{kind}, {what}, .{suffix}", partial(read, path), (str(path),), valid)


PARSER = Audio()


def read(path: Path) -> None:
    """Decode a file in every way; what the ways say must agree."""
    with open_audio(path) as reader:
        summary = check_input(reader)
        frames, last = 0, None
        for block in reader.blocks():
            check(block.dtype == torch.float32, f"a block is {block.dtype}")
            check(block.shape[0] == reader.channels >= 1, f"a block is {tuple(block.shape)}")
            check(0 < block.shape[1] <= BLOCK, f"a block is {tuple(block.shape)}")
            check(block.isfinite().all(), "a block is not finite")
            frames, last = frames + block.shape[1], block[:, -1:]
        check(frames == summary.frames, f"{frames} samples, {summary.frames} in the survey")
        check(not reader.exact or frames == reader.frames, f"{reader.frames} exact, {frames} read")
        check(np.isfinite(summary.level), f"its level is {summary.level}")
        expected = (frames, reader.rate, reader.channels)
    check(tuple(audio.info(path)) == expected, f"info says {audio.info(path)}, it is {expected}")
    check(torch.equal(audio.load_segment(path, frames - 1, 1), last), "its last sample differs")


def signal(rng: Random, name: str, samples: int, channels: int) -> np.ndarray:
    """Float64 samples [samples, channels]."""
    x = rng.uniform(-0.5, 0.5, (samples, channels))
    match name:
        case "clipping":
            x *= 100
        case "DC":
            x[:] = 0.5
        case "silence":
            x[:] = 0
        case "impulse":
            x[:] = 0
            x[:1] = 1
        case "denormals":
            x *= 1e-40
        case "one-silent":
            x[:, 0] = 0
        case "inverted":
            x[:, 1:] = -x[:, :1]
        case "NaN" | "infinite":
            x[-1:] = np.nan if name == "NaN" else np.inf
    return x


def encoded(rng: Random) -> tuple[str, bytes, str, bool | None]:
    """Suffix, content, description of a sound file, and whether it must be accepted."""
    form, suffix = pick(rng, list(FORMS))
    subtype, name = pick(rng, FORMS[form, suffix]), pick(rng, SIGNALS)
    rate = pick(rng, MP3_RATES if form == "MP3" else RATES)
    rate = 48_000 if subtype == "OPUS" else rate
    channels = int(rng.integers(1, 1 + MOST_CHANNELS.get(form, 32)))
    channels = pick(rng, (1, 2, channels)) if form != "MP3" else channels
    channels = min(channels, 2) if subtype == "IMA_ADPCM" else channels
    samples, file = pick(rng, LENGTHS), io.BytesIO()
    x = signal(rng, name, samples, channels)
    if subtype not in ("FLOAT", "DOUBLE"):
        x = np.nan_to_num(x, posinf=0.9)
    try:
        soundfile.write(file, x, rate, format=form, subtype=subtype)
    except (soundfile.LibsndfileError, ValueError):  # not every rate has every number of channels
        return encoded(rng)
    content = file.getvalue()
    if form == "OGG":
        content = with_checksums(content, serial=1)
    if form == "MP3" and rng.random() < 0.5:
        content = id3(rng.bytes(int(rng.integers(200)))) + content
    loud = name not in ("silence", "denormals", "NaN", "infinite") and samples >= 100
    valid = True if loud and (channels > 1 or name != "one-silent") else None
    if subtype in ("FLOAT", "DOUBLE") and samples and name in ("silence", "NaN", "infinite"):
        valid = False
    what = f"{form} {subtype}, {rate} Hz, {channels} x {samples} of {name}"
    return suffix, content, what, None if form in ("OGG", "MP3") and samples < 2000 else valid


def wav_header(rng: Random) -> tuple[bytes, str]:
    """A wav whose header states anything, and what it states."""
    tag = pick(rng, (1, 1, 3, 3, 0xFFFE, 0xFFFE, 2, 6, 7, 17, 0x50, 0x55, 0, 0xFFFF))
    bits = pick(rng, (8, 16, 24, 32, 64, 0, 1, 12, 255))
    channels = pick(rng, (1, 2, 6, 32, 0, 1024, 65_535))
    rate = pick(rng, (*RATES, 0, 1, 2**31, 2**32 - 1))
    align = pick(rng, (channels * bits // 8 % 65_536, 0, 1, 65_535))
    data = signal(rng, pick(rng, SIGNALS), pick(rng, LENGTHS), 1)
    content = data.astype(pick(rng, ("<f4", "<f8"))).tobytes() if tag == 3 else rng.bytes(len(data))
    hours = 36_000 * rate * max(align, 1)
    size = pick(
        rng, (len(content), len(content), hours % 2**32, 0, 1, *(s for _, s in STREAMED.values()))
    )
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * align % 2**32, align, bits)
    if tag == 0xFFFE:
        sub = pick(rng, (1, 3, 6, 0x55))
        form += struct.pack("<HHIH", 22, bits, pick(rng, (0, 3, 2**32 - 1)), sub)
        form += b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    before = b"".join(pick(rng, TAGS) for _ in range(int(rng.integers(3))))
    body = b"WAVE" + before + struct.pack("<4sI", b"fmt ", len(form)) + form
    body += struct.pack("<4sI", b"data", size) + content
    riff = pick(rng, (len(body), len(body), 0, 2**32 - 1))
    magic = pick(rng, (b"RIFF", b"RIFF", b"RIFF", b"RIFX", b"RF64"))
    what = f"tag {tag}, {bits} bits, {rate} Hz, {channels} channels, align {align}, size {size}"
    return magic + struct.pack("<I", riff) + body, what
