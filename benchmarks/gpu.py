"""Everything that is to be measured on a GPU, in one go: tests, sampling, training.

    python -m benchmarks.gpu --output runs/gpu --minutes 9
    python -m benchmarks.gpu --output runs/gpu --minutes 60
    python -m benchmarks.gpu --output runs/gpu --device cpu --tiny

The parts run one after the other, each in its own process; a part that fails, or that the time runs
out for, is reported as such and the next one starts. OUTPUT/gpu.json and OUTPUT/gpu.md are written
after every part. From 60 minutes on, the rest of the time trains and scores models of the preset
`small`, in OUTPUT/small; the same command continues the training. `--tiny` takes tiny models.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._common import name_of
from jukebox_core.checkpoints import provenance
from jukebox_core.checks import require_fields
from jukebox_core.files import check_replaceable, json_with, write_json, write_text
from jukebox_core.locks import sole_writer
from scripts._cli import program
from scripts._results import markdown_table

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_stacked.py", "-k", "cuda")
"""Those that run on a GPU; elsewhere they are skipped."""
_LONG = 60.0  # minutes from which a preset is trained, too
_SHOWN = 20  # last lines of a failed part in the report


class Part(NamedTuple):
    """A command, its name, and how many minutes it may take."""

    name: str
    command: tuple[str, ...]
    minutes: float


@dataclass(frozen=True)
class Args:
    """Flags."""

    output: Path
    """Folder of gpu.json and gpu.md."""
    minutes: float = 9.0
    """Time for all of it."""
    device: str = "cuda"
    """cuda, cuda:1, or cpu for a trial."""
    tiny: bool = False
    """Tiny models and matrices: a trial of the program itself."""
    parts: tuple[str, ...] = ()
    """Names of the parts to run; default: all."""

    def __post_init__(self) -> None:
        require_fields(self, "minutes", above=0)


@program
def main(args: Args) -> None:
    """Run the parts; write the JSON and the page."""
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {args.device}, but PyTorch sees no GPU: try --device cpu")
    every = list(parts(args))
    if unknown := {*args.parts} - {part.name for part in every}:
        names = ", ".join(part.name for part in every)
        raise ValueError(f"parts has {', '.join(sorted(unknown))}, expected some of {names}")
    record, page = args.output / "gpu.json", args.output / "gpu.md"
    check_replaceable(record, json_with("device", "parts"), "a record of measurements")
    check_replaceable(page, lambda _: record.is_file(), "a page of measurements")
    with sole_writer(args.output, inside=True):
        end = time.monotonic() + 60 * args.minutes
        done: list[dict[str, Any]] = []
        for part in every:
            if args.parts and part.name not in args.parts:
                continue
            print(f"{part.name}: {' '.join(part.command)}", flush=True)
            done.append(run(part, end - time.monotonic()))
            print(f"{part.name}: {done[-1]['status']}, {done[-1]['seconds']:.0f} s", flush=True)
            content = {"device": name_of(torch.device(args.device)), "parts": done}
            write_json(record, content | provenance())
            write_text(page, markdown(content))
    print(f"{record}\n{page}")
    if failed := [part["name"] for part in done if part["status"] == "failed"]:
        raise ValueError(f"failed: {', '.join(failed)}; {page} has their last lines")


def parts(args: Args) -> Iterator[Part]:
    """The parts, the most wanted first."""
    cuda = torch.device(args.device).type == "cuda"
    half = ("float16", "bfloat16") if cuda else ("bfloat16",)
    mixed = ("16-mixed", "bf16-mixed") if cuda else ("bf16-mixed",)
    on = ("--device", args.device)

    def bench(name: str, *flags: object) -> tuple[str, ...]:
        return (sys.executable, "-m", f"benchmarks.{name}", *map(str, flags), *on, "--json")

    small = ("--size", 256, "--megabytes", 8) if args.tiny else ("--size", 8192)
    yield Part("device", bench("bench_device", "--types", "float32", *half, *small), 1)
    tests = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *TESTS)
    yield Part("tests", tests, 3)
    sizes: tuple[object, ...] = ("--candidates", 1, 16, 64)
    if args.tiny:
        sizes = ("--candidates", 2, "--positions", 8, "--preset", "tiny", "--pairs", 20)
    for precision in half:
        flags = (*sizes, "--plain", 0, "--precision", precision)
        yield Part(f"sampling {precision}", bench("bench_sampling", *flags), 3)
    more = ("--sources", 3, 4, "--methods", "hybrid", "--plain", 0, "--precision", half[0])
    yield Part("sampling of more sources", bench("bench_sampling", *sizes, *more), 2)
    for preset in ("tiny",) if args.tiny else ("t4", "paper"):
        few = ("--size", 256, "--crops", 2, "--repeats", 1) if args.tiny else ("--size", 8192)
        flags = ("--preset", preset, "--precisions", "32", *mixed, *few)
        yield Part(f"training {preset}", bench("bench_throughput", *flags), 3)
    if not args.tiny:
        flags = ("--preset", "t4", "--precisions", mixed[-1], "--compiled", False, True)
        yield Part("torch.compile", bench("bench_throughput", *flags, "--size", 8192), 5)
    if args.minutes >= _LONG or args.tiny:
        size: tuple[object, ...] = ("--preset", "small")
        if args.tiny:
            size = ("--preset", "tiny", "--tracks", 4, "--seconds", 2, "--chunks", 1)
            size += ("--count-iterations", 2)
        words = ("--output", args.output / "small", "--methods", "hybrid-neural", *size)
        demo = (sys.executable, "-m", "scripts.demo", *map(str, words))
        yield Part("small", demo, args.minutes)


def run(part: Part, seconds: float) -> dict[str, Any]:
    """A part's status, seconds, and rows of JSON if it printed them; else its last lines."""
    found: dict[str, Any] = {"name": part.name, "command": list(part.command), "seconds": 0.0}
    if seconds <= 0:
        return found | {"status": "no time left"}
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603
        part.command,
        cwd=ROOT,
        env=os.environ | {"WANDB_MODE": os.environ.get("WANDB_MODE", "offline")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=min(seconds, 60 * part.minutes))
        status = "failed" if process.returncode else "done"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # its children, too, which hold its output open
        said, _ = process.communicate()
        status = "out of time"
    lines = said.strip().splitlines()
    found |= {"status": status, "seconds": time.monotonic() - began}
    try:
        rows = json.loads(lines[-1])
    except (IndexError, ValueError):
        return found | {"lines": lines[-_SHOWN:]}
    return found | {"rows": rows}


def markdown(content: Mapping[str, Any]) -> str:
    """The page: a table per part."""
    text = f"# Measurements on {content['device']}\n\ntorch {torch.__version__}\n"
    for part in content["parts"]:
        words = [word for word in part["command"][1:] if word != "--json"]
        text += f"\n## {part['name']}\n\n    python {' '.join(words)}\n\n"
        text += f"{part['status']}, {part['seconds']:.0f} s\n\n"
        if "rows" in part:
            text += table(part["rows"])
        elif part.get("lines"):
            text += "```\n" + "\n".join(part["lines"]) + "\n```\n"
    return text


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Numbers and names of the rows, without what is missing in all of them."""
    flat = [dict(_flat(row)) for row in rows]
    names = [name for name in dict.fromkeys(n for row in flat for n in row) if name != "threads"]
    names = [name for name in names if any(row.get(name) is not None for row in flat)]
    return markdown_table(names, ([_cell(row.get(name)) for name in names] for row in flat))


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {inner}", number) for inner, number in value.items())
        else:
            yield name, value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
