"""Ogg pages with the right checksums, so that decoders look at what is in them."""

from __future__ import annotations

import struct


def with_checksums(content: bytes, serial: int | None = None) -> bytes:
    """An Ogg file with the checksums of its pages right; its streams get the serial number."""
    pages = content.split(b"OggS")
    for n, page in enumerate(pages):
        if n and len(page) >= 23:
            own = page[10:14] if serial is None else struct.pack("<I", serial)
            blank = b"OggS" + page[:10] + own + page[14:18] + bytes(4) + page[22:]
            pages[n] = blank[4:22] + struct.pack("<I", _checksum(blank)) + blank[26:]
    return b"OggS".join(pages)


def _checksum(page: bytes) -> int:
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ _TABLE[value >> 24 ^ byte]
    return value


def _entry(value: int) -> int:
    for _ in range(8):
        value = value << 1 & 0xFFFFFFFF ^ (0x04C11DB7 if value >> 31 else 0)
    return value


_TABLE = [_entry(number << 24) for number in range(256)]
