"""Score the three systems and the baselines on the same chunks of a data set.

    python -m scripts.evaluate --models runs/demo/models --data runs/demo/data --output results.json

Writes results.json, and examples to listen to in results_audio/ beside it. Stopped, the same
command goes on after the last method that was done (results.json.parts/ holds them).

Estimates of a system: `oracle` is the best of N candidates per source by SDR against the truth,
`selected` what the system gives without the truth, `single` its first candidate; each raw, and
refined as a mask of the mixture.
"""

from __future__ import annotations

import datetime
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from jukebox_core.checkpoints import provenance
from jukebox_core.checks import require_fields
from jukebox_core.datasets.manifest import Manifest, load_manifest
from jukebox_core.evaluation.estimates import check_museval, choose_chunks, silence_rule, with_alpha
from jukebox_core.evaluation.results import find_row, make_rows
from jukebox_core.separation.acceleration import Precision
from jukebox_core.separation.separator import Separator
from jukebox_core.training.distributed import set_threads
from scripts._cli import program
from scripts._models import METHODS, Method, build_separator
from scripts._results import format_table
from scripts._settings import Settings, resolve_each
from scripts.evaluate.describe import (
    DEFINITIONS,
    command_flags,
    describe_data,
    describe_model,
    machine,
)
from scripts.evaluate.outputs import EXAMPLES, Outputs
from scripts.evaluate.scoring import Run

__all__ = ["Args", "evaluate", "format_table", "main"]

Baseline = Literal["mixture", "hpss", "nmf", "supervised", "codec", "irm"]
BASELINES: tuple[Baseline, ...] = ("mixture", "hpss", "nmf", "supervised", "codec", "irm")


@dataclass(frozen=True)
class Args:
    """Flags of scripts.evaluate."""

    models: Path
    """Folder of trained models."""
    data: Path
    """Prepared data set."""
    output: Path
    """JSON file to write."""
    methods: tuple[Method, ...] = METHODS
    """Which of the three systems."""
    baselines: tuple[Baseline, ...] = BASELINES
    """What to score beside them."""
    chunks: int = 30
    """At most so many chunks, one per song; beyond that several per song, which do not overlap."""
    split: str = "test"
    """Whose songs; tune on validation, report test."""
    candidates: int | None = None
    """Joint candidates per chunk; default: the models' preset."""
    seed: int = 0
    """Of the chunks and of the sampling."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Precision = "auto"
    """Of the priors."""
    chunk_codes: int = 1024
    """Codes per chunk, at most the models' window."""
    batch: int | None = None
    """Chunks sampled together; default: what fits the memory. It has no part in the scores."""
    examples: int = EXAMPLES
    """Chunks whose audio is written."""
    reference_silence_rule: bool = False
    """Choose chunks by the reference report's rule of silence."""
    museval: bool = False
    """Score with museval itself too (metric sdr_museval): seconds per estimate."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    parts_only: bool = False
    """Score the methods into OUTPUT.parts/ and stop: processes of a method each share the work, and
    the same command without this flag joins what they did."""
    threads: int | None = None
    """CPU threads."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that do not fit together."""
        require_fields(self, "chunks", "chunk_codes", whole=True, at_least=1)
        require_fields(self, "candidates", "batch", optional=True, whole=True, at_least=1)
        require_fields(self, "examples", whole=True, at_least=0)
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods is {' '.join(self.methods) or 'empty'}, expected each once")
        if self.output.suffix != ".json":
            raise ValueError(f"output is {self.output}, expected the name of a .json file")


@program
def main(args: Args) -> None:
    """Evaluate, write the JSON, print the table."""
    set_threads(args.threads)
    results = evaluate(args)
    if args.parts_only:
        return
    print(format_table(results))
    print(f"\n{args.output}")


def evaluate(args: Args) -> dict[str, Any]:
    """Score everything; the results are also written to `args.output` (not with `parts_only`)."""
    if args.museval:
        check_museval()
    settings = resolve_each(args.settings, args.models, args.methods)
    manifest = load_manifest(args.data)
    outputs = Outputs(args.output, manifest.sources)
    outputs.check(args.methods, args.baselines, min(args.examples, args.chunks))
    separators = {method: _build(method, args, settings[method]) for method in args.methods}
    hop, length = _chunk_length(separators, manifest, args)
    rule, silent = silence_rule(args.reference_silence_rule)
    chunks, left_out = choose_chunks(manifest, args.split, args.chunks, length, args.seed, silent)
    with_alpha(chunks, manifest.alpha)
    run = Run(args, manifest, chunks, outputs)
    if len(chunks) < args.chunks:
        run.notes.append(f"{args.chunks} chunks were asked for, the songs have {len(chunks)}")
    if length // hop < args.chunk_codes:
        run.notes.append(
            f"chunks of {args.chunk_codes} codes were asked for, the models' windows have "
            f"{length // hop}"
        )
    if len({chunk.track for chunk in chunks}) < len(chunks):
        run.notes.append(
            "there are several chunks per song: they are not independent, and the intervals "
            "are narrower than those of as many songs would be"
        )
    for method, separator in separators.items():
        run.system(method, separator)
    if args.parts_only:
        return {}
    run.baselines(separators)
    rows = make_rows(run.items, manifest.sources)
    skipped = sum(
        value is None for item in run.items for v in item["values"].values() for value in v.values()
    )
    meta = {
        "data": describe_data(args, manifest, chunks, left_out, length, rule),
        "models": {
            method: describe_model(method, args, separator)
            for method, separator in separators.items()
        },
        "sources": list(manifest.sources),
        "alpha": manifest.alpha,
        "hop": hop,
        "chunk_codes": length // hop,
        "candidates": {m: separator.n_candidates for m, separator in separators.items()},
        "codec_sdr": _codec_sdr(rows),
        "seed": args.seed,
        "skipped_values": skipped,
        "notes": run.notes,
        "definitions": DEFINITIONS,
        "examples": run.examples(),
        "machine": machine(args),
        "command": shlex.join(["python", "-m", "scripts.evaluate", *command_flags(args)]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **provenance(),
    }
    results = {
        "meta": meta,
        "rows": rows,
        "chunks": run.items,
        "seconds_per_chunk": {
            method: part["seconds_per_chunk"]
            for method, part in run.parts.items()
            if part["seconds_per_chunk"] is not None
        },
    }
    outputs.write(results)
    return results


def _codec_sdr(rows: list[dict[str, Any]]) -> dict[str, float]:
    """{codec: mean SDR of its round trip of the truth, in dB}."""
    found = {
        name: find_row({"rows": rows}, name, "oracle", False, "mean", "sdr")
        for name in ("codec", "codec_lass")
    }
    return {name: row["mean"] for name, row in found.items() if row is not None}


def _build(method: Method, args: Args, settings: Settings) -> Separator:
    return build_separator(
        method,
        args.models,
        candidates=args.candidates,
        device=args.device,
        precision=args.precision,
        **vars(settings),
    )


def _chunk_length(
    separators: dict[Method, Separator], manifest: Manifest, args: Args
) -> tuple[int, int]:
    """The hop, and the samples of a chunk; the models must fit each other and the data."""
    hops = {method: s.codec.config.hop for method, s in separators.items()}
    if len(set(hops.values())) != 1:
        raise ValueError(f"the methods' codecs have different hops, no chunk fits all: {hops}")
    for method, separator in separators.items():
        if separator.sample_rate != manifest.sample_rate:
            raise ValueError(
                f"{method} was trained at {separator.sample_rate} Hz, "
                f"{args.data} is at {manifest.sample_rate} Hz"
            )
        if set(separator.sources) != set(manifest.sources):
            raise ValueError(
                f"{method} separates {', '.join(separator.sources)}, "
                f"{args.data} has {', '.join(manifest.sources)}"
            )
        if any(abs(separator.alpha[s] - manifest.alpha[s]) > 1e-6 for s in manifest.sources):
            raise ValueError(
                f"{method} takes mixtures of gains {separator.alpha}, "
                f"those of {args.data} have {manifest.alpha}"
            )
    (hop,) = set(hops.values())
    return hop, hop * min(args.chunk_codes, *(s.window for s in separators.values()))
