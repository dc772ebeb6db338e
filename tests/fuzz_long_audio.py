"""Small files that decode to many hours, and reading their beginnings in little memory."""

from __future__ import annotations

import contextlib
import functools
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from fuzz_cases import Random, check, mutated, pick
from fuzz_ogg import with_checksums
from sweep_flags import addresses

from jukebox_core import audio
from jukebox_core.audio.decoding import BLOCK
from jukebox_core.audio.stream import open_audio
from jukebox_core.separation.files import check_input

MEMORY = 160 << 20
"""Bytes that reading may take."""
MOST = 1 << 26
"""Values that are read: more than fit into these bytes."""
PAGES, PACKETS = 2000, 255
FLAC_BLOCK = 65_535


class Enough(Exception):
    """So much was read."""


def long_file(rng: Random) -> tuple[str, bytes, str]:
    """Suffix, content, description of a file."""
    level = pick(rng, (0, 0, 1000))
    kind = pick(rng, ("flac", "flac", "opus", "mp3"))
    match kind:
        case "flac":
            channels = pick(rng, (1, 2, 8))
            content, what = flac(2000 // channels, channels, level), f"{channels} x {level}"
        case "opus":
            content, what = opus(PAGES), "silence"
        case _:
            content, what = mp3(40_000), "silence"
    if rng.random() < 0.3:
        content, what = mutated(rng, content), f"{what}, bytes"
    return {"opus": "ogg"}.get(kind, kind), content, f"{kind} of hours, {what}"


def flac(blocks: int, channels: int, level: int, rate: int = 8000) -> bytes:
    """Blocks of one value, 16 bits."""
    samples = blocks * FLAC_BLOCK
    info = struct.pack(">HH", FLAC_BLOCK, FLAC_BLOCK) + bytes(6)
    info += (rate << 44 | channels - 1 << 41 | 15 << 36 | samples).to_bytes(8, "big") + bytes(16)
    constant = b"\0" + struct.pack(">h", level)
    frames = []
    for number in range(blocks):
        # Synchronisation, fixed block size stated below, everything else as in the header.
        head = b"\xff\xf8\x70" + bytes([channels - 1 << 4]) + chr(number).encode("utf-8")
        head += struct.pack(">H", FLAC_BLOCK - 1)
        frame = head + bytes([_remainder(head, 0x07, 8)]) + channels * constant
        frames.append(frame + struct.pack(">H", _remainder(frame, 0x8005, 16)))
    return b"fLaC" + b"\x80" + len(info).to_bytes(3, "big") + info + b"".join(frames)


@functools.cache
def opus(pages: int) -> bytes:
    """Packets of 120 ms without content, two bytes each."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0)
    tags = b"OpusTags" + struct.pack("<I", 0) + struct.pack("<I", 0)
    packet = b"\x1b\x02"  # two frames of 60 ms of SILK, of no bytes
    content = _page(2, 0, 0, [head]) + _page(0, 0, 1, [tags])
    for number in range(1, pages + 1):
        last = 4 * (number == pages)
        content += _page(last, number * PACKETS * 5760, number + 1, [packet] * PACKETS)
    return with_checksums(content, serial=1)


def _page(flags: int, granule: int, number: int, packets: list[bytes]) -> bytes:
    head = struct.pack("<BBqIIIB", 0, flags, granule, 1, number, 0, len(packets))
    return b"OggS" + head + bytes(map(len, packets)) + b"".join(packets)


def mp3(frames: int) -> bytes:
    """Silent frames of MPEG 2.5, 8 kHz and 8 kbit/s: 72 bytes for 576 samples."""
    return frames * (b"\xff\xe3\x18\xc0" + bytes(68))


def _remainder(data: bytes, polynomial: int, bits: int) -> int:
    """The cyclic redundancy check of FLAC."""
    value, top = 0, 1 << bits - 1
    for byte in data:
        value ^= byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value & top else 0)) & (2 * top - 1)
    return value


def read_start(path: Path) -> None:
    """Decode the beginning of a file in every way."""
    with little_memory():
        with open_audio(path) as reader:

            def stop(frames: int) -> None:
                if frames * reader.channels > MOST:
                    raise Enough

            with contextlib.suppress(Enough):
                check_input(reader, stop)
        with open_audio(path) as reader:
            first = list(itertools.islice(reader.blocks(), 3))
            for block in first:
                check(block.shape[0] == reader.channels, f"a block is {tuple(block.shape)}")
                check(0 < block.shape[1] <= BLOCK, f"a block is {tuple(block.shape)}")
                check(block.isfinite().all(), "a block is not finite")
            expected = reader.rate, reader.channels, reader.frames
            exact = reader.exact
        if exact:
            info = audio.info(path)
            check((info.rate, info.channels, info.frames) == expected, f"{info} and {expected}")
        start = first[0][:, :100]
        segment = audio.load_segment(path, 0, start.shape[1])
        check(torch.equal(segment, start), "its first samples differ")


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Inside the block, this process gets only so much more."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (addresses() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
