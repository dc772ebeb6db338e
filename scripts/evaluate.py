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
import functools
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from jukebox_core import audio as audio_io
from jukebox_core.checkpoints import fingerprint, load_meta, provenance
from jukebox_core.files import sha256, write_json
from jukebox_core.manifest import MANIFEST_NAME, Manifest, load_manifest
from jukebox_core.separation import baselines
from jukebox_core.separation.refinement import RatioMask
from jukebox_core.separation.separator import Separator
from scripts._cli import program
from scripts._evaluation import (
    Chunk,
    Estimate,
    choose_chunks,
    codec_round_trip,
    entry,
    silence_rule,
    system_estimates,
    with_alpha,
)
from scripts._models import FAMILY, METHODS, Method, build_separator, pick_device
from scripts._results import format_table, make_rows

__all__ = ["Args", "evaluate", "format_table", "main"]

_CODEC_ORDER: tuple[Method, ...] = ("hybrid", "lqvae", "lass")
_DEFINITIONS = {
    "scale": "references are the sources x_i; the mixture is y = sum alpha_i x_i; an estimate of "
    "x_i is a stem divided by alpha_i",
    "mixture": "y itself as the estimate of every source (estimate selected, not refined)",
    "hpss": "librosa's harmonic-percussive separation: percussive part to drums, harmonic part to "
    "the other source (estimate selected, not refined)",
    "codec": "the truth through the codec and back (estimate oracle: it uses the truth)",
    "codec_lass": "the same for LASS's codec, where it is another one",
    "irm": "the refinement's mask made from the truth (estimate oracle: it uses the truth)",
    "oracle": "best of the candidates per source by whole-chunk SDR against the truth; raw, and "
    "refined: the best of the masks made from each candidate pair alone",
    "selected": "without the truth; raw: the pair whose sum is nearest to the mixture in magnitude "
    "spectrum; refined: the mask from the mean power of all candidates",
    "single": "the first candidate; raw, and refined: the mask made from it alone",
    "sdr_seed": "median SDR of complete windows of 44,100 samples (museval, BSSEval v4)",
    "sdr": "SDR over the whole chunk",
    "si_sdr": "scale-invariant SDR",
    "si_sdri": "si_sdr minus that of the mixture",
    "interval": "95%, percentile bootstrap over chunks, 10,000 resamples",
}


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
    chunks: int = 30
    """Chunks, one per song; more than there are songs: several per song."""
    split: str = "test"
    """Whose songs; tune on validation, report test."""
    candidates: int | None = None
    """Joint candidates per chunk; default: the models' preset."""
    seed: int = 0
    """Of the chunks and of the sampling."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    chunk_codes: int = 1024
    """Codes per chunk, at most the models' window."""
    batch: int | None = None
    """Chunks sampled together; default: all (fewer need less memory)."""
    examples: int = 3
    """Chunks whose audio is written."""
    seed_silence_rule: bool = False
    """Choose chunks by the original systems' rule of silence."""
    temperature: float = 1.0
    """Of the priors."""
    sigma: float | None = None
    """Of the LQ-VAE's Gaussian likelihood; default 0.4."""
    weight: float | None = None
    """Lambda of the counted likelihood; default 3."""
    mask_power: float = 2.0
    """Power of the ratio mask."""
    threads: int | None = None
    """CPU threads."""


@program
def main(args: Args) -> None:
    """Evaluate, write the JSON, print the table."""
    if args.threads:
        torch.set_num_threads(args.threads)
    results = evaluate(args)
    print(format_table(results))
    print(f"\n{args.output}")


def evaluate(args: Args) -> dict[str, Any]:
    """Score everything; the results are also written to `args.output`."""
    _check(args)
    manifest = load_manifest(args.data)
    separators = {method: _build(method, args) for method in args.methods}
    hop, length = _chunk_length(separators, manifest, args)
    rule, silent = silence_rule(args.seed_silence_rule)
    chunks, left_out = choose_chunks(manifest, args.split, args.chunks, length, args.seed, silent)
    with_alpha(chunks, manifest.alpha)
    run = _Run(args, manifest, chunks)
    for method, separator in separators.items():
        run.system(method, separator)
    run.baselines(separators)
    items = [item for method in run.parts for item in run.parts[method]["chunks"]]
    skipped = sum(
        value is None for item in items for v in item["values"].values() for value in v.values()
    )
    meta = {
        "data": _describe_data(args, manifest, chunks, left_out, length, rule),
        "models": {
            method: _describe_model(method, args, separator)
            for method, separator in separators.items()
        },
        "sources": list(manifest.sources),
        "alpha": manifest.alpha,
        "hop": hop,
        "chunk_codes": length // hop,
        "candidates": {m: separator.n_candidates for m, separator in separators.items()},
        "seed": args.seed,
        "skipped_values": skipped,
        "notes": run.notes,
        "definitions": _DEFINITIONS,
        "examples": run.examples(),
        "machine": _machine(args),
        "command": shlex.join(["python", "-m", "scripts.evaluate", *_flags(args)]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **provenance(),
    }
    results = {
        "meta": meta,
        "rows": make_rows(items, manifest.sources),
        "chunks": items,
        "seconds_per_chunk": {
            method: part["seconds_per_chunk"]
            for method, part in run.parts.items()
            if part["seconds_per_chunk"] is not None
        },
    }
    write_json(args.output, results)
    run.finish()
    return results


@dataclass
class _Run:
    """The methods done so far: kept in memory, and on disk until the results are written."""

    args: Args
    manifest: Manifest
    chunks: list[Chunk]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Of the parts."""
        return self.args.output.with_name(self.args.output.name + ".parts")

    @property
    def audio(self) -> Path:
        """Of the examples."""
        return self.args.output.with_name(self.args.output.stem + "_audio")

    def system(self, method: Method, separator: Separator) -> None:
        """Score one of the three systems."""
        settings = {
            "models": _fingerprints(self.args.models, method),
            "candidates": separator.n_candidates,
            "temperature": self.args.temperature,
            "sigma": self.args.sigma if method == "lqvae" else None,
            "weight": self.args.weight if method != "lqvae" else None,
            "mask_power": self.args.mask_power,
            "batch": self.args.batch,
            "device": separator.device.type,
        }

        def score() -> dict[str, Any]:
            batch = self.args.batch or len(self.chunks)
            items, seconds = [], 0.0
            with tqdm(desc=method, unit="step", disable=None, leave=False) as bar:
                found = system_estimates(separator, self.chunks, self.args.seed, batch, _bar(bar))
                for i, (chunk, (time_taken, estimates)) in enumerate(
                    zip(self.chunks, found, strict=True)
                ):
                    seconds += time_taken
                    items += [entry(i, chunk, method, estimate) for estimate in estimates]
                    chosen = next(e for e in estimates if e[:2] == ("selected", True))
                    self._write_example(i, method, chosen.stems)
            return {"chunks": items, "seconds_per_chunk": seconds / len(self.chunks)}

        self._do(method, settings, score)

    def baselines(self, separators: dict[Method, Separator]) -> None:
        """Score what gives the systems' scores a meaning."""
        alpha = self.manifest.alpha
        for i, chunk in enumerate(self.chunks):
            self._write_example(i, "truth", chunk.sources)
            self._write_example(i, "", {"mixture": chunk.mixture})

        def nothing(chunk: Chunk) -> dict[str, torch.Tensor]:
            return baselines.mixture_as_estimate(chunk.mixture, self.manifest.sources)

        def percussive(chunk: Chunk) -> dict[str, torch.Tensor]:
            return _first(baselines.hpss(chunk.mixture[None], alpha))

        def masked(chunk: Chunk) -> dict[str, torch.Tensor]:
            truth = {name: x[None] for name, x in chunk.sources.items()}
            mask = RatioMask(power=self.args.mask_power)
            return _first(baselines.ideal_ratio_mask(chunk.mixture[None], truth, alpha, mask))

        self._baseline("mixture", "selected", {}, nothing)
        if len(alpha) == 2 and "drums" in alpha:
            self._baseline("hpss", "selected", {}, percussive)
        else:
            self.notes.append("hpss was left out: the data set has no source called drums")
        families: dict[str, Method] = {}
        for method in _CODEC_ORDER:
            if method in separators:
                families.setdefault(FAMILY[method], method)
        for name, (family, method) in zip(("codec", "codec_lass"), families.items(), strict=False):
            codec = separators[method].codec
            self._baseline(
                name,
                "oracle",
                {"codec": fingerprint(self.args.models / family / "vqvae")},
                functools.partial(codec_round_trip, codec),
            )
            self.notes.append(f"{name} is the codec of {method} ({family})")
        self._baseline("irm", "oracle", {"mask_power": self.args.mask_power}, masked)

    def examples(self) -> list[dict[str, Any]]:
        """What was written for listening; paths are relative to the JSON's folder."""
        methods = [m for m in self.args.methods if m in self.parts]
        described = []
        for i, chunk in enumerate(self.chunks[: self.args.examples]):
            files: dict[str, Any] = {"mixture": self._example(i, "", "mixture")}
            for group in ("truth", *methods):
                files[group] = {s: self._example(i, group, s) for s in self.manifest.sources}
            described.append(
                {"chunk": i, "track": chunk.track, "start": chunk.start, "files": files}
            )
        return described

    def finish(self) -> None:
        """Remove the parts, and examples that are not of this run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        known = {self.audio.parent / name for name in _strings(self.examples())}
        for path in self.audio.glob("*.flac"):
            if path not in known:
                path.unlink()

    def _baseline(
        self,
        method: str,
        estimate: str,
        settings: dict[str, Any],
        separate: Callable[[Chunk], dict[str, torch.Tensor]],
    ) -> None:
        def score() -> dict[str, Any]:
            items, seconds = [], 0.0
            for i, chunk in enumerate(self.chunks):
                began = time.perf_counter()
                stems = separate(chunk)
                seconds += time.perf_counter() - began
                items.append(entry(i, chunk, method, Estimate(estimate, False, stems)))
            timed = seconds / len(self.chunks) if method == "hpss" else None
            return {"chunks": items, "seconds_per_chunk": timed}

        self._do(method, settings, score)

    def _do(
        self, method: str, settings: dict[str, Any], score: Callable[[], dict[str, Any]]
    ) -> None:
        """Take a method's part from the disk where it was made with the same settings."""
        everything = settings | {
            "version": 1,
            "data": sha256(self.args.data / MANIFEST_NAME),
            "chunks": [[c.track, c.start, len(c.mixture)] for c in self.chunks],
            "seed": self.args.seed,
            "examples": self.args.examples,
        }
        key = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{method}.json"
        part = _read_part(path)
        if part.get("key") != key or not self._has_examples(method):
            part = {"key": key, **score()}
            write_json(path, part)
        self.parts[method] = json.loads(json.dumps(part))

    def _has_examples(self, method: str) -> bool:
        """Whether a system's audio is there; baselines have none."""
        shown = range(min(self.args.examples, len(self.chunks)) if method in METHODS else 0)
        names = [self._example(i, method, s) for i in shown for s in self.manifest.sources]
        return all((self.audio.parent / name).is_file() for name in names)

    def _write_example(self, i: int, group: str, stems: dict[str, torch.Tensor]) -> None:
        """Stems at the level at which they stand in the mixture, where 1.0 is full scale."""
        if i >= self.args.examples:
            return
        for name, x in stems.items():
            path = self.audio.parent / self._example(i, group, name)
            audio_io.save(path, self.manifest.alpha.get(name, 1.0) * x, self.manifest.sample_rate)

    def _example(self, i: int, group: str, name: str) -> str:
        stem = "_".join(part for part in (f"{i:02d}", group, name) if part)
        return f"{self.audio.name}/{stem}.flac"


def _check(args: Args) -> None:
    """Refuse flags without meaning before anything is loaded."""
    for name in ("chunks", "chunk_codes"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected >= 1")
    if args.batch is not None and args.batch < 1:
        raise ValueError(f"--batch is {args.batch}, expected >= 1")
    if args.candidates is not None and args.candidates < 1:
        raise ValueError(f"--candidates is {args.candidates}, expected >= 1")
    if args.examples < 0:
        raise ValueError(f"--examples is {args.examples}, expected >= 0")
    if not args.methods or len(set(args.methods)) != len(args.methods):
        raise ValueError(f"--methods is {' '.join(args.methods) or 'empty'}, expected each once")
    if args.output.suffix != ".json":
        raise ValueError(f"--output is {args.output}, expected the name of a .json file")


def _build(method: Method, args: Args) -> Separator:
    return build_separator(
        method,
        args.models,
        candidates=args.candidates,
        device=args.device,
        temperature=args.temperature,
        sigma=args.sigma,
        weight=args.weight,
        mask_power=args.mask_power,
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


def _fingerprints(models: Path, method: Method) -> dict[str, str]:
    """What a method is made of."""
    family = models / FAMILY[method]
    runs = [family / "vqvae", *sorted(p for p in family.glob("prior_*") if p.is_dir())]
    table = "sums.safetensors" if method == "lqvae" else "counts.safetensors"
    return {run.name: fingerprint(run) for run in runs} | {table: sha256(family / table)}


def _describe_model(method: Method, args: Args, separator: Separator) -> dict[str, Any]:
    family = args.models / FAMILY[method]
    codec = load_meta(family / "vqvae")
    return {
        "family": FAMILY[method],
        "preset": codec.get("preset"),
        "steps": {
            name: load_meta(family / name).get("step")
            for name in ("vqvae", *(f"prior_{source}" for source in separator.sources))
        },
        "n_codes": separator.codec.config.l_bins,
        "window": separator.window,
        "temperature": args.temperature,
        "sigma": (args.sigma or "default") if method == "lqvae" else None,
        "weight": (args.weight or "default") if method != "lqvae" else None,
        "mask_power": args.mask_power,
    }


def _describe_data(
    args: Args,
    manifest: Manifest,
    chunks: Sequence[Chunk],
    left_out: list[str],
    length: int,
    rule: str,
) -> dict[str, Any]:
    content = json.loads((args.data / MANIFEST_NAME).read_text(encoding="utf-8"))
    songs = len({chunk.track for chunk in chunks})
    return {
        "folder": args.data.name,
        "split": args.split,
        "chunks": len(chunks),
        "songs": songs,
        "songs_in_split": len(manifest.split(args.split)),
        "several_chunks_per_song": len(chunks) > songs,
        "songs_left_out": left_out,
        "chunk_samples": length,
        "sample_rate": manifest.sample_rate,
        "silence_rule": rule,
        "settings": content.get("settings", {}),
        "manifest_sha256": sha256(args.data / MANIFEST_NAME),
    }


def _machine(args: Args) -> dict[str, Any]:
    device = pick_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": name,
    }


def _flags(args: Args) -> list[str]:
    """The flags that differ from their defaults, as they would be typed."""
    flags = []
    for name, default in Args.__dataclass_fields__.items():
        value = getattr(args, name)
        if value == default.default:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag)
        else:
            flags += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return flags


def _read_part(path: Path) -> dict[str, Any]:
    """A stored part; empty where there is none that can be read."""
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return part if isinstance(part, dict) else {}


def _first(stems: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x[0] for name, x in stems.items()}


def _strings(value: Any) -> list[str]:
    """All strings inside."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in _strings(item)]


def _bar(bar: tqdm) -> Callable[[int, int], None]:
    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return update


if __name__ == "__main__":
    sys.exit(main())
