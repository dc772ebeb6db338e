"""Adds to docs/*.md the reference, the flags of all commands and equations as MathML.

On the site, links to files outside docs/ become links to the reference, to the commands or to a
copy of the file. On a Git host the pages need none of this.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flags import commands
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LOG = get_plugin_logger(__name__)
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

PACKAGES = ("jukebox_core", "lqvae", "lass", "hybrid", "data")
COPIED = ("images/*.png", "images/*.svg", "*.ipynb", "hybrid/*weights/README.md")
"""Files outside docs/ that pages show or link to."""

_LINK = re.compile(r"\[(`?)([^\]`]+)\1\]\(\.\./([\w/.]+)\)")
_MATH = re.compile(
    r'<(span|div) class="arithmatex">\s*\\(?:\(|\[)(.*?)\\(?:\)|\])\s*</\1>', re.DOTALL
)
_CODE = re.compile(r"<code>[^<\n]*</code>")
_FLAG = re.compile(r"--[\w.-]+")


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every public module, packages before their modules."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py"), key=_order):
            name = dotted(path.relative_to(ROOT))
            if not any(part.startswith("_") for part in name.split(".")):
                yield name, path


def _order(path: Path) -> tuple[Any, ...]:
    """Sort key: a package's own page, then its modules, then its subpackages."""
    parts = path.relative_to(ROOT).parts
    inside = path.name == "__init__.py"
    return (*((1, part) for part in parts[:-1]), (0, "" if inside else path.name))


def dotted(path: Path) -> str:
    """Dotted module name of a path relative to the root."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def page_of(name: str) -> str:
    """Path of a module's page in the reference."""
    inside = (ROOT.joinpath(*name.split(".")) / "__init__.py").is_file()
    return f"api/{name.replace('.', '/')}{'/index' if inside else ''}.md"


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation."""
    tree: list[Any] = ["api/index.md"]
    levels = {"": tree}
    for name, _ in modules():
        parent, _, own = name.rpartition(".")
        page = page_of(name)
        if page.endswith("/index.md"):
            levels[name] = [page]
            levels[parent].append({own: levels[name]})
        else:
            levels[parent].append({own: page})
    assert config.nav is not None
    config.nav.append({"Reference": tree})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference, the style sheet, and the copied files."""
    rows = ["# Reference", "", "All public modules, documented by their docstrings.", ""]
    rows += ["| module | |", "|---|---|"]
    for name, path in modules():
        text = f"# {name}\n\n::: {name}\n"
        files.append(File.generated(config, page_of(name), content=text))
        rows.append(f"| [`{name}`]({page_of(name).removeprefix('api/')}) | {summary(path)} |")
    files.append(File.generated(config, "api/index.md", content="\n".join(rows) + "\n"))
    files.append(File.generated(config, "site.css", abs_src_path=str(HERE / "site.css")))
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside docs/ into links within the site; add the commands' flags."""
    markdown = _LINK.sub(_led_on, markdown)
    if page.file.src_uri == "commands.md":
        markdown += "\n" + commands()
    return markdown


def _led_on(link: re.Match[str]) -> str:
    tick, text, target = link.groups()
    path = Path(target)
    if path.parts[0] == "scripts" and path.suffix == ".py":
        name = path.parent.name if path.stem == "program" else path.stem
        return f"[{tick}{text}{tick}](commands.md#{name})"
    if path.parts[0] in PACKAGES and path.suffix == ".py":
        module = dotted(path)
        if text == module:
            return f"[{tick}{text}{tick}]({page_of(module)})"
        return f"[{tick}{text}{tick}][{module}.{text}]"
    return f"[{tick}{text}{tick}]({target})"


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Convert equations to MathML, which needs no script, and keep flags on one line."""
    content = _MATH.sub(_mathml, content)
    return _CODE.sub(lambda code: _FLAG.sub(r'<span class="flag">\g<0></span>', code[0]), content)


def _mathml(equation: re.Match[str]) -> str:
    block = equation[1] == "div"
    shown = convert(html.unescape(equation[2]).strip(), display="block" if block else "inline")
    if "\\" in shown:
        LOG.warning("unknown command in an equation: %s", equation[2].strip())
    return f'<div class="equation">{shown}</div>' if block else shown
