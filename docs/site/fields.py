"""Converts docstrings, which are written for a terminal, to Markdown for the reference.

Fields, one per line as `name: description`, become a list; a blank line is inserted before a list.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_FIELD = re.compile(r"^([a-z]\w*(?:, [a-z]\w*)*): (?=\S)")


class Fields(griffe.Extension):
    """Rewrites the docstrings of all loaded objects."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring; called once per module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """Turn the fields of a text into list items, except in the first paragraph."""
    summary, *rest = text.split("\n\n")
    return "\n\n".join([summary, *map(_items, rest)])


def _items(paragraph: str) -> str:
    lines = paragraph.split("\n")
    shown: list[str] = []
    inside = False
    for line in lines:
        if match := _FIELD.match(line):
            names = ", ".join(f"`{name}`" for name in match[1].split(", "))
            if shown and not inside:
                shown.append("")
            line, inside = f"- {names}: {line[match.end() :]}", True
        elif line.startswith("- "):
            if shown and not shown[-1].startswith(("- ", " ")):
                shown.append("")
        elif inside and line and not line.startswith(" "):
            line = f"    {line}"
        shown.append(line)
    return "\n".join(shown)
