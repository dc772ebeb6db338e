"""What a sweep tries, and what it takes for a fault."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

VALUES = {
    "0": "0",
    "-1": "-1",
    "nan": "nan",
    "inf": "inf",
    "-inf": "-inf",
    "1e30": "1e30",
    "1e-300": "1e-300",
    "billion": "1000000000",
    "huge": "99999999999999999999",  # more than 64 bits
    "empty": "",
    "none": None,  # a flag that takes any number of values gets none
    "nonsense": "nonsense",
}

BASE = "base"
"""In place of a value: the base command as it is."""

# What may be meant, by the last part of a flag's name; everything else must be refused.
ZERO_MEANT = frozenset(
    """alpha attn-order bandwidth-seconds betas code-shifts commit compression
    decay-steps dropout ema-decay examples flush-seconds gain-db gains-db grad-clip
    init-scale keep keep-media kept l-mu linearisation lmix-l1 lmix-l2 lmix-linf lr max-seconds
    multispectral port production revival-threshold seed shifts silence-dbfs smoothing spectral
    split top-k transpose-semitones validate-batches warmup-steps weight-decay within
    workers""".split()
)
ZERO_REFUSED = frozenset(
    {
        ("make_synthetic", "--workers"),
        ("prepare_slakh", "--workers"),
        ("app", "--max-seconds"),
        ("train_vqvae", "--max-seconds"),
        ("train_prior", "--max-seconds"),
        ("train_mask", "--max-seconds"),
        ("separate", "--shifts"),
        ("evaluate", "--shifts"),
        ("app", "--shifts"),
        ("make_synthetic", "--split"),
        ("prepare_slakh", "--split"),
        ("precompute_sums", "--alpha"),
        ("convert_upstream", "--alpha"),
    }
)
PARTS = frozenset("betas dropout ema-decay groove-share l-mu production steps-share top-p".split())
"""Of a whole: never above 1."""
NEGATIVE_MEANT = frozenset({"gains-db", "silence-dbfs"})
INFINITE_MEANT: frozenset[tuple[str, str]] = frozenset()  # (program, flag)
ANY_TEXT = frozenset({"wandb-project", "wandb-entity", "wandb-name", "wandb-tags"})
NONE_MEANT = frozenset(
    {
        "examples",
        "wandb-tags",
        "merge",
        "counts",
        "variants",
        "baselines",
        "sources",
        "methods",
        "smoothings",
        "exponents",
        "sizes",
        "sigmas",
        "production",
    }
)
LENGTHS = {"downs-t": 2, "strides-t": 2, "multipliers": 2}
"""So many values do the presets of the base commands take, where any number can be given."""
OUTPUTS = frozenset({"--output", "--markdown"})
# Recorded under the same name for another thing.
RECORDED_OTHERWISE = frozenset(
    {
        ("evaluate", "--chunks"),
        ("evaluate", "--chunk-codes"),
        ("score_uncertainty", "--chunks"),
        ("tune", "--chunks"),
        ("prepare_slakh", "--split"),
        ("make_synthetic", "--split"),
    }
)
# How much work is wanted: a billion of it may run for as long as it takes.
LONG_MEANT = frozenset(
    {
        "chunks",
        "validate-batches",
        "iterations",
        "count-iterations",
        "steps",
        "tracks",
        "seeds",
        "budget",
    }
)
# A training that began and diverged: the record of the run stays.
DIVERGED = re.compile(r"there is no checkpoint|keeps the last checkpoint")
UNHELPFUL = re.compile(
    r"could be instantiated|Got errors|Overflow when|rmtree|out of range for"
    r"|\[Errno|std::|\bNoneType"
)


class Flag(NamedTuple):
    """A flag. kinds: INT, FLOAT, STR, PATH of its values. words: so many make one value."""

    name: str
    kinds: frozenset[str]
    words: int
    many: bool

    @property
    def last(self) -> str:
        """The name's last part, without dashes before it."""
        return self.name.rpartition(".")[2].lstrip("-")


@dataclass(frozen=True)
class Case:
    """One value of one flag of one program."""

    program: str
    flag: Flag
    value: str

    @property
    def key(self) -> str:
        """Identifies the case."""
        return f"{self.program} {self.flag.name} {self.value}"


@dataclass
class Outcome:
    """What a process did.

    status: None where it was stopped. ready: it said that the flags are accepted.
    hung: it did not end in time. changed, left: input files and other files, by name.
    damaged: outputs that hold what is not finite. recorded: what outputs say of the flag.
    """

    status: int | None
    ready: bool
    hung: bool
    seconds: float
    stdout: str
    stderr: str
    changed: list[str]
    left: list[str]
    damaged: list[str]
    recorded: list[Any]


def flag_of(action: Any) -> Flag | None:
    """A parser's action as a Flag; None for one without a value."""
    if action.nargs == 0:
        return None
    shown = str(action.metavar or "")
    name = action.option_strings[0] if action.option_strings else ""
    kinds = frozenset(re.findall(r"\b(INT|FLOAT|STR|PATH)\b", shown))
    if shown == "MIXTURE":
        kinds = frozenset({"PATH"})
    group = re.search(r"(?:INT|FLOAT|STR|PATH)(?: (?:INT|FLOAT|STR|PATH))*", shown)
    words = len(group[0].split()) if group else 1
    words = LENGTHS.get(name.rpartition(".")[2], words)
    return Flag(name, kinds, words, action.nargs == "*" and "FLOAT FLOAT FLOAT" not in shown)


def values_of(flag: Flag) -> Iterator[str]:
    """The values to try; of those that are all the same to a flag, one or two."""
    for value in VALUES:
        if value == "none" and not flag.many:
            continue
        if value in ("-inf", "1e-300") and "FLOAT" not in flag.kinds:
            continue
        if value in ("nan", "inf", "1e30", "huge") and flag.kinds == {"PATH"}:
            continue
        if value == "billion" and not flag.kinds & {"INT", "FLOAT"}:
            continue
        yield value


def words_of(case: Case, base: Mapping[str, list[str]]) -> list[str]:
    """The command's arguments with the case's value in them."""
    if case.value == BASE:
        return [*base[""], *_flags(base)]
    text = VALUES[case.value]
    given = [] if text is None else [text] * case.flag.words
    command = dict(base)
    if not case.flag.name:
        command[""] = given
        return [*given, *_flags(command)]
    command.pop(case.flag.name, None)
    if text == "-inf":  # would be taken for a flag
        put = [f"{case.flag.name}={text}"] if case.flag.words == 1 else [case.flag.name, *given]
    else:
        put = [case.flag.name, *given]
    return [*command[""], *_flags(command), *put]


def _flags(command: Mapping[str, list[str]]) -> list[str]:
    return [w for flag, values in command.items() if flag for w in (flag, *values)]


def must_refuse(case: Case) -> bool:
    """Whether nobody can mean the value."""
    flag, value, last = case.flag, case.value, case.flag.last
    if value == BASE or last in ANY_TEXT:
        return False
    if value == "none":
        return last not in NONE_MEANT
    if value == "empty":
        return True
    if flag.kinds & {"INT", "FLOAT"}:
        if value == "0":
            return last not in ZERO_MEANT or (case.program, flag.name) in ZERO_REFUSED
        if value == "-1":
            return last not in NEGATIVE_MEANT
        if value in ("nan", "nonsense", "-inf"):
            return True
        if value in ("billion", "huge", "1e30") and last in PARTS:
            return True
        if value == "inf":
            return (case.program, flag.name) not in INFINITE_MEANT
        return value in ("huge", "1e30", "1e-300") and "FLOAT" not in flag.kinds
    return not (flag.kinds == {"PATH"} and flag.name in OUTPUTS)


def names(flag: Flag, said: str) -> bool:
    """Whether a message names the flag or its field, in any spelling."""
    wanted = flag.last.replace("-", "_")
    spellings = {wanted, wanted.removesuffix("s")}
    text = re.sub(r"[- ]", "_", said.lower())
    return any(re.search(rf"(?<![a-z]){re.escape(w)}(?![a-z])", text) for w in spellings) or (
        not flag.name and ("mixture" in text or "file" in text)
    )


def faults(case: Case, outcome: Outcome, writes: Iterable[str] = ()) -> list[str]:
    """The words for what is wrong, the gravest first; none: the program did right."""
    from fnmatch import fnmatch

    said, status = outcome.stderr, outcome.status
    found = []
    if "Traceback (most recent call last)" in said + outcome.stdout:
        found.append("traceback")
    if outcome.hung and not (case.value == "billion" and case.flag.last in LONG_MEANT):
        found.append("hang")
    if status is not None and status < 0:
        found.append("crash")
    elif status is not None and status not in (0, 1, 2):
        found.append("status")
    accepted = status == 0 or outcome.ready
    allowed = tuple(writes) if accepted else ()
    if any(not any(fnmatch(name, p) for p in allowed) for name in outcome.changed):
        found.append("input changed")
    temporary = [name for name in outcome.left if re.search(r"(^|/)\.[^/]*\.tmp", name)]
    stopped = outcome.hung or outcome.ready  # by force: anything may be left
    diverged = DIVERGED.search(said) is not None
    if not stopped and (temporary if accepted or diverged else outcome.left):
        found.append("half file")
    if accepted:
        if must_refuse(case):
            found.append("silent")
        if outcome.damaged:
            found.append("not finite")
        if _replaced(case, outcome.recorded):
            found.append("replaced")
    elif not outcome.hung and (not found or found == ["half file"]):
        lines = [line for line in said.splitlines() if line.startswith("error:")]
        if len(lines) != 1:
            found.append("several lines" if lines else "no error line")
        text = VALUES.get(case.value)
        shown = case.flag.kinds == {"PATH"} and text and text in said
        if not names(case.flag, said) and not shown and not diverged:
            found.append("unnamed")
        if UNHELPFUL.search(said):
            found.append("unhelpful")
    return found


def _replaced(case: Case, recorded: list[Any]) -> bool:
    """Whether outputs record the flag, and never with the value that was given."""
    if (case.program, case.flag.name) in RECORDED_OTHERWISE or not recorded:
        return False
    if case.value == BASE or not case.flag.kinds & {"INT", "FLOAT"}:
        return False
    try:
        given = float(VALUES[case.value] or "nan")
    except ValueError:
        return False
    flat = [x for value in recorded for x in (value if isinstance(value, list) else [value])]
    numbers = [x for x in flat if isinstance(x, (int, float)) and not isinstance(x, bool)]
    return bool(numbers) and not any(abs(x - given) <= 1e-6 * abs(given) for x in numbers)


def recorded_in(text: str, flag: Flag) -> list[Any]:
    """Values under the flag's field anywhere in a JSON text; raises ValueError for NaN in it."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in JSON")

    wanted = flag.last.replace("-", "_")
    found: list[Any] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == wanted:
                    found.append(inner)
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(json.loads(text, parse_constant=refuse))
    return found
