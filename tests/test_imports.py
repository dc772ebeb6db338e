"""The house: imports go one way, without circles; programs do not import programs.

python -m tests.test_imports        rooms, arrows and circles of scripts and jukebox_core
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
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


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """{module: modules of the project that it imports}, also inside functions and for types."""
    files = {}
    for package in MAY_IMPORT:
        files |= {module_of(path): path for path in (root / package).rglob("*.py")}
    arrows: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                arrows[name] |= {alias.name for alias in node.names} & set(files)
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(files)
                arrows[name] |= inner or {node.module} & set(files)
        arrows[name].discard(name)
    return arrows


def rooms(package: str) -> tuple[set[str], set[tuple[str, str]]]:
    """Files and folders directly in a package, and the imports between them."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    arrows = {
        (room(name), room(other))
        for name, others in graph().items()
        for other in others
        if name.startswith(f"{package}.") and other.startswith(f"{package}.")
    }
    inside = {room(name) for name in graph() if name.startswith(f"{package}.")}
    return inside, {(a, b) for a, b in arrows if a != b}


def programs() -> set[str]:
    """Modules with a program's `main`."""
    folder = ROOT / "scripts"
    files = [*folder.glob("[!_]*.py"), *folder.glob("*/program.py"), *folder.glob("*/__main__.py")]
    faces = [path for path in folder.glob("*/__init__.py") if path.parent.name != "wheel"]
    return {module_of(path) for path in [*files, *faces]}


def test_there_are_no_circles():
    """Faces of packages are left out: a package's module may import another of its modules."""
    arrows = graph()
    faces = {name for name in arrows if (ROOT / name.replace(".", "/") / "__init__.py").exists()}
    inner = {name: others - faces for name, others in arrows.items() if name not in faces}
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
    for package in ("scripts", "jukebox_core"):
        _, between = rooms(package)
        needs: dict[str, set[str]] = {}
        for one, other in between:
            needs.setdefault(one, set()).add(other)
        TopologicalSorter(needs).prepare()


def test_no_program_imports_a_program_and_helpers_are_few():
    arrows = graph()
    for name in programs():
        folder = ".".join(name.split(".")[:2])
        others = {o for o in arrows[name] & programs() if not f"{o}.".startswith(f"{folder}.")}
        assert not others, f"{name} imports {others}"
    for name, others in arrows.items():
        if name.startswith("scripts._") or name.split(".")[0] != "scripts":
            inside = {o for o in others if o.startswith("scripts.") and o in programs()}
            assert not inside, f"{name} imports {inside}"
    helpers = [p.name for p in (ROOT / "scripts").glob("_*.py") if not p.name.startswith("__")]
    assert len(helpers) <= 7, helpers


def test_scripts_hold_no_library():
    """What more than one program imports is a helper (`_NAME`), or lies outside of scripts."""
    shared: dict[str, set[str]] = {}
    for name, others in graph().items():
        if name.startswith("scripts."):
            for other in others:
                shared.setdefault(other, set()).add(name.split(".")[1])
    for name, users in shared.items():
        parts = name.split(".")
        if parts[0] == "scripts" and len(parts) > 2:
            assert users <= {parts[1]}, f"{name} is used by {users}"


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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare | ast.Dict | ast.Match):
                strings = {
                    n.value
                    for n in ast.walk(node)
                    if isinstance(n, ast.Constant) and isinstance(n.value, str)
                }
                assert not strings & methods, f"{path}:{node.lineno} names a method"


def test_errors_of_the_library_name_no_program_and_no_flag():
    for package in ("jukebox_core", "lqvae", "lass", "hybrid"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise):
                    text = ast.unparse(node).replace("docker run --shm-size", "")
                    assert "scripts." not in text, f"{path}:{node.lineno}"
                    assert not re.search(r"[\s']--[a-z]", text), f"{path}:{node.lineno}"


if __name__ == "__main__":
    for package in ("scripts", "jukebox_core"):
        inside, between = rooms(package)
        print(f"{package}: {len(inside)} rooms, {len(between)} arrows")
