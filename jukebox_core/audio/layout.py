"""Find the audio in a file by its content.

Tags and zeros before the audio are skipped. Sizes in headers are compared with the file's size,
because libsndfile reads a truncated file without an error.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jukebox_core.audio.mpeg_frames import Stretch, find_stretches, read_at
from jukebox_core.audio.ogg_pages import find_links

_W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_MPEG_CODECS = (0x50, 0x55)
"""Format codes of a wav: MPEG layers 1 and 2, MP3."""
_UNKNOWN_32 = 0xFFFFFFFF
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""First box names (bytes 4 to 8) of MP4 and QuickTime files, which may hold MPEG frames."""


class Part(NamedTuple):
    """Bytes for one decoder."""

    spans: tuple[tuple[int, int], ...]
    """[start, end) in the file; the decoder reads them joined."""
    head: bytes = b""
    """Bytes put before the spans, such as a corrected header."""
    claimed: int = 0
    """Size reported to the decoder, if larger than the real one."""


class Layout(NamedTuple):
    """The parts of a file, in order."""

    parts: tuple[Part, ...]
    audio: bool
    """Whether libsndfile reads the format."""
    final: bool = False
    """Whether ffmpeg must not be tried if libsndfile fails."""
    warning: str | None = None
    """Damage to a file that still plays."""


def find_layout(file: BinaryIO, path: Path) -> Layout:
    """Read a file's headers, and the headers of all frames of an mp3.

    Args:
        file: opened for reading.
        path: the file's name in error messages.

    Raises:
        ValueError: The file is shorter than its header states.
    """
    size = file.seek(0, 2)
    start = _skip_tags(file, size)
    magic = read_at(file, start, 12)
    form = magic[:4]
    if form in (b"RIFF", b"RIFX", b"RF64", b"BW64") and magic[8:] == b"WAVE":
        if _wav_codec(file, start, size) in _MPEG_CODECS:
            return _mpeg_in_wav(file, path, start, size)
        return _sized(file, path, _wav_data(file, start, size), start, size)
    if form == b"FORM" and magic[8:] in (b"AIFF", b"AIFC"):
        return _sized(file, path, _aiff_data(file, start, size), start, size)
    if read_at(file, start, 16) == _W64:
        return _sized(file, path, _w64_data(file, start, size), start, size)
    if form == b"caff":
        return _sized(file, path, _caf_data(file, start, size), start, size)
    if form in (b".snd", b"dns."):
        return _sized(file, path, _au_data(file, start, size), start, size)
    if form == b"fLaC":
        return Layout((_whole(start, _before_tags(file, start, size)),), audio=True, final=True)
    if form == b"OggS":
        return _ogg(file, path, start, size)
    if form not in (b"RIFF", b"FORM", b"RIFX") and read_at(file, 4, 4) not in _BOXES:
        end = _before_tags(file, start, size)
        # Videos hold MPEG frames among other data; parts of AAC look like MPEG frames.
        aac = magic[:1] == b"\xff" and magic[1] & 0xF6 == 0xF0
        named = path.suffix.lower() in (".mp3", ".mp2", ".mpga")
        stretches = find_stretches(file, start, end, scattered=named and not aac)
        if stretches:
            return _mpeg(path, stretches)
    return Layout((_whole(start if start < size else 0, size),), audio=False)


def _whole(start: int, end: int) -> Part:
    return Part(((start, end),))


# Tags


def _skip_tags(file: BinaryIO, size: int) -> int:
    """Where ID3v2 and APE tags and zeros at the beginning end."""
    position = 0
    while True:
        head = read_at(file, position, 32)
        if head[:3] == b"ID3" and len(head) > 10 and max(head[6:10]) < 0x80:
            length = 0
            for byte in head[6:10]:  # seven bits each
                length = length << 7 | byte
            position += 10 + length + (10 if head[5] & 0x10 else 0)
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            position += 32 + int.from_bytes(head[12:16], "little")
        elif head[:1] == b"\0":
            position = _skip_zeros(file, position)
        else:
            return min(position, size)


def _skip_zeros(file: BinaryIO, position: int) -> int:
    file.seek(position)
    while block := file.read(1 << 16):
        rest = block.lstrip(b"\0")
        position += len(block) - len(rest)
        if rest:
            break
    return position


def _before_tags(file: BinaryIO, start: int, end: int) -> int:
    """Where ID3, APE and Lyrics3 tags at the end begin."""
    while True:
        tail = read_at(file, max(start, end - 160), min(160, end - start))
        length = 0
        if tail[-128:-125] == b"TAG":
            length = 128
        elif tail[-32:-24] == b"APETAGEX":
            size, flags = struct.unpack("<I4xI", tail[-20:-8])
            length = size + (32 if flags >> 31 else 0)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            length = 15 + int(tail[-15:-9])
        if not 0 < length <= end - start:
            return end
        end -= length


# Formats whose header states the size of the data


class _Data(NamedTuple):
    """The audio data of a file according to its header."""

    position: int
    """Where the data begins."""
    size: int | None
    """Bytes, as the header states; None if it does not."""
    field: tuple[int, str]
    """Position and `struct` format of the size in the header."""
    written: int = 0
    """Bytes that the size counts in addition to the data."""


def _sized(file: BinaryIO, path: Path, data: _Data | None, start: int, size: int) -> Layout:
    if data is None:
        return Layout((_whole(start, size),), audio=True)
    rest = max(0, size - data.position)
    if data.size is not None:
        if data.size > rest:
            raise ValueError(
                f"{path} is damaged (truncated): it has {rest:,} of the {data.size:,} bytes of "
                "audio that its header states; copy it again"
            )
        return Layout((_whole(start, size),), audio=True)
    head = bytearray(read_at(file, start, data.position - start))
    at, form = data.field
    written = min(rest + data.written, (1 << 8 * struct.calcsize(form)) - 1)
    struct.pack_into(form, head, at - start, written)
    return Layout((Part(((data.position, size),), head=bytes(head)),), audio=True)


def _streamed(size: int) -> bool:
    """Whether a 32-bit size is a placeholder, written before the real size was known.

    Most programs write 0 or the largest number; SoX and arecord write about 2 GiB.
    """
    return size == 0 or size >= 0xFFFF0000 or 0x7FFF0000 <= size <= 0x80000100


def _chunks(
    file: BinaryIO, position: int, size: int, header: str, padding: int, own: int = 0
) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of the content, size of the content) of each chunk.

    own: bytes of the chunk's header that its stated size includes.
    """
    length = struct.calcsize(header)
    for _ in itertools.repeat(None, 10_000):
        head = read_at(file, position, length) if position < size else b""
        if len(head) < length:
            return
        name, content = struct.unpack(header, head)
        content -= own
        yield name, position + length, content
        if content < 0:
            return
        position += length + content + -(length + content) % padding


def _wav_data(file: BinaryIO, start: int, size: int) -> _Data | None:
    order = ">" if read_at(file, start, 4) == b"RIFX" else "<"
    long: tuple[int, int] | None = None
    for name, position, content in _chunks(file, start + 12, size, order + "4sI", 2):
        if name == b"ds64" and len(stated := read_at(file, position + 8, 8)) == 8:
            long = position + 8, struct.unpack(order + "Q", stated)[0]
        elif name == b"data":
            if long is not None and content == _UNKNOWN_32:
                return _Data(position, long[1] or None, (long[0], order + "Q"))
            empty = content == 0 and _only_chunks(file, position, size, order)
            unknown = _streamed(content) and not empty and size - position != content
            return _Data(position, None if unknown else content, (position - 4, order + "I"))
    return None


def _wav_codec(file: BinaryIO, start: int, size: int) -> int:
    for name, position, _ in _chunks(file, start + 12, size, "<4sI", 2):
        if name == b"fmt ":
            return int.from_bytes(read_at(file, position, 2), "little")
    return 0


def _mpeg_in_wav(file: BinaryIO, path: Path, start: int, size: int) -> Layout:
    data = _wav_data(file, start, size)
    if data is not None:
        _sized(file, path, data, start, size)
        end = size if data.size is None else data.position + data.size
        stretches = find_stretches(file, data.position, end)
        if stretches:
            return _mpeg(path, stretches)
    return Layout((_whole(start, size),), audio=True)


def _only_chunks(file: BinaryIO, position: int, size: int, order: str) -> bool:
    """Whether only chunks follow, up to the end of the file: then the data really is empty."""
    end = position
    for name, begin, content in _chunks(file, position, size, order + "4sI", 2):
        if not (name.isascii() and name.decode("ascii").isprintable()):
            return False
        end = begin + content
    return size - 1 <= end <= size


def _aiff_data(file: BinaryIO, start: int, size: int) -> _Data | None:
    for name, position, content in _chunks(file, start + 12, size, ">4sI", 2):
        if name == b"SSND":
            unknown = _streamed(content) and size - position != content
            return _Data(position, None if unknown else content, (position - 4, ">I"))
    return None


def _w64_data(file: BinaryIO, start: int, size: int) -> _Data | None:
    for name, position, content in _chunks(file, start + 40, size, "<16sq", 8, own=24):
        if name == _W64_DATA:
            stated = 0 < content < 1 << 62
            return _Data(position, content if stated else None, (position - 8, "<q"), written=24)
    return None


def _caf_data(file: BinaryIO, start: int, size: int) -> _Data | None:
    for name, position, content in _chunks(file, start + 8, size, ">4sq", 1):
        if name == b"data":
            return _Data(position, content if content >= 0 else None, (position - 8, ">q"))
    return None


def _au_data(file: BinaryIO, start: int, size: int) -> _Data | None:
    order = ">" if read_at(file, start, 4) == b".snd" else "<"
    head = read_at(file, start + 4, 8)
    if len(head) < 8:
        return None
    offset, content = struct.unpack(order + "II", head)
    unknown = content == _UNKNOWN_32 or content == 0
    return _Data(start + offset, None if unknown else content, (start + 8, order + "I"))


# Formats made of frames


def _ogg(file: BinaryIO, path: Path, start: int, size: int) -> Layout:
    links = find_links(file, start, _before_tags(file, start, size))
    last = links[-1]
    if last.cut:
        raise ValueError(
            f"{path} is damaged (truncated): it ends inside an Ogg page; copy it again"
        )
    warning = None
    if not all(link.ended for link in links):
        warning = f"{path} may be truncated: the end of an Ogg stream is missing"
    return Layout(tuple(_whole(link.start, link.end) for link in links), True, warning=warning)


def _mpeg(path: Path, stretches: list[Stretch]) -> Layout:
    parts, seconds, missing = [], 0.0, 0.0
    for stretch in stretches:
        spans = tuple((start, end) for start, end in stretch.spans)
        head = stretch.corrected_info()
        if head != stretch.info:
            start, end = spans[0]
            spans = ((start + len(head), end), *spans[1:])
        else:
            head = b""
        parts.append(Part(spans, head=head, claimed=stretch.claimed()))
        seconds += stretch.frames * stretch.samples / stretch.kind.rate
        missing += stretch.missing * stretch.samples / stretch.kind.rate
    warning = None
    skipped = sum(stretch.skipped for stretch in stretches)
    if missing:
        warning = (
            f"{path} is damaged (truncated): it has {seconds:.2f} of {seconds + missing:.2f} s"
        )
    elif any(stretch.cut for stretch in stretches):
        warning = f"{path} is damaged (truncated): the last frame is incomplete"
    elif skipped:
        warning = f"{path} is damaged: {skipped:,} bytes between its frames are not audio"
    return Layout(tuple(parts), audio=True, warning=warning)
