"""Fixtures, comparisons and the registry of checks.

A fixture is NAME.npz with its side-car NAME.json. A check reads both, calls public functions and
reports the largest error of each function beside its tolerance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jukebox_core.arrays import read_arrays
from jukebox_core.checks import one_line

FORWARD = 1e-5
"""float32 forward passes, losses and logits, relative to the scale of the compared tensor."""
GRADIENT = 1e-3
"""Gradients sum over thousands of positions, in an order that kernels choose."""
TRAJECTORY = 1e-3
"""Several training steps: every step builds on the rounding of the steps before."""
MARGIN = 1e-4
"""Codes nearer to a tie than this (squared distance) are left to rounding."""
EXACT = 0.0


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
        """ok, FAIL, or - for a variant that is only listed."""
        if self.ok and self.error is None:
            return "-"
        return "ok" if self.ok else "FAIL"


class Fixture:
    """Recorded inputs and outputs, and the rows of what was compared with them.

    Per function the worst comparison is kept. A listing of parameters has only a side-car.
    """

    def __init__(self, path: Path):
        self.name, self.path = path.stem, path
        self._worst: dict[str, Row] = {}

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The recorded tensors by name."""
        if self.path.suffix != ".npz":
            return {}
        return read_arrays(self.path, "recorded tensors")

    @cached_property
    def info(self) -> dict[str, Any]:
        """The side-car."""
        return self.side_car(self.name)

    @property
    def rows(self) -> list[Row]:
        """One row per function."""
        return list(self._worst.values())

    def side_car(self, name: str) -> dict[str, Any]:
        """The side-car of this or another fixture in the folder, empty where there is none."""
        path = self.path.with_name(f"{name}.json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def config(self, **defaults: Any) -> dict[str, Any]:
        """The side-car's `config` over defaults."""
        return {**defaults, **self.info.get("config", {})}

    def tensor(self, key: str) -> Tensor:
        """A recorded tensor."""
        if key not in self.arrays:
            raise ValueError(f"{self.path.name} has no tensor {key}")
        return torch.from_numpy(self.arrays[key].copy())

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names start with `prefix`, by the rest of their names."""
        own = [key for key in self.arrays if key.startswith(prefix)]
        return {key.removeprefix(prefix): self.tensor(key) for key in own}

    def matching(self, pattern: str) -> list[re.Match[str]]:
        """Matches of a regular expression with whole names of tensors, sorted."""
        return [match for key in sorted(self.arrays) if (match := re.fullmatch(pattern, key))]

    def error(self, function: str, error: float, tolerance: float, note: str = "") -> None:
        """Record an error that was measured."""
        ok = bool(error <= tolerance)  # NaN is not
        row = Row(self.name, function, error, tolerance, ok, note)
        before = self._worst.get(function)
        if before is None or _badness(row) > _badness(before):
            self._worst[function] = row
        if before is not None and before.note and not self._worst[function].note:
            self._worst[function] = replace(self._worst[function], note=before.note)

    def close(
        self,
        function: str,
        got: Any,
        expected: Any,
        tolerance: float = FORWARD,
        note: str = "",
        slack: float = 0.0,
    ) -> None:
        """Record the largest difference relative to the scale of `expected`.

        `expected` is a value or the name of a recorded tensor. `slack` is an absolute difference
        that ties explain. It is subtracted, and noted, only if the error exceeds the tolerance.
        """
        expected = self.tensor(expected) if isinstance(expected, str) else expected
        error = relative_error(got, expected)
        if error > tolerance and slack:
            error = relative_error(got, expected, slack)
            note = f"{note}; {slack:.1e} of ties left out"
        self.error(function, error, tolerance, note)

    def equal(self, function: str, got: Any, expected: Any, note: str = "") -> None:
        """Record the number of entries that differ from a value or a recorded tensor."""
        got = torch.as_tensor(got)
        expected = self.tensor(expected) if isinstance(expected, str) else torch.as_tensor(expected)
        if got.shape != expected.shape:
            self.fail(function, f"shape {tuple(got.shape)}, recorded {tuple(expected.shape)}")
        else:
            self.error(function, float((got != expected).sum()), EXACT, note)

    def codes(
        self, function: str, got: Tensor, expected: Tensor, distances: Tensor, margin: Tensor
    ) -> None:
        """Record the number of wrong codes [...]; near a tie, any code within `MARGIN` is right.

        Args:
            function: name of the row.
            got: our codes.
            expected: recorded codes.
            distances: squared distances to all codes, [..., K].
            margin: [...], recorded distance of the second-best code minus the best code's.
        """
        least = distances.min(-1).values
        excess = distances.gather(-1, got.unsqueeze(-1)).squeeze(-1) - least
        wrong = (got != expected) & ((margin > MARGIN) | (excess > MARGIN))
        near = int((margin <= MARGIN).sum())
        note = f"{near} of {margin.numel()} within {MARGIN:g} of a tie" if near else ""
        self.error(function, float(wrong.sum()), EXACT, note)

    def gradients(self, name: str, prefix: str, parameters: Mapping[str, Tensor]) -> None:
        """Compare gradient norms and gradients, by upstream's names without `prior.`."""
        norms = self.tensor(f"{prefix}grad_norms")
        for listed, norm in zip(self.info["param_names_for_grad_norms"], norms, strict=True):
            gradient = parameters[listed.removeprefix("prior.")].grad
            got = -1.0 if gradient is None else gradient.norm()
            self.close(f"{name} gradient norms", got, norm, GRADIENT)
        for listed, expected in self.under(f"{prefix}grad/").items():
            gradient = parameters[listed.removeprefix("prior.")].grad
            assert gradient is not None
            gradient = gradient.T if listed.endswith(".w") else gradient
            self.close(f"{name} gradients", gradient, expected.reshape(gradient.shape), GRADIENT)

    def fail(self, function: str, note: str) -> None:
        """Record that something could not be compared."""
        self._worst[function] = Row(self.name, function, float("nan"), EXACT, False, note)

    def listed(self, function: str, note: str) -> None:
        """List a variant that is not implemented."""
        self._worst[function] = Row(self.name, function, None, None, True, note)


Check = Callable[[Fixture], None]
CHECKS: dict[str, Check] = {}
"""{regular expression of the fixture's whole name: check}"""


def check(pattern: str) -> Callable[[Check], Check]:
    """Register a check for the fixtures whose name matches."""

    def register(function: Check) -> Check:
        CHECKS[pattern] = function
        return function

    return register


def run_fixture(path: Path) -> list[Row]:
    """The rows of one fixture file."""
    fixture = Fixture(path)
    name = fixture.name
    function = next((c for pattern, c in CHECKS.items() if re.fullmatch(pattern, name)), None)
    if function is None:
        fixture.fail("-", "there is no check for this fixture")
        return fixture.rows
    try:
        function(fixture)
    except Exception as error:  # a check that breaks is a failure of that fixture, not of the rest
        fixture.fail(function.__name__, f"{type(error).__name__}: {one_line(error)}"[:300])
    return fixture.rows


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


def relative_error(got: Any, expected: Any, slack: float = 0.0) -> float:
    """Largest absolute difference over the largest magnitude of `expected`, in float64.

    Infinities must agree exactly; another shape gives inf.
    """
    got, expected = (torch.as_tensor(x).detach().double() for x in (got, expected))
    if got.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    special = ~expected.isfinite() | ~got.isfinite()
    if not torch.equal(got[special], expected[special]):
        return float("inf")
    difference = (got - expected)[~special].abs()
    if difference.numel() == 0:
        return 0.0
    scale = expected[~special].abs().max().item()
    return max(difference.max().item() - slack, 0.0) / (scale or 1.0)


HEAD = ("fixture", "function", "largest error", "tolerance", "ok", "note")
"""Names of the columns of `cells`."""


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the rows as the cells of a table."""
    return [(r.fixture, f"`{r.function}`", *_numbers(r), r.verdict, r.note) for r in rows]


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows, ready for JSON."""
    listed = [asdict(row) for row in rows]
    for row in listed:
        if row["error"] is not None and not np.isfinite(row["error"]):
            row["error"] = str(row["error"])
    return {"ok": all(row.ok for row in rows), "rows": listed}


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
