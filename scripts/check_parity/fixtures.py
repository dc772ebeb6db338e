"""The frame of scripts.check_parity: fixtures, comparisons, and the registry of checks.

A fixture is NAME.npz with its side-car NAME.json. A check reads both, calls public functions and
reports, per function, the largest error found and the tolerance it was held to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORWARD = 1e-5
"""float32 forward passes, losses and logits, relative to the scale of the compared tensor."""
GRADIENT = 1e-3
"""Gradients sum over thousands of positions, in an order that kernels choose."""
TRAJECTORY = 1e-3
"""Several training steps: every step builds on the rounding of those before."""
MARGIN = 1e-4
"""Codes nearer to a tie than this (squared distance) are left to rounding."""
EXACT = 0.0


class Fixture:
    """One file of recorded inputs and outputs."""

    def __init__(self, path: Path):
        self.name = path.stem
        self.path = path
        with np.load(path, allow_pickle=False) as file:
            self.arrays: dict[str, np.ndarray] = {key: file[key] for key in file.files}
        side_car = path.with_suffix(".json")
        self.info: dict[str, Any] = {}
        if side_car.is_file():
            self.info = json.loads(side_car.read_text(encoding="utf-8"))

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def tensor(self, key: str) -> Tensor:
        """A recorded tensor."""
        if key not in self.arrays:
            raise ValueError(f"{self.path.name} has no tensor {key}")
        return torch.from_numpy(self.arrays[key].copy())

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names start with `prefix`, by the rest of their names."""
        return {
            key.removeprefix(prefix): self.tensor(key)
            for key in self.arrays
            if key.startswith(prefix)
        }


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fixture: str
    function: str
    error: float | None
    tolerance: float | None
    ok: bool
    note: str = ""

    @property
    def verdict(self) -> str:
        """ok, FAIL, or - for what is listed only."""
        if self.ok and self.error is None:
            return "-"
        return "ok" if self.ok else "FAIL"


class Report:
    """Collects comparisons of one fixture; per function the worst one is kept."""

    def __init__(self, fixture: str):
        self.fixture = fixture
        self._worst: dict[str, Row] = {}

    @property
    def rows(self) -> list[Row]:
        """One row per function."""
        return list(self._worst.values())

    def error(self, function: str, error: float, tolerance: float, note: str = "") -> None:
        """Record an error that was measured."""
        ok = bool(error <= tolerance)  # NaN is not
        row = Row(self.fixture, function, error, tolerance, ok, note)
        before = self._worst.get(function)
        if before is None or _badness(row) > _badness(before):
            self._worst[function] = row
        if before is not None and before.note and not self._worst[function].note:
            kept = self._worst[function]
            self._worst[function] = Row(*(*_fields(kept)[:-1], before.note))

    def close(
        self,
        function: str,
        got: Any,
        wanted: Any,
        tolerance: float = FORWARD,
        note: str = "",
        slack: float = 0.0,
    ) -> None:
        """Largest difference relative to the scale of `wanted`.

        `slack` is an absolute difference that ties explain; it is used, and said, only where the
        tolerance does not do without.
        """
        error = relative_error(got, wanted)
        if error > tolerance and slack:
            error = relative_error(got, wanted, slack)
            note = f"{note}; {slack:.1e} of ties left out"
        self.error(function, error, tolerance, note)

    def equal(self, function: str, got: Any, wanted: Any, note: str = "") -> None:
        """Number of entries that differ; none may."""
        got, wanted = torch.as_tensor(got), torch.as_tensor(wanted)
        if got.shape != wanted.shape:
            self.fail(function, f"shape {tuple(got.shape)}, recorded {tuple(wanted.shape)}")
            return
        self.error(function, float((got != wanted).sum()), EXACT, note)

    def codes(
        self, function: str, got: Tensor, wanted: Tensor, distances: Tensor, margin: Tensor
    ) -> None:
        """Codes [...] must be equal where `margin` [...] allows, elsewhere as near as the least.

        Args:
            function: name of the row.
            got: our codes.
            wanted: recorded codes.
            distances: squared distances to all codes, [..., K].
            margin: recorded distance of the second-best code minus that of the best.
        """
        least = distances.min(-1).values
        excess = distances.gather(-1, got.unsqueeze(-1)).squeeze(-1) - least
        wrong = (got != wanted) & ((margin > MARGIN) | (excess > MARGIN))
        near = int((margin <= MARGIN).sum())
        note = f"{near} of {margin.numel()} within {MARGIN:g} of a tie" if near else ""
        self.error(function, float(wrong.sum()), EXACT, note)

    def fail(self, function: str, note: str) -> None:
        """Record that something could not be compared."""
        self._worst[function] = Row(self.fixture, function, float("nan"), EXACT, False, note)

    def listed(self, function: str, note: str) -> None:
        """List what is not implemented, and by whom it is not needed."""
        self._worst[function] = Row(self.fixture, function, None, None, True, note)


Check = Callable[[Fixture, Report], None]
CHECKS: dict[str, Check] = {}
"""Checks by a regular expression that the fixture's whole name matches."""


def check(pattern: str) -> Callable[[Check], Check]:
    """Register a check for the fixtures whose name matches."""

    def register(function: Check) -> Check:
        CHECKS[pattern] = function
        return function

    return register


def run_fixture(path: Path) -> list[Row]:
    """The rows of one fixture file."""
    name = path.stem
    found = next((c for pattern, c in CHECKS.items() if re.fullmatch(pattern, name)), None)
    report = Report(name)
    if found is None:
        report.fail("-", "no check knows this fixture")
        return report.rows
    try:
        found(load(path), report)
    except Exception as error:  # a check that breaks is a failure of that fixture, not of the rest
        report.fail(found.__name__, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
    return report.rows


def load(path: Path) -> Fixture:
    """A fixture of arrays; a listing of parameters has a side-car only."""
    if path.suffix == ".npz":
        return Fixture(path)
    fixture = Fixture.__new__(Fixture)
    fixture.name, fixture.path, fixture.arrays = path.stem, path, {}
    fixture.info = json.loads(path.read_text(encoding="utf-8"))
    return fixture


def find_fixtures(folder: Path) -> list[Path]:
    """The files to check: every .npz, and every .json without one that lists parameters.

    Raises:
        FileNotFoundError: there is no such folder, or nothing to check in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of fixtures {folder}")
    arrays = sorted(folder.glob("*.npz"))
    names = {path.stem for path in arrays}
    listings = [path for path in sorted(folder.glob("*.json")) if path.stem not in names]
    if not arrays and not listings:
        raise FileNotFoundError(f"{folder} holds no fixture: expected NAME.npz with NAME.json")
    return sorted(arrays + listings, key=lambda path: path.stem)


def relative_error(got: Any, wanted: Any, slack: float = 0.0) -> float:
    """Largest absolute difference over the largest magnitude of `wanted`, in float64.

    Infinities must agree exactly. inf stands for another shape.
    """
    got, wanted = (torch.as_tensor(x).detach().double() for x in (got, wanted))
    if got.shape != wanted.shape:
        return float("inf")
    if wanted.numel() == 0:
        return 0.0
    special = ~wanted.isfinite() | ~got.isfinite()
    if not torch.equal(got[special], wanted[special]):
        return float("inf")
    difference = (got - wanted)[~special].abs()
    if difference.numel() == 0:
        return 0.0
    scale = wanted[~special].abs().max().item()
    return max(difference.max().item() - slack, 0.0) / (scale or 1.0)


HEAD = ("fixture", "function", "largest error", "tolerance", "ok", "note")
"""Names of the columns of `cells`."""


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the rows as the cells of a table."""
    return [(r.fixture, f"`{r.function}`", *_numbers(r), r.verdict, r.note) for r in rows]


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows, ready for JSON."""
    return {
        "ok": all(row.ok for row in rows),
        "rows": [
            {
                "fixture": row.fixture,
                "function": row.function,
                "error": _finite(row.error),
                "tolerance": row.tolerance,
                "ok": row.ok,
                "note": row.note,
            }
            for row in rows
        ],
    }


def sub_config(info: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """The side-car's `config` over defaults."""
    return {**defaults, **info.get("config", {})}


def _finite(value: float | None) -> float | str | None:
    return value if value is None or np.isfinite(value) else str(value)


def _numbers(row: Row) -> tuple[str, str]:
    if row.error is None or row.tolerance is None:
        return "not implemented", "-"
    exact = row.tolerance == EXACT
    error = f"{row.error:.0f} differ" if exact and np.isfinite(row.error) else f"{row.error:.1e}"
    return error, "exact" if exact else f"{row.tolerance:.0e}"


def _badness(row: Row) -> float:
    assert row.error is not None and row.tolerance is not None
    if not row.error <= row.tolerance:
        return float("inf")
    return row.error / row.tolerance if row.tolerance else 0.0


def _fields(row: Row) -> tuple[Any, ...]:
    return row.fixture, row.function, row.error, row.tolerance, row.ok, row.note
