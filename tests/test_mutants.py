"""The mutants: each is another program, and what is written about them exists."""

import ast
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="mutants need POSIX")

from mutants import EQUIVALENT, TESTS, mistakes, mutants, sample  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def test_tests_and_modules_are_there():
    for module, tests in TESTS.items():
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
        assert all((ROOT / t.split("::")[0]).is_file() for t in tests if t.startswith("tests/"))


def test_every_mutant_differs_from_all_others():
    module = "hybrid.likelihood"
    source = (ROOT / "hybrid/likelihood.py").read_text(encoding="utf-8")
    made = {mutant.mutated() for mutant in mutants(module).values()}
    assert len(made) == len(mutants(module)) > 10
    assert all(ast.unparse(ast.parse(text)) == text for text in made)
    assert ast.unparse(ast.parse(source)) not in made


def test_to_return_none_for_none_is_no_mistake():
    made = [list(mistakes(ast.parse(text).body[0])) for text in ("return None", "return x")]
    assert [len(found) for found in made] == [0, 1]


def test_a_larger_sample_has_the_smaller_one():
    names = [[m.name for m in sample("lass.likelihood", n, 1)] for n in (5, 9)]
    assert names[0] == names[1][:5] != [m.name for m in sample("lass.likelihood", 5, 2)]


def test_mutants_that_are_explained_are_still_made():
    known = {name for module in TESTS for name in mutants(module)}
    assert set(EQUIVALENT) <= known
