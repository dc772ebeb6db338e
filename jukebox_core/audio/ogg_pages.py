"""Find where the streams of an Ogg file begin and end, and whether the file is complete.

Ogg files may be joined (`cat`); libsndfile reads only the first stream.
"""

from __future__ import annotations

import re
from typing import BinaryIO, NamedTuple

from jukebox_core.audio.mpeg_frames import find_pattern, read_at

_HEADER = 27
_MAGIC = re.compile(b"OggS")
_FIRST, _LAST = 2, 4  # page flags: begin and end of a stream


class Link(NamedTuple):
    """One stream, or several interleaved ones, from the first page to the last."""

    start: int
    end: int
    ended: bool
    """Whether a page has the flag for the end of the stream."""
    cut: bool
    """Whether the file ends inside a page."""


def find_links(file: BinaryIO, start: int, end: int) -> list[Link]:
    """The streams between two positions of a file, in order.

    Args:
        file: opened for reading.
        start: where the first page begins.
        end: where the last one ends.
    """
    links: list[Link] = []
    beginning, ended, within = start, False, False
    position = start
    while position < end:
        page = read_at(file, position, _HEADER)
        if len(page) < _HEADER and page.startswith(b"OggS"):
            return [*links, Link(beginning, end, False, True)]
        if not page.startswith(b"OggS"):
            position = next(find_pattern(file, _MAGIC, position, end), end)
            continue
        lacing = file.read(page[26])
        size = _HEADER + page[26] + sum(lacing)
        if page[5] & _FIRST and within:
            links.append(Link(beginning, position, ended, False))
            beginning, ended, within = position, False, False
        if position + size > end:
            return [*links, Link(beginning, end, False, True)]
        within = within or not page[5] & _FIRST
        ended = ended or bool(page[5] & _LAST)
        position += size
    return [*links, Link(beginning, end, ended, False)]
