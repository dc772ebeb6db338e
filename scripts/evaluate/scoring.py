"""Score the methods and baselines of an evaluation one by one; finished ones stay on disk."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import scripts
from jukebox_core import audio as audio_io
from jukebox_core.checkpoints import fingerprint
from jukebox_core.datasets.manifest import MANIFEST_NAME, Manifest
from jukebox_core.evaluation.baselines import Baseline, first, untrained_baselines
from jukebox_core.evaluation.chunks import Chunk
from jukebox_core.evaluation.estimates import (
    Estimator,
    First,
    Masked,
    Oracle,
    Selected,
    codec_round_trip,
    draw_candidates,
)
from jukebox_core.evaluation.mask_estimator import MaskEstimator, load_mask_estimator
from jukebox_core.evaluation.outputs import HEARD, PLAYED, Outputs
from jukebox_core.evaluation.scores import score
from jukebox_core.files import atomic_path, sha256
from jukebox_core.kept import kept, key_of, read_kept
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.separator import Separator
from jukebox_core.training.ranks import Ranks
from scripts._methods import METHODS, MethodName
from scripts._results import NAMES

_CODEC_ORDER: tuple[MethodName, ...] = ("hybrid", "lqvae", "lass", *METHODS)
_TIMED = ("hpss", "nmf", "supervised")  # baselines that separate


def estimators(separator: Separator) -> dict[tuple[str, bool], Estimator]:
    """{(estimate, refined): how it is made from the candidates}."""
    mask = separator.mask
    return {
        ("oracle", False): Oracle(),
        ("oracle", True): Oracle(mask),
        ("selected", False): Selected(separator.selection),
        ("selected", True): Masked(mask, separator.weights),
        ("single", False): First(),
        ("single", True): First(mask),
    }


class Scored(NamedTuple):
    """Some chunks' items of the results, and the seconds that their estimates took."""

    items: list[dict[str, Any]]
    seconds: float


@dataclass
class Scoring:
    """The methods scored so far, in memory and on disk until the results are written.

    models: folder of the models. data: folder of the data set. methods: names of the systems that
    the results will list. seed: random seed for sampling. n_examples: chunks whose audio is
    written. museval: also compute museval's own SDR. ranks: the processes that share the chunks.
    """

    models: Path
    data: Path
    manifest: Manifest
    chunks: list[Chunk]
    outputs: Outputs
    methods: tuple[str, ...]
    seed: int
    n_examples: int
    museval: bool
    device: torch.device
    ranks: Ranks
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Folder of the results; the examples' paths are relative to it."""
        return self.outputs.results.parent

    @property
    def items(self) -> list[dict[str, Any]]:
        """The scores of all methods scored so far."""
        return [item for part in self.parts.values() for item in part["chunks"]]

    def system(
        self, name: str, separator: Separator, identity: Mapping[str, Any], batch: int | None
    ) -> None:
        """Score a system.

        Args:
            name: of the method.
            separator: the system.
            identity: of its models and settings; scores are reused for equal identities.
            batch: chunks sampled together; None: as many as fit in memory.
        """

        def score_chunks(own: range) -> Scored:
            items, seconds = [], 0.0
            silent = self.ranks.rank > 0 or None  # None: where there is no terminal
            with tqdm(desc=name, unit="step", disable=silent, leave=False) as bar:
                size = separator.fitting_batch(self.ranks.local_size) if batch is None else batch
                drawn = draw_candidates(
                    separator,
                    self.chunks[own.start : own.stop],
                    self.seed,
                    size,
                    _advance(bar),
                    before=own.start,
                )
                for i, (chunk, candidates, took) in zip(own, drawn, strict=True):
                    seconds += took
                    for (estimate, refined), make in estimators(separator).items():
                        began = time.perf_counter()
                        stems = make(chunk, candidates)
                        if estimate == "selected":  # what a user waits for
                            seconds += time.perf_counter() - began
                        items.append(self._item(i, chunk, name, estimate, refined, stems))
                        suffix = PLAYED.get((estimate, refined))
                        if suffix is not None:
                            self._write_example(i, name + suffix, stems)
                    if i < self.n_examples:
                        values = separator.uncertainty(chunk.mixture[None], candidates)[0]
                        self._write_uncertainty(i, name, values, separator.mask)
            return Scored(items, seconds)

        self._keep(name, identity, score_chunks, heard=True, timed=True)

    def baselines(self, names: tuple[str, ...], codecs: Mapping[str, Separator]) -> None:
        """Score the baselines.

        Args:
            names: of the baselines.
            codecs: {name of a method: a separator with its codec}.
        """
        self.ranks.on_first(self._write_truth)
        untrained = untrained_baselines(self.manifest.alpha)
        for name in names:
            if name == "supervised":
                self._supervised()
            elif name == "codec":
                self._codecs(codecs)
            elif name in untrained:
                estimate = "oracle" if name == "irm" else "selected"
                self._baseline(name, estimate, {}, untrained[name])
            else:
                self.notes.append(f"{name} was left out: it is for drums and one other source")

    def examples(self) -> list[dict[str, Any]]:
        """The audio files for listening; paths are relative to the folder of the results."""
        groups = [m + suffix for m in self.methods for suffix in PLAYED.values()]
        groups += [name for name in HEARD if name in self.parts]
        described = []
        name = self.outputs.example
        for i, chunk in enumerate(self.chunks[: self.n_examples]):
            files: dict[str, Any] = {"mixture": name(i, "", "mixture")}
            for group in ("truth", *groups):
                files[group] = {s: name(i, group, s) for s in self.manifest.sources}
            uncertainty = {m: name(i, m, "uncertainty", "npz") for m in self.methods}
            described.append(
                {
                    "chunk": i,
                    "track": chunk.track,
                    "start": chunk.start,
                    "files": files,
                    "uncertainty": uncertainty,
                }
            )
        return described

    def _supervised(self) -> None:
        """The mask estimator of MODELS/mask_estimator; a note if there is none.

        Raises:
            ValueError: it was trained for other data.
        """
        folder = self.models / "mask_estimator"
        if not folder.is_dir():
            self.notes.append(
                f"supervised was left out: the models have no {folder.name}; train it: "
                f"{scripts.COMMAND}train_mask --data DATA --output MODELS/{folder.name}"
            )
            return
        estimator = self.ranks.together(lambda: self._mask_estimator(folder))

        def supervised(chunk: Chunk) -> dict[str, Tensor]:
            stems = first(estimator.separate(chunk.mixture[None].to(self.device)))
            return {name: x.cpu() for name, x in stems.items()}

        identity = {"weights": fingerprint(folder), "device": self.device.type}
        self._baseline("supervised", "selected", identity, supervised)

    def _mask_estimator(self, folder: Path) -> MaskEstimator:
        estimator = load_mask_estimator(folder, self.device)
        trained = {"sample_rate": estimator.config.sample_rate, "alpha": estimator.alpha}
        here = {"sample_rate": self.manifest.sample_rate, "alpha": self.manifest.alpha}
        if trained != here:
            raise ValueError(f"{folder} was trained for {trained}, {self.data} has {here}")
        return estimator

    def _codecs(self, separators: Mapping[str, Separator]) -> None:
        """The ceilings of the raw estimates: one codec, or two if the methods have two."""
        families: dict[str, str] = {}
        for system in _CODEC_ORDER:
            if system in separators:
                families.setdefault(METHODS[system].family, system)
        for name, (family, method) in zip(("codec", "codec_lass"), families.items(), strict=False):
            self._baseline(
                name,
                "oracle",
                {"codec": fingerprint(self.models / family / "vqvae")},
                functools.partial(codec_round_trip, separators[method].codec),
            )
            self.notes.append(
                f"{NAMES[name]}: the truth through the codec of {NAMES[method]} ({family})"
            )

    def _baseline(
        self, name: str, estimate: str, identity: Mapping[str, Any], separate: Baseline
    ) -> None:
        def score_chunks(own: range) -> Scored:
            items, seconds = [], 0.0
            for i in own:
                chunk = self.chunks[i]
                began = time.perf_counter()
                stems = separate(chunk)
                seconds += time.perf_counter() - began
                if name in HEARD:
                    self._write_example(i, name, stems)
                items.append(self._item(i, chunk, name, estimate, False, stems))
            return Scored(items, seconds)

        self._keep(name, identity, score_chunks, heard=name in HEARD, timed=name in _TIMED)

    def _item(
        self,
        i: int,
        chunk: Chunk,
        method: str,
        estimate: str,
        refined: bool,
        stems: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """One item of the results' `chunks`."""
        try:
            values = score(chunk, stems, self.museval)
        except ValueError as error:
            raise ValueError(f"{method} ({estimate}) gave {error}") from error
        return {
            "chunk": i,
            "track": chunk.track,
            "start": chunk.start,
            "method": method,
            "estimate": estimate,
            "refined": refined,
            "values": values,
        }

    def _keep(
        self,
        name: str,
        identity: Mapping[str, Any],
        score_chunks: Callable[[range], Scored],
        *,
        heard: bool,
        timed: bool,
    ) -> None:
        """Score a method, or take its scores from the disk if they depend on the same.

        Args:
            name: of the method.
            identity: of all that only this method's scores depend on.
            score_chunks: scores the chunks of these numbers.
            heard: whether it writes examples.
            timed: whether its seconds are kept.
        """
        key = key_of(
            {
                **identity,
                "threads": torch.get_num_threads(),
                "data": sha256(self.data / MANIFEST_NAME),
                "chunks": [[c.track, c.start, len(c.mixture)] for c in self.chunks],
                "seed": self.seed,
                "examples": self.n_examples,
                "museval": self.museval,
            },
            Scoring,
            *map(type, METHODS.values()),
        )
        path, ranks = self.outputs.part(name), self.ranks

        def finished() -> dict[str, Any] | None:
            part = read_kept(path, key)
            if part is not None and self._has_examples(name):
                return part
            path.unlink(missing_ok=True)  # its examples are about to be replaced
            if heard:
                self._announce(name)
            return None

        part = ranks.on_first(finished)
        if part is None:
            # A block of chunks for each process, so that all items together are in order.
            first, last = (len(self.chunks) * r // ranks.size for r in (ranks.rank, ranks.rank + 1))
            scored = ranks.gather(ranks.together(lambda: score_chunks(range(first, last))))
            seconds = sum(own.seconds for own in scored) / len(self.chunks)
            made = {
                "chunks": [item for own in scored for item in own.items],
                "seconds_per_chunk": seconds if timed else None,
            }
            part = ranks.on_first(lambda: kept(path, key, lambda: made))
        self.parts[name] = part

    def _has_examples(self, method: str) -> bool:
        """Whether the audio of a method, and the uncertainty of a system, are there."""
        count = min(self.n_examples, len(self.chunks))
        names = self.outputs.examples(method, count if method in (*METHODS, *HEARD) else 0)
        return all((self.folder / name).is_file() for name in names)

    def _write_truth(self) -> None:
        self._announce("truth")
        for i, chunk in enumerate(self.chunks):
            self._write_example(i, "truth", chunk.sources)
            self._write_example(i, "", {"mixture": chunk.mixture})

    def _announce(self, method: str) -> None:
        count = min(self.n_examples, len(self.chunks))
        self.outputs.announce(method, self.outputs.examples(method, count))

    def _write_example(self, i: int, group: str, stems: dict[str, Tensor]) -> None:
        """Write stems with their gain in the mixture, where 1.0 is full scale."""
        if i >= self.n_examples:
            return
        for name, x in stems.items():
            path = self.folder / self.outputs.example(i, group, name)
            audio_io.save(path, self.manifest.alpha.get(name, 1.0) * x, self.manifest.sample_rate)

    def _write_uncertainty(self, i: int, method: str, values: Tensor, mask: RatioMask) -> None:
        """Write the uncertainty [F, frames], the hertz between bins, the seconds between frames."""
        if i >= self.n_examples:
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


def _advance(bar: tqdm[Any]) -> Callable[[int, int], None]:
    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return update
