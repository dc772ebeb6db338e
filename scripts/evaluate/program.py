"""Score the methods and the baselines on the same chunks of a data set.

    python -m scripts.evaluate --models runs/demo/models --data runs/demo/data --output results.json
    torchrun --nproc-per-node 4 -m scripts.evaluate --models ... --data ... --output results.json
    mpiexec -n 4 python -m scripts.evaluate --models ... --data ... --output results.json

Writes results.json, and examples to listen to in results_audio/ beside it. If interrupted, run the
same command again: it resumes after the last finished method (results.json.parts/). Several
processes share the chunks, each on its own GPU or its share of the cores; with equal --threads,
the scores are the same as with one process.

Estimates of a method: `oracle` takes the best of N candidates per source by SDR against the true
source, `selected` takes what a user gets, `single` takes the first candidate; each both raw and
refined by masking the mixture.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from jukebox_core.checkpoints import provenance
from jukebox_core.checks import require_fields
from jukebox_core.datasets.manifest import Manifest, load_manifest
from jukebox_core.evaluation.chunks import (
    Chunk,
    Silent,
    check_mixtures,
    choose_chunks,
    consecutive_chunks,
    silence_rule,
)
from jukebox_core.evaluation.outputs import EXAMPLES, Outputs
from jukebox_core.evaluation.results import find_row, make_rows
from jukebox_core.evaluation.scores import check_museval
from jukebox_core.locks import sole_writer
from jukebox_core.machine import pick_device, set_threads
from jukebox_core.prior.joint import Precision
from jukebox_core.separation.method import Method, resolve_each
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import Settings
from jukebox_core.training.ranks import Ranks
from scripts._cli import program
from scripts._methods import METHODS, MethodName, default_methods
from scripts._results import format_table
from scripts.evaluate.describe import (
    definitions,
    describe_data,
    describe_model,
    machine,
)
from scripts.evaluate.scoring import Scoring

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
    methods: tuple[MethodName, ...] | None = None
    """Separation methods to score; default: those of lqvae, lass and hybrid whose codec's folder
    the models have, and hybrid-neural if they have a neural likelihood."""
    baselines: tuple[Baseline, ...] = BASELINES
    """Baselines to score."""
    chunks: int = 30
    """Maximum number of chunks, one per song; with fewer songs, several that do not overlap."""
    chunks_per_song: int | None = None
    """Score up to so many chunks of every song, spread evenly over it; `chunks` then has no
    effect."""
    by_song: bool = False
    """Intervals by a bootstrap over songs instead of chunks; the chunks of a song stay together."""
    split: str = "test"
    """Split of the songs: tune on validation, report test."""
    candidates: int | None = None
    """Joint candidates per chunk; default: the number of the models' preset."""
    seed: int = 0
    """Random seed for the choice of chunks and for sampling."""
    device: str = "auto"
    """auto, cpu, cuda or mps; each of several processes uses its own GPU."""
    precision: Precision = "auto"
    """Precision of the priors."""
    chunk_codes: int = 1024
    """Codes per chunk, at most the models' window."""
    batch: int | None = None
    """Chunks sampled together; default: as many as fit in memory. Has no effect on the scores."""
    examples: int = EXAMPLES
    """Chunks whose audio is written."""
    reference_silence_rule: bool = False
    """Choose chunks by the reference report's rule of silence."""
    museval: bool = False
    """Also compute museval's own SDR (metric sdr_museval), which takes seconds per estimate."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    parts_only: bool = False
    """Only score the methods into OUTPUT.parts/: several processes can score a method each, and the
    same command without this flag joins their scores."""
    threads: int | None = None
    """CPU threads; without it PyTorch's choice, divided among the processes."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and values that do not fit together."""
        require_fields(self, "chunks", "chunk_codes", whole=True, at_least=1)
        counts = ("candidates", "batch", "chunks_per_song")
        require_fields(self, *counts, optional=True, whole=True, at_least=1)
        require_fields(self, "examples", whole=True, at_least=0)
        if self.methods is not None:
            if not self.methods or len(set(self.methods)) != len(self.methods):
                named = " ".join(self.methods) or "empty"
                raise ValueError(f"methods is {named}, expected each once")
        if self.output.suffix != ".json":
            raise ValueError(f"output is {self.output}, expected the name of a .json file")


@program
def main(args: Args, command: str) -> None:
    """Evaluate, write the JSON, print the table."""
    ranks = Ranks()
    set_threads(args.threads, ranks.local_size)
    results = evaluate(args, command, ranks)
    if args.parts_only or ranks.rank > 0:
        return
    print(format_table(results))
    print(f"\n{args.output}")


def evaluate(args: Args, command: str, ranks: Ranks) -> dict[str, Any]:
    """Score everything and write the results (not with `parts_only`).

    Args:
        args: the flags.
        command: the command line, for the record.
        ranks: the processes that share the chunks.
    """
    with ExitStack() as locks:
        work = ranks.together(lambda: _open(args, ranks, locks))
        run = work.run
        for name in work.methods:
            run.system(name, work.separators[name], work.identity(name), args.batch)
        if args.parts_only:
            return {}
        codecs = {str(name): separator for name, separator in work.separators.items()}
        run.baselines(args.baselines, codecs)
        return ranks.on_first(lambda: _write(work, command))


@dataclass(frozen=True)
class _Work:
    """Models, chunks and outputs of an evaluation.

    settings: resolved. models: descriptions of the methods' models. rule: of silence. left_out:
    names of songs without a usable chunk.
    """

    args: Args
    methods: Mapping[MethodName, Method]
    settings: Mapping[MethodName, Settings]
    separators: Mapping[MethodName, Separator]
    models: Mapping[MethodName, dict[str, Any]]
    rule: str
    left_out: list[str]
    song_of: Mapping[str, str]
    run: Scoring

    def identity(self, name: MethodName) -> dict[str, Any]:
        """Everything about a method that its scores depend on."""
        method, full = self.methods[name], self.settings[name]
        return {
            "models": method.fingerprints(method.folder(self.args.models), full),
            "description": self.models[name],
            "settings": vars(full),
            "device": self.separators[name].device.type,
        }


def _open(args: Args, ranks: Ranks, locks: ExitStack) -> _Work:
    """Check the flags and the outputs, which the first process locks; load models and chunks."""
    if args.museval:
        check_museval()
    names = default_methods(args.models) if args.methods is None else args.methods
    methods = {name: METHODS[name] for name in names}
    settings = resolve_each(args.settings, dict.fromkeys(methods.values(), args.models))
    manifest = load_manifest(args.data)
    outputs = Outputs(args.output, manifest.sources, METHODS)
    if ranks.rank == 0:
        outputs.check(names, args.baselines, min(args.examples, args.chunks))
        parts = [args.output.with_name(f"{args.output.name} ({name})") for name in names]
        for path in parts if args.parts_only else [args.output, *parts]:
            locks.enter_context(sole_writer(path))
    device = ranks.device(args.device)
    separators = {
        name: method.load_separator(
            args.models,
            settings[name],
            device,
            candidates=args.candidates,
            precision=args.precision,
        )
        for name, method in methods.items()
    }
    hop, length = _chunk_length(separators, manifest, args)
    rule, silent = silence_rule(args.reference_silence_rule)
    chunks, left_out = _choose(args, manifest, length, silent)
    check_mixtures(chunks)
    resolved = {
        name: method.resolve(settings[name], args.models) for name, method in methods.items()
    }
    models = {
        name: describe_model(method, args.models, separators[name], resolved[name])
        | {"precision": args.precision}
        for name, method in methods.items()
    }
    run = Scoring(
        args.models,
        args.data,
        manifest,
        chunks,
        outputs,
        tuple(methods),
        args.seed,
        args.examples,
        args.museval,
        pick_device(device),
        ranks,
    )
    if len(chunks) < args.chunks and args.chunks_per_song is None:
        run.notes.append(f"{args.chunks} chunks were requested, the songs have {len(chunks)}")
    if length // hop < args.chunk_codes:
        run.notes.append(
            f"chunks of {args.chunk_codes} codes were requested, the models' windows have "
            f"{length // hop}"
        )
    song_of = {track.name: track.song for track in manifest.split(args.split)}
    if len({song_of[chunk.track] for chunk in chunks}) < len(chunks) and not args.by_song:
        run.notes.append(
            "there are several chunks per song: they are not independent, so the intervals are too "
            "narrow"
        )
    return _Work(args, methods, resolved, separators, models, rule, left_out, song_of, run)


def _write(work: _Work, command: str) -> dict[str, Any]:
    """Write the results of finished scores; return them."""
    args, run = work.args, work.run
    manifest, chunks = run.manifest, run.chunks
    rows = make_rows(run.items, manifest.sources, songs=work.song_of if args.by_song else None)
    skipped = sum(
        value is None for item in run.items for v in item["values"].values() for value in v.values()
    )
    hop = next(iter(work.separators.values())).codec.config.hop
    meta: dict[str, Any] = {
        "data": describe_data(args.data, args.split, manifest, chunks, work.left_out)
        | {"silence_rule": work.rule},
        "models": work.models,
        "sources": list(manifest.sources),
        "alpha": manifest.alpha,
        "hop": hop,
        "chunk_codes": len(chunks[0].mixture) // hop,
        "candidates": {m: separator.n_candidates for m, separator in work.separators.items()},
        "codec_sdr": _codec_sdr(rows),
        "seed": args.seed,
        "skipped_values": skipped,
        "notes": run.notes,
        "definitions": definitions(args.by_song),
        "examples": run.examples(),
        "machine": machine(run.device, run.ranks.size),
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **provenance(),
    }
    if args.by_song:
        meta["song_of"] = {c.track: work.song_of[c.track] for c in chunks}
        meta["data"]["songs"] = len(set(meta["song_of"].values()))
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
    run.outputs.write(results)
    return results


def _choose(
    args: Args, manifest: Manifest, length: int, silent: Silent
) -> tuple[list[Chunk], list[str]]:
    """The chunks of `length` samples, and the names of songs without one."""
    if args.chunks_per_song is not None:
        return consecutive_chunks(manifest, args.split, args.chunks_per_song, length, silent)
    return choose_chunks(manifest, args.split, args.chunks, length, args.seed, silent)


def _codec_sdr(rows: list[dict[str, Any]]) -> dict[str, float]:
    """{codec: mean SDR of its round trip of the truth, in dB}."""
    found = {
        name: find_row({"rows": rows}, name, "oracle", False, "mean", "sdr")
        for name in ("codec", "codec_lass")
    }
    return {name: row["mean"] for name, row in found.items() if row is not None}


def _chunk_length(
    separators: Mapping[MethodName, Separator], manifest: Manifest, args: Args
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
                f"{method} expects mixtures with gains {separator.alpha}, "
                f"{args.data} has {manifest.alpha}"
            )
    (hop,) = set(hops.values())
    return hop, hop * min(args.chunk_codes, *(s.window for s in separators.values()))
