"""Mutation testing: which small mistakes in the code that decides the results do the tests notice?

    python -m tests.mutants                                    # a sample of every module
    python -m tests.mutants --modules lass.counts --number 50
    python -m tests.mutants --modules lass.counts --mutant 5b1c0a2f     # its diff and its result

Mutants are made from the syntax tree and given to the tests by an import hook: no file changes.
Every mutant has a process of its own, forked from one that has imported PyTorch and pytest.
A mutant's name is a digest of its function and of the change, so that it survives other changes of
the file. The sample are the mutants whose digests with the seed are least: a larger sample has the
smaller one. Results are kept in build/mutants.json; what is there is not run again.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from mutant_table import EQUIVALENT, TESTS  # noqa: E402

RESULTS = ROOT / "build" / "mutants.json"
BEFORE_FORKING = (
    "torch",
    "torch.distributed",
    "scipy.stats",
    "hypothesis",
    "safetensors.torch",
    "soundfile",
    "soxr",
    "lightning_fabric",
    "psutil",
    "filelock",
    "tyro",
)
FLAGS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no")

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
PAIRS = ("min max", "amin amax", "argmin argmax", "clamp_min clamp_max", "any all", "ceil floor")
PAIRS += ("minimum maximum", "row column", "first second", "zeros_like ones_like", "sum prod")
NAMES = dict(pair.split() for pair in PAIRS) | {b: a for a, b in (p.split() for p in PAIRS)}


class Mutant(NamedTuple):
    """A change of one field of one node. name: see above. line: in the file."""

    name: str
    line: int
    tree: ast.Module
    parent: ast.AST
    field: str
    after: Any

    def mutated(self) -> str:
        """The source of the module with the change."""
        before = getattr(self.parent, self.field)
        setattr(self.parent, self.field, self.after)
        try:
            return ast.unparse(self.tree)
        finally:
            setattr(self.parent, self.field, before)


def changed(node: ast.AST, **fields: object) -> ast.AST:
    """A shallow copy with other fields."""
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def mistakes(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand in the place of a node by mistake."""
    match node:
        case ast.Compare(ops=ops):
            for place, operator in enumerate(ops):
                for other in COMPARISONS[type(operator)]:
                    yield changed(node, ops=[*ops[:place], other(), *ops[place + 1 :]])
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield changed(node, op=OPERATORS[type(op)]())
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.BoolOp(op=op, values=values):
            yield changed(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            yield from values
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            if not isinstance(test, ast.Compare | ast.UnaryOp):
                yield changed(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield changed(node, value=ast.Constant(None))
        case ast.Call(keywords=[_, *_] as keywords):
            for keyword in keywords:
                yield changed(node, keywords=[k for k in keywords if k is not keyword])
        case ast.Attribute(attr=name) if name in NAMES:
            yield changed(node, attr=NAMES[name])
        case ast.Name(id=name) if name in ("min", "max", "any", "all"):
            yield changed(node, id=NAMES[name])
    if isinstance(node, ast.AugAssign | ast.Expr | ast.Raise | ast.Continue | ast.Break):
        if not isinstance(getattr(node, "value", None), ast.Constant):  # a docstring
            yield ast.Pass()


def places(node: ast.AST, scope: str) -> Iterator[tuple[str, ast.AST, str, int | None]]:
    """(function, parent, field, place in its list) of all nodes but annotations and messages."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = f"{scope}.{node.name}"
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "exc", "op", "ops", "ctx"):
            continue
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr | ast.Assert):
                yield scope, node, field, place if isinstance(value, list) else None
                yield from places(child, scope)


def source_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def mutants(module: str) -> dict[str, Mutant]:
    """All mutants of a module by their names."""
    tree = ast.parse(source_of(module).read_text(encoding="utf-8"))
    found, seen = {}, Counter()
    for scope, parent, field, place in places(tree, module):
        before = getattr(parent, field)
        node = before if place is None else before[place]
        for other in mistakes(node):
            after = other if place is None else [*before[:place], other, *before[place + 1 :]]
            key = (scope, ast.unparse(node), ast.unparse(other))
            seen[key] += 1
            name = hashlib.sha256(repr((*key, seen[key])).encode()).hexdigest()[:8]
            line = getattr(node, "lineno", 0)
            found[name] = Mutant(name, line, tree, parent, field, after)
    return found


def sample(module: str, number: int, seed: int) -> list[Mutant]:
    """The first `number` mutants in the order that the seed gives them."""
    made = mutants(module)
    order = sorted(made, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    return [made[name] for name in order[:number]]


class Hook(importlib.machinery.SourceFileLoader):
    """Gives a mutated module to whoever imports it."""

    def __init__(self, module: str, source: str):
        super().__init__(module, str(source_of(module)))
        self.source = source

    def find_spec(self, name: str, path: object, target: object = None) -> object:
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def get_code(self, name: str) -> object:
        return compile(self.source, self.path, "exec")


def run(module: str, source: str | None, seconds: float) -> tuple[str, float]:
    """Run the module's tests in a new process: killed, survived or timeout, and seconds of a core.

    `seconds` of a core are allowed, and twenty times as long by the clock.
    """
    import resource

    with tempfile.TemporaryDirectory() as folder:
        process = os.fork()
        if not process:
            try:
                os.setpgid(0, 0)
                resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds)))
                nothing = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(nothing, stream)
                if source is not None:
                    sys.meta_path.insert(0, Hook(module, source))
                code = int(pytest.main([*FLAGS, f"--basetemp={folder}/tests", *TESTS[module]]))
            except BaseException:
                code = 1
            os._exit(code)
        until, done, status, used = time.monotonic() + 20 * seconds, 0, 0, None
        while not done and time.monotonic() < until:
            time.sleep(0.02)
            done, status, used = os.wait4(process, os.WNOHANG)
        if not done:
            os.killpg(process, signal.SIGKILL)
            _, status, used = os.wait4(process, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU):
            return "timeout", seconds
        return "killed" if status else "survived", used.ru_utime + used.ru_stime


def difference(module: str, mutant: Mutant) -> str:
    """The change, as a diff."""
    original = ast.unparse(ast.parse(source_of(module).read_text(encoding="utf-8")))
    lines = (original.splitlines(), mutant.mutated().splitlines())
    return "\n".join(list(difflib.unified_diff(*lines, lineterm="", n=0))[3:])


def run_module(module: str, chosen: list[Mutant], again: bool, results: dict) -> None:
    """Run a module's mutants and add to the results; mutants of former code are taken out."""
    made = mutants(module)
    kept = {name: result for name, result in results.get(module, {}).items() if name in made}
    results[module] = kept
    unexplained = {n for n, result in kept.items() if result == "survived"} - EQUIVALENT.keys()
    wanted = [m for m in chosen if m.name not in kept or (again and m.name in unexplained)]
    if not wanted:
        return
    result, seconds = run(module, None, 600)
    if result != "survived":
        raise SystemExit(f"the tests of {module} fail without any mutant")
    for mutant in wanted:
        kept[mutant.name], _ = run(module, mutant.mutated(), 3 * seconds + 2)
        if kept[mutant.name] == "survived" and mutant.name not in EQUIVALENT:
            print(f"{module}:{mutant.line} {mutant.name}\n{difference(module, mutant)}", flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")


def table(results: dict) -> Iterator[str]:
    """A line per module, and their sum."""
    total = Counter()
    for module, found in [*sorted(results.items()), ("all", None)]:
        counts = total if found is None else Counter(found.values())
        if found is not None:
            survivors = [name for name, result in found.items() if result == "survived"]
            counts["equivalent"] = sum(name in EQUIVALENT for name in survivors)
            total += counts
        killed = counts["killed"] + counts["timeout"]
        number = killed + counts["survived"]
        left = counts["survived"] - counts["equivalent"]
        yield f"{module:<40}{killed:5} of {number:4} killed, {left:3} not explained"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--number", type=int, default=8, help="mutants of every module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="run unexplained survivors again")
    parser.add_argument("--mutant", help="run one, by its name")
    flags = parser.parse_args()
    os.chdir(ROOT)
    for name in BEFORE_FORKING:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    if flags.mutant:
        (module,) = flags.modules
        mutant = mutants(module)[flags.mutant]
        print(difference(module, mutant))
        print(*run(module, mutant.mutated(), 600))
        return 0
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for module in flags.modules:
        run_module(module, sample(module, flags.number, flags.seed), flags.again, results)
    print("\n".join(table(results)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
