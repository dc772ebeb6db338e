"""Imports go one way: jukebox_core <- lqvae, lass <- hybrid <- scripts, data."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "jukebox_core": set(),
    "lqvae": {"jukebox_core"},
    "lass": {"jukebox_core"},
    "hybrid": {"jukebox_core", "lqvae", "lass"},
    "data": {"jukebox_core", "lqvae", "lass", "hybrid"},
    "scripts": {"jukebox_core", "lqvae", "lass", "hybrid", "data"},
}


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = imported(path) & set(MAY_IMPORT)
        assert ours <= MAY_IMPORT[package] | {package}, f"{path} imports {ours}"


def test_no_method_name_decides_inside_the_core():
    """The methods differ by the objects composed: the core never compares with a method's name."""
    methods = {"lqvae", "lass", "hybrid"}
    for path in sorted((ROOT / "jukebox_core").rglob("*.py")):
        if path.name.startswith("upstream"):
            continue  # reads the file formats of the original systems, which do differ
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare | ast.Dict | ast.Match):
                strings = {
                    n.value
                    for n in ast.walk(node)
                    if isinstance(n, ast.Constant) and isinstance(n.value, str)
                }
                assert not strings & methods, f"{path}:{node.lineno} names a method"
