"""The methods of one evaluation: scored one after the other, each kept on disk once it is done."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jukebox_core import audio as audio_io
from jukebox_core.checkpoints import fingerprint, load_mask_estimator
from jukebox_core.datasets.manifest import MANIFEST_NAME, Manifest
from jukebox_core.evaluation import baselines
from jukebox_core.evaluation.estimates import (
    Chunk,
    Estimate,
    codec_round_trip,
    entry,
    system_estimates,
)
from jukebox_core.evaluation.nmf import nmf
from jukebox_core.files import atomic_path, sha256, write_json
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.separator import Separator
from scripts._models import FAMILY, METHODS, Method, pick_device
from scripts._results import NAMES
from scripts.evaluate.describe import describe_model, fingerprints
from scripts.evaluate.outputs import HEARD, PLAYED, Outputs

if TYPE_CHECKING:
    from scripts.evaluate import Args

__all__ = ["Run"]

_CODEC_ORDER: tuple[Method, ...] = ("hybrid", "lqvae", "lass")
_TIMED = ("hpss", "nmf", "supervised")  # baselines that separate


@dataclass
class Run:
    """The methods done so far: kept in memory, and on disk until the results are written."""

    args: Args
    manifest: Manifest
    chunks: list[Chunk]
    outputs: Outputs
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Folder of the results; the examples' paths are relative to it."""
        return self.args.output.parent

    @property
    def items(self) -> list[dict[str, Any]]:
        """The scores of all methods done."""
        return [item for part in self.parts.values() for item in part["chunks"]]

    def system(self, method: Method, separator: Separator) -> None:
        """Score one of the three systems."""
        settings = {
            "models": fingerprints(self.args.models, method),
            "described": describe_model(method, self.args, separator),
            "device": separator.device.type,
        }

        def score() -> dict[str, Any]:
            self._announce(method)
            batch = self.args.batch
            if batch is None:
                batch = separator.fitting_batch()
            items, seconds = [], 0.0
            with tqdm(desc=method, unit="step", disable=None, leave=False) as bar:
                found = system_estimates(separator, self.chunks, self.args.seed, batch, _bar(bar))
                for i, (chunk, made) in enumerate(zip(self.chunks, found, strict=True)):
                    seconds += made.seconds
                    self._write_uncertainty(i, method, made.uncertainty, separator.refinement)
                    for estimate in made.estimates:
                        items.append(self._entry(i, chunk, method, estimate))
                        suffix = PLAYED.get((estimate.estimate, estimate.refined))
                        if suffix is not None:
                            self._write_example(i, method + suffix, estimate.stems)
            return {"chunks": items, "seconds_per_chunk": seconds / len(self.chunks)}

        self._do(method, settings, score)

    def baselines(self, separators: dict[Method, Separator]) -> None:
        """Score what gives the systems' scores a meaning."""
        wanted, alpha = self.args.baselines, self.manifest.alpha
        self._announce("truth")
        for i, chunk in enumerate(self.chunks):
            self._write_example(i, "truth", chunk.sources)
            self._write_example(i, "", {"mixture": chunk.mixture})

        def nothing(chunk: Chunk) -> dict[str, Tensor]:
            return baselines.mixture_as_estimate(chunk.mixture, self.manifest.sources)

        def percussive(chunk: Chunk) -> dict[str, Tensor]:
            return _first(baselines.hpss(chunk.mixture[None], alpha))

        def factorised(chunk: Chunk) -> dict[str, Tensor]:
            return _first(nmf(chunk.mixture[None], alpha))

        def masked(chunk: Chunk) -> dict[str, Tensor]:
            truth = {name: x[None] for name, x in chunk.sources.items()}
            return _first(baselines.ideal_ratio_mask(chunk.mixture[None], truth, alpha))

        if "mixture" in wanted:
            self._baseline("mixture", "selected", {}, nothing)
        for name, separate in (("hpss", percussive), ("nmf", factorised)):
            if name in wanted and len(alpha) == 2 and "drums" in alpha:
                self._baseline(name, "selected", {}, separate)
            elif name in wanted:
                self.notes.append(f"{name} was left out: it needs drums and one more source")
        if "supervised" in wanted:
            self._supervised()
        if "codec" in wanted:
            self._codecs(separators)
        if "irm" in wanted:
            self._baseline("irm", "oracle", {}, masked)

    def examples(self) -> list[dict[str, Any]]:
        """What was written for listening; paths are relative to the JSON's folder."""
        groups = [m + suffix for m in self.args.methods for suffix in PLAYED.values()]
        groups += [name for name in HEARD if name in self.parts]
        described = []
        name = self.outputs.example
        for i, chunk in enumerate(self.chunks[: self.args.examples]):
            files: dict[str, Any] = {"mixture": name(i, "", "mixture")}
            for group in ("truth", *groups):
                files[group] = {s: name(i, group, s) for s in self.manifest.sources}
            unsure = {m: name(i, m, "uncertainty", "npz") for m in self.args.methods}
            described.append(
                {
                    "chunk": i,
                    "track": chunk.track,
                    "start": chunk.start,
                    "files": files,
                    "uncertainty": unsure,
                }
            )
        return described

    def _supervised(self) -> None:
        """The mask estimator of MODELS/mask_estimator; a note where there is none.

        Raises:
            ValueError: it was trained for other data than these.
        """
        folder = self.args.models / "mask_estimator"
        if not folder.is_dir():
            self.notes.append(
                f"supervised was left out: there is no {folder.name} among the models; train it: "
                f"python -m scripts.train_mask --data DATA --output MODELS/{folder.name}"
            )
            return
        device = pick_device(self.args.device)
        estimator = load_mask_estimator(folder, device)
        trained = {"sample_rate": estimator.config.sample_rate, "alpha": estimator.alpha}
        here = {"sample_rate": self.manifest.sample_rate, "alpha": self.manifest.alpha}
        if trained != here:
            raise ValueError(f"{folder} was trained for {trained}, {self.args.data} has {here}")

        def supervised(chunk: Chunk) -> dict[str, Tensor]:
            stems = estimator.separate(chunk.mixture[None].to(device))
            return {name: x[0].cpu() for name, x in stems.items()}

        settings = {"weights": fingerprint(folder), "device": device.type}
        self._baseline("supervised", "selected", settings, supervised)

    def _codecs(self, separators: dict[Method, Separator]) -> None:
        """The ceilings of the raw estimates: one codec, or two where the methods have two."""
        families: dict[str, Method] = {}
        for method in _CODEC_ORDER:
            if method in separators:
                families.setdefault(FAMILY[method], method)
        for name, (family, method) in zip(("codec", "codec_lass"), families.items(), strict=False):
            self._baseline(
                name,
                "oracle",
                {"codec": fingerprint(self.args.models / family / "vqvae")},
                functools.partial(codec_round_trip, separators[method].codec),
            )
            self.notes.append(
                f"{NAMES[name]}: the truth through the codec of {NAMES[method]} ({family})"
            )

    def _baseline(
        self,
        method: str,
        estimate: str,
        settings: dict[str, Any],
        separate: Callable[[Chunk], dict[str, Tensor]],
    ) -> None:
        def score() -> dict[str, Any]:
            if method in HEARD:
                self._announce(method)
            items, seconds = [], 0.0
            for i, chunk in enumerate(self.chunks):
                began = time.perf_counter()
                stems = separate(chunk)
                seconds += time.perf_counter() - began
                if method in HEARD:
                    self._write_example(i, method, stems)
                items.append(self._entry(i, chunk, method, Estimate(estimate, False, stems)))
            timed = seconds / len(self.chunks) if method in _TIMED else None
            return {"chunks": items, "seconds_per_chunk": timed}

        self._do(method, settings, score)

    def _entry(self, i: int, chunk: Chunk, method: str, found: Estimate) -> dict[str, Any]:
        return entry(i, chunk, method, found, self.args.museval)

    def _do(
        self, method: str, settings: dict[str, Any], score: Callable[[], dict[str, Any]]
    ) -> None:
        """Take a method's part from the disk where it was made with the same settings."""
        everything = settings | {
            "version": 3,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "data": sha256(self.args.data / MANIFEST_NAME),
            "chunks": [[c.track, c.start, len(c.mixture)] for c in self.chunks],
            "seed": self.args.seed,
            "examples": self.args.examples,
            "museval": self.args.museval,
        }
        key = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
        path = self.outputs.part(method)
        part = _read_part(path)
        if part.get("key") != key or not self._has_examples(method):
            path.unlink(missing_ok=True)  # from here on its examples are another run's
            part = {"key": key, **score()}
            write_json(path, part)
        self.parts[method] = json.loads(json.dumps(part))

    def _has_examples(self, method: str) -> bool:
        """Whether a system's audio and uncertainty are there, a baseline's audio."""
        count = min(self.args.examples, len(self.chunks))
        names = self.outputs.examples(method, count if method in (*METHODS, *HEARD) else 0)
        return all((self.folder / name).is_file() for name in names)

    def _announce(self, method: str) -> None:
        count = min(self.args.examples, len(self.chunks))
        self.outputs.announce(method, self.outputs.examples(method, count))

    def _write_example(self, i: int, group: str, stems: dict[str, Tensor]) -> None:
        """Stems at the level at which they stand in the mixture, where 1.0 is full scale."""
        if i >= self.args.examples:
            return
        for name, x in stems.items():
            path = self.folder / self.outputs.example(i, group, name)
            audio_io.save(path, self.manifest.alpha.get(name, 1.0) * x, self.manifest.sample_rate)

    def _write_uncertainty(self, i: int, method: str, values: Tensor, mask: RatioMask) -> None:
        """Of an example [F, frames], with the hertz between bins and the seconds between frames."""
        if i >= self.args.examples:
            return
        path = self.folder / self.outputs.example(i, method, "uncertainty", "npz")
        rate = self.manifest.sample_rate
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                uncertainty=values.half().numpy(),
                hertz=rate / mask.n_fft,
                seconds=mask.hop / rate,
            )


def _read_part(path: Path) -> dict[str, Any]:
    """A stored part; empty where there is none that can be read."""
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return part if isinstance(part, dict) else {}


def _first(stems: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x[0] for name, x in stems.items()}


def _bar(bar: tqdm) -> Callable[[int, int], None]:
    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return update
