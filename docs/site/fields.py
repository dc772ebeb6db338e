"""What docstrings write for a terminal, put so that Markdown shows it alike in the reference.

Fields named one per line, `name: what it is`, become a list; a list gets the blank line before it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_FIELD = re.compile(r"^([a-z]\w*(?:, [a-z]\w*)*): (?=\S)")


class Fields(griffe.Extension):
    """Rewrites the docstrings of everything that is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called once per module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """The text with its fields as items, but for the first paragraph."""
    summary, *rest = text.split("\n\n")
    return "\n\n".join([summary, *map(_items, rest)])


def _items(paragraph: str) -> str:
    lines = paragraph.split("\n")
    shown: list[str] = []
    inside = False
    for line in lines:
        if found := _FIELD.match(line):
            names = ", ".join(f"`{name}`" for name in found[1].split(", "))
            if shown and not inside:
                shown.append("")
            line, inside = f"- {names}: {line[found.end() :]}", True
        elif line.startswith("- "):
            if shown and not shown[-1].startswith(("- ", " ")):
                shown.append("")
        elif inside and line and not line.startswith(" "):
            line = f"    {line}"
        shown.append(line)
    return "\n".join(shown)
