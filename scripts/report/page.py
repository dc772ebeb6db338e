"""The page around the report's sections: style, script, and a policy against network access."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts._results import REPORT_MARK

_HERE = Path(__file__).parent
STYLE = (_HERE / "report.css").read_text(encoding="utf-8")
"""The report's style sheet."""
SCRIPT = (_HERE / "report.js").read_text(encoding="utf-8")
"""The script of the players; without it or Web Audio, the browser's players appear."""

_CODE = f"\n{SCRIPT}"
_DIGEST = base64.b64encode(hashlib.sha256(_CODE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'; "
    "img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
)


def document(title: str, body: str) -> str:
    """Return a page that needs no other file.

    Its policy forbids the browser to load any, and to run any script but `SCRIPT`.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{REPORT_MARK}\n'
        f'<link rel="icon" href="data:,">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{_CODE}</script>\n</body>\n</html>\n"
    )


def value_of(values: Mapping[str, Any], name: str) -> str:
    """Return a value as HTML, or a question mark."""
    return html.escape(str(values.get(name, "?")))


def table(caption: str, head: str, rows: Iterable[str]) -> str:
    """Return a table that scrolls sideways; its caption, head cells and rows are HTML."""
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def head_cells(names: Iterable[str]) -> str:
    """Return the head cells of columns; the names are plain text."""
    return "".join(f"<th>{html.escape(name)}</th>" for name in names)


def missing(text: str) -> str:
    """Return a note that something is missing."""
    return f'<p class="missing">{html.escape(text)}</p>'
