"""Find the frames of an MPEG audio file (mp3, mp2), as audio players do.

An mp3 has no header for the whole file. An info frame (Xing, LAME) may state the number of frames;
without one, decoders estimate the length from the size of the file, which is wrong for a variable
bit rate. Files may also be joined, cut, tagged or padded. This module reads the header of every
frame, without decoding it, so that the decoder gets only the frames.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from io import RawIOBase
from typing import BinaryIO, NamedTuple

_SYNC = re.compile(rb"\xff(?=[\xe2-\xff][\x10-\xef])")
_BIT_RATES = {  # kbit/s by (MPEG-1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
_HEADER = 4
_PEEK = 48
"""Bytes of a frame that show whether it is an info frame."""
_START = 1 << 16
"""Bytes within which the first frame must begin."""
_NEAR = 1 << 12
"""Bytes within which another frame must begin if no valid frame follows one directly."""
_CHAIN = 3
"""Number of frames that must follow a frame of another kind than the last."""


class _Kind(NamedTuple):
    """Properties that all frames of one recording share."""

    version: int
    layer: int
    rate: int
    channels: int


class _Header(NamedTuple):
    kind: _Kind
    size: int
    """Bytes of the frame, including its header."""
    samples: int
    flags: tuple[int, int] | None
    """Header bits that one encoder never changes: checksum, copyright, original, emphasis."""


@dataclass
class Stretch:
    """Frames of one encoder, for one decoder."""

    kind: _Kind
    spans: list[list[int]] = field(default_factory=list)
    """[start, end) in the file: the frames, without the bytes between them."""
    frames: int = 0
    """Number of complete audio frames."""
    first: int = 0
    """Size of the first frame in bytes."""
    samples: int = 0
    """Samples of a frame, per channel."""
    info: bytes = b""
    """The info frame, if there is one: the first frame, which holds no audio."""
    cut: bool = False
    """Whether a frame is incomplete."""
    skipped: int = 0
    """Bytes before or between the frames that belong to no tag."""

    @property
    def size(self) -> int:
        """Size of all frames in bytes."""
        return sum(end - start for start, end in self.spans)

    @property
    def stated(self) -> int:
        """Number of frames according to the info frame; 0 if it states none."""
        return self._info_field(1, 8)

    @property
    def missing(self) -> int:
        """Number of frames that the info frame states but the file lacks."""
        short = self.stated - self.frames
        if short == 1 and not self.cut and self._info_field(2, 12) <= self.size:
            return 0  # some encoders count the info frame
        return max(0, short)

    def _info_field(self, flag: int, place: int) -> int:
        """A number in the info frame; 0 if its flag is not set."""
        at = _info_at(self.info, self.kind)
        if at is None or not self.info[at + 7] & flag:
            return 0
        return int.from_bytes(self.info[at + place : at + place + 4], "big")

    def add(self, position: int, size: int) -> None:
        """Append the bytes of a frame."""
        if self.spans and self.spans[-1][1] == position:
            self.spans[-1][1] = position + size
        else:
            self.spans.append([position, position + size])

    def drop_last(self, size: int) -> None:
        """Remove the frame that was added last, because it is incomplete."""
        self.spans[-1][1] -= size
        if self.spans[-1][0] == self.spans[-1][1]:
            self.spans.pop()
        self.frames -= 1
        self.cut = True

    def corrected_info(self) -> bytes:
        """The info frame; if its numbers of frames and bytes are wrong, they are corrected.

        A corrected frame states no padding at the end, because the padding that the decoder would
        remove is either missing or in the middle.
        """
        at = _info_at(self.info, self.kind)
        if at is None or not self.stated or not (self.missing or self.stated < self.frames):
            return self.info
        info = bytearray(self.info)
        flags, position = info[at + 7], at + 8
        struct.pack_into(">I", info, position, self.frames)
        position += 4
        if flags & 2:
            struct.pack_into(">I", info, position, min(self.size, 2**32 - 1))
            position += 4
        position += 100 * bool(flags & 4) + 4 * bool(flags & 8)
        if len(info) >= position + 24:  # LAME's extension: the last 12 of 24 bits are the padding
            info[position + 22] &= 0xF0
            info[position + 23] = 0
        return bytes(info)

    def claimed(self) -> int:
        """A file size so large that no decoder estimates too few frames from it."""
        if self.stated:
            return self.size
        return max(self.size, (self.first + 1) * (self.frames + 16) * 51 // 50)


def find_stretches(
    file: BinaryIO, start: int, end: int, *, scattered: bool = False
) -> list[Stretch]:
    """All frames between two positions of a file; an empty list if there is no MPEG audio.

    Frames in free format (without a bit rate) are not found.

    Args:
        file: opened for reading.
        start: where the search begins; the first frame may be up to 64 KiB later.
        end: where the audio ends, before any tags at the end of the file.
        scattered: other data may lie between the frames, as in other container formats.
    """
    stretches: list[Stretch] = []
    reached: int | None = None
    for position, header, data in _frames(file, start, end, scattered):
        if position < 0:
            stretches[-1].drop_last(header.size)
            reached = None
            continue
        at = _info_at(data, header.kind)
        if not stretches or at is not None or stretches[-1].kind != header.kind:
            stretches.append(Stretch(header.kind, first=header.size, samples=header.samples))
        stretch = stretches[-1]
        if reached is not None and position > reached and not _is_tag(file, reached):
            stretch.skipped += position - reached
        reached = position + header.size
        if reached > end:
            stretch.cut = True
            continue
        stretch.add(position, header.size)
        if at is None:
            stretch.frames += 1
        else:
            stretch.info = read_at(file, position, header.size)
    return [stretch for stretch in stretches if stretch.frames]


def _is_tag(file: BinaryIO, position: int) -> bool:
    return read_at(file, position, 11).startswith((b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN"))


def _frames(
    file: BinaryIO, start: int, end: int, scattered: bool
) -> Iterator[tuple[int, _Header, bytes]]:
    """(position, header, first bytes) of every frame; position -1 withdraws the frame before."""
    position: int | None = _first(file, start, end, scattered)
    last: _Header | None = None
    while position is not None and position + _HEADER <= end:
        data = read_at(file, position, _PEEK)
        header = _parse(data)
        expected = header is not None and (last is None or header.kind == last.kind)
        if header is not None and not expected:
            expected = _followed(file, position, header, end, _CHAIN, ends=True)
        if header is None or not expected:
            assert last is not None
            following = _next(file, position, end, last)
            if following is not None and following < position:
                yield -1, last, b""
            position = following
            if position is not None:
                last = _parse(read_at(file, position, _HEADER))
            continue
        yield position, header, data
        last = header if _info_at(data, header.kind) is None else header._replace(flags=None)
        position += header.size


def _first(file: BinaryIO, start: int, end: int, scattered: bool) -> int | None:
    """Position of the first frame: others follow it, or a few frames fill the file."""
    for count, gap, ends in ((_CHAIN, 0, False), (8, _NEAR, False), (_CHAIN, 0, True)):
        if gap and not scattered:
            continue
        for position in find_pattern(file, _SYNC, start, min(start + _START, end)):
            header = _parse(read_at(file, position, _HEADER))
            if header is None or (ends and position + header.size >= end):
                continue
            if _followed(file, position, header, end, count, gap, ends):
                return position
    return None


def _next(file: BinaryIO, position: int, end: int, last: _Header) -> int | None:
    """Find the next frame if none begins at `position`, the end of the last one.

    It may begin inside the last frame, which is then incomplete.
    """
    alone: tuple[int, int] | None = None
    for place in find_pattern(file, _SYNC, position - last.size + _HEADER, end):
        header = _parse(read_at(file, place, _HEADER))
        if header is None:
            continue
        alike = header.kind == last.kind
        chain = 1 if alike and place >= position else _CHAIN
        if _followed(file, place, header, end, chain, ends=True):
            return alone[0] if alone is not None and _near(alone[1], place) else place
        if alike and last.flags in (header.flags, None) and place >= position:
            if alone is not None and _near(alone[1], place):
                return alone[0]
            if alone is None or place > alone[1]:
                alone = place, place + header.size
    return None


def _near(end: int, place: int) -> bool:
    return end <= place <= end + _NEAR


def _followed(
    file: BinaryIO,
    position: int,
    header: _Header,
    end: int,
    count: int,
    gap: int = 0,
    ends: bool = False,
) -> bool:
    """Whether `count` frames of the same kind follow.

    gap: bytes allowed between two frames. ends: fewer frames are enough at the end of the audio.
    """
    for number in range(count):
        position += header.size
        if position >= end:
            return ends and (position == end or number > 0)
        nearby = find_pattern(file, _SYNC, position, min(position + gap, end))
        for place in itertools.chain([position], nearby):
            follower = _parse(read_at(file, place, _HEADER))
            if follower is not None and follower.kind == header.kind:
                position, header = place, follower
                break
        else:
            return False
    return True


def read_at(file: BinaryIO | RawIOBase, position: int, size: int) -> bytes:
    """Read `size` bytes from `position` on; fewer at the end of the file."""
    file.seek(position)
    return file.read(size) or b""


def find_pattern(
    file: BinaryIO | RawIOBase, pattern: re.Pattern[bytes], start: int, stop: int
) -> Iterator[int]:
    """Positions from start to stop where a pattern of at most eight bytes begins."""
    while start < stop:
        size = min(1 << 16, stop - start)
        for match in pattern.finditer(read_at(file, start, size + 7)):
            if match.start() < size:
                yield start + match.start()
        start += size


def _parse(data: bytes) -> _Header | None:
    """Parse the header of a frame from its first bytes."""
    if len(data) < _HEADER or data[0] != 0xFF:
        return None
    return _parse_fields(data[1], data[2], data[3] >> 6 == 3, data[3] & 15)


@cache
def _parse_fields(second: int, third: int, mono: bool, rights: int) -> _Header | None:
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bit_rate, rate = third >> 4, third >> 2 & 3
    if second < 0xE0 or version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    first_version = version == 3
    bits = 1000 * _BIT_RATES[first_version, layer][bit_rate - 1]
    hertz = _RATES[rate] >> (0 if first_version else 1 if version == 2 else 2)
    padding = third >> 1 & 1
    kind, flags = _Kind(version, layer, hertz, 1 if mono else 2), (second & 1, rights)
    if layer == 1:
        return _Header(kind, 4 * (12 * bits // hertz + padding), 384, flags)
    samples = 1152 if layer == 2 or first_version else 576
    return _Header(kind, samples // 8 * bits // hertz + padding, samples, flags)


def _info_at(data: bytes, kind: _Kind) -> int | None:
    """Position of the Xing or Info tag in a frame's first bytes; None in an audio frame."""
    if kind.layer != 3:
        return None
    stereo = kind.channels == 2
    at = _HEADER + ((32 if stereo else 17) if kind.version == 3 else (17 if stereo else 9))
    for place in (at, at + 2):  # at + 2: after a checksum
        if data[place : place + 4] in (b"Xing", b"Info") and not any(data[place + 4 : place + 7]):
            return place
    return None
