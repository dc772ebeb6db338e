"""The documents as a site: built without a warning, loading nothing, saying what the code says."""

import ast
import contextlib
import functools
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browsing import DESKTOP, PHONE, Watched
from commands import blocks, calls, flags, known_flags
from conftest import made_once
from safetensors import safe_open

from jukebox_core.separation.settings import DEFAULTS, Settings
from scripts._methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PACKAGES = ("jukebox_core", "lqvae", "lass", "hybrid", "data")
CODE_LINK = re.compile(r"\[`([^`]+)`\]\(\.\./([\w/]+\.py)\)")
# Whatever a page may hold; anything else is a docstring's <...> taken for HTML.
TAGS = set(
    """html head meta title link script style body header nav main aside article footer div span p a
    b h1 h2 h3 h4 h5 h6 ul ol li table thead tbody tr th td code pre em strong img svg path br hr
    button input label form details summary dialog blockquote small kbd math mrow mi mo mn msup msub
    msubsup mfrac mtext munder mover munderover msqrt mtable mtr mtd mspace mstyle""".split()
)


def programs():
    """{name of a program: the file with its flags}."""
    files = [*(ROOT / "scripts").glob("[!_]*.py"), *(ROOT / "scripts").glob("*/program.py")]
    return {p.parent.name if p.stem == "program" else p.stem: p for p in sorted(files)}


def modules():
    """{dotted name: path} of the public modules."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if "._" not in name:
                found[name] = path
    return found


def public(path):
    """Names of the public classes and functions that a module defines: of all or of `__all__`."""
    found, listed = set(), None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
            found.add(node.name)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = set(ast.literal_eval(node.value))
    return found if listed is None else found & listed


def rows(text):
    """{first cell: the other cells} of a page's tables, backticks left out."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip("`"): [cell.strip("` ") for cell in row[1:]] for row in lines}


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id):
    """The built site. Warnings are errors: of links, anchors, references, docstrings, equations."""

    def build(folder):
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
        built = subprocess.run(
            [*command, "--config-file", DOCS / "site" / "mkdocs.yml"],
            env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
            capture_output=True,
            text=True,
        )
        assert built.returncode == 0, built.stderr
        assert "WARNING" not in built.stderr, built.stderr

    return made_once(tmp_path_factory, worker_id, "site", build)


class Reader(HTMLParser):
    """Collects a page's tags, identifiers and what it loads."""

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.loaded, self.equations = set(), set(), [], 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        self.ids.add(given.get("id"))
        self.equations += tag == "math"
        self.loaded += [given[key] for key in ("src", "srcset", "data", "poster") if given.get(key)]
        if tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.append(given["href"])


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.mark.slow
def test_every_page_is_built_with_what_it_needs_beside_it(site):
    pages = sorted(site.rglob("*.html"))
    assert {f"{page.stem}.html" for page in PAGES} <= {page.name for page in pages}
    for page in pages:
        found = read(page)
        assert not found.tags - TAGS, (page.name, found.tags - TAGS)
        for url in found.loaded:
            assert not re.match(r"\w+:|//", url) or url.startswith("data:"), (page, url)
            if page.name != "404.html":  # its links are those of the host's root
                assert (page.parent / url.partition("?")[0]).is_file(), (page, url)
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\([\"']?(?!data:|#)(\w+:)?//", text), style


@pytest.mark.slow
def test_every_module_and_all_that_is_public_in_it_is_in_the_reference(site):
    index = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name, path in modules().items():
        place = name.replace(".", "/") + ("/index" if path.name == "__init__.py" else "")
        page = site / "api" / f"{place}.html"
        assert page.is_file(), f"{name} has no page"
        missing = {f"{name}.{each}" for each in public(path)} - read(page).ids
        assert not missing, f"{page.name} lacks {', '.join(missing)}"
        assert f'href="{place}.html"' in index


@pytest.mark.slow
def test_equations_are_mathml(site):
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        written = text.count("$$\n") // 2 + len(re.findall(r"(?<!\$)\$[^$\n]+\$(?!\$)", text))
        assert read(site / f"{page.stem}.html").equations == written, page.name


@pytest.mark.slow
def test_every_command_has_its_flags(site):
    page = (site / "commands.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    scripts = set(programs())
    assert scripts <= read(site / "commands.html").ids
    for name in scripts:
        for flag in known_flags(f"scripts.{name}") - {"--help"}:
            assert flag in text or not flag.strip("-"), f"{name}: {flag}"


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_in_a_browser(site, browser, size):
    handler = functools.partial(_Quiet, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    try:
        for name in ("index", "method", "training", "commands", "api/lqvae/sums"):
            watched = Watched(browser.new_page(viewport=size))
            watched.page.goto(f"{home}{name}.html", wait_until="networkidle")
            assert not watched.complaints, (name, watched.complaints)
            away = [url for url in watched.requests if not url.startswith((home, "data:", "blob:"))]
            assert not away, name
            width = watched.page.evaluate("document.documentElement.scrollWidth")
            assert width <= size["width"], f"{name} is wider than the window"
            if name == "method":
                shown = watched.page.locator(".equation math").all()
                assert len(shown) > 30 and all(x.bounding_box()["height"] > 15 for x in shown)
            watched.page.close()
    finally:
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_every_equation_names_what_computes_it():
    known = {f"{path.relative_to(ROOT)}": set(_symbols(path)) for path in modules().values()}
    counted = 0
    for page in PAGES:
        paragraphs = page.read_text(encoding="utf-8").split("\n\n")
        for before, after in zip(paragraphs, paragraphs[1:], strict=False):
            if before.startswith("$$") and not after.startswith("$$"):
                links = CODE_LINK.findall(after)
                assert any(name in known[file] for name, file in links), (page.name, before)
                counted += 1
    assert counted > 35


def _symbols(path):
    """Classes, functions and methods of a module, and its constants."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
            inside = getattr(node, "body", [])
            yield from (f"{node.name}.{x.name}" for x in inside if isinstance(x, ast.FunctionDef))


def test_links_lead_somewhere_on_a_git_host():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "#")):
                assert (DOCS / target.partition("#")[0]).exists(), (page.name, target)


def test_the_page_of_commands_knows_them_all():
    listed = rows((DOCS / "commands.md").read_text(encoding="utf-8"))
    found = {}
    for name, path in programs().items():
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0]
        link = path.relative_to(ROOT).as_posix()
        found[f"[`{name}`](../{link})"] = [" ".join(about.split())]
    assert {name: listed.get(name) for name in found} == found


def test_the_commands_in_docstrings_have_these_flags():
    for path in programs().values():
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        for module, words in calls(about):
            unknown = flags(words) - known_flags(module)
            assert not unknown, f"{path.name}: {module} has no {', '.join(unknown)}"


def test_the_presets_are_those_of_the_code():
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    (code,) = blocks(DOCS / "training.md", "python")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "training.md", "exec"), {})
    lines = said.getvalue().splitlines()
    half = len(lines) // 2
    assert half == 6
    assert "\n".join(lines[:half]) in page and "\n".join(lines[half:]) in page


def test_the_settings_have_these_defaults():
    page = (DOCS / "inference.md").read_text(encoding="utf-8")
    table = rows(page.partition("## Settings")[2].partition("\n## ")[0])
    shown = {flag: cells[0] for flag, cells in table.items() if flag.startswith("--")}
    names = {name: f"--{name.replace('_', '-')}" for name in vars(Settings())}
    assert set(shown) == set(names.values())
    values = {name: set() for name in names}
    for defaults in (DEFAULTS, *(method.resolve(Settings()) for method in METHODS.values())):
        for name, value in defaults.explicit().items():
            values[name].add(str(value))
    for name, flag in names.items():
        assert set(re.findall(r"[^`() ]+", shown[flag])) - {"auto"} == values[name], name


def test_the_files_hold_what_the_page_says(tiny_models, tiny_data):
    page = (DOCS / "formats.md").read_text(encoding="utf-8")

    def said(title):
        part = page.partition(f"# {title}\n")[2].partition("\n## ")[0]
        assert part, title
        return set(re.findall(r"`([^`]+)`", part))

    family = tiny_models / "linearisation"
    for name in ("counts", "sums"):
        with safe_open(family / f"{name}.safetensors", "np") as file:
            keys = {*file.keys(), *file.metadata()}
        assert keys <= said(f"{name}.safetensors"), name
    for run in ("vqvae", "prior_bass"):
        meta = json.loads((family / run / "meta.json").read_text(encoding="utf-8"))
        assert set(meta) <= said("meta.json"), run
    with safe_open(family / "vqvae" / "weights.safetensors", "np") as file:
        names = {re.sub(r"\.\d+\.", ".L.", name, count=1) for name in file.keys()}  # noqa: SIM118
    assert {n for n in names if n.startswith("bottlenecks")} <= said("weights.safetensors")
    manifest = json.loads((tiny_data / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest) | set(manifest["tracks"][0]) <= said("manifest.json")


def test_fields_and_lists_of_docstrings_become_lists(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "site"))
    from fields import listed

    text = "All of it.\n\nSome words.\nsize: how large.\nfirst, second: codes,\n    int64."
    expected = (
        "All of it.\n\nSome words.\n\n- `size`: how large.\n- `first`, `second`: codes,\n    int64."
    )
    assert listed(text) == expected
    assert listed("x: [B, T].") == "x: [B, T]."
    assert listed("A.\n\nForms:\n- one\n- two") == "A.\n\nForms:\n\n- one\n- two"
    unchanged = "A.\n\nArgs:\n    size: how large.\n    other: more."
    assert listed(unchanged) == unchanged
