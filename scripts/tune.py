"""Choose a method's inference settings on validation songs, and write them with the models.

    python -m scripts.tune --method hybrid --models runs/demo/models --data runs/demo/data

Settings are tuned one after the other: each takes the value with the highest mean SDR of the masked
mixture (what a user gets, no oracle), with the others at the best values so far. Sampling settings
are tuned first, with one sampling run per value. Any remaining budget scores other numbers of
candidates, for information. Then all variants of the ratio mask are scored on one sampling run with
the best settings; with a mask network, only the sampling is tuned. A value is only taken if it
beats the current one.

Writes MODELS/tuned/METHOD.json, from which scripts.separate, scripts.evaluate and `load_separator`
take their defaults; explicit flags take precedence, and without the file the defaults apply again.
The file also holds everything that was tried, chunk by chunk. Tuning starts from the defaults,
whatever was tuned before. A stopped run resumes.

The test split is refused: its songs are for the final measurement only.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from jukebox_core.checkpoints import provenance
from jukebox_core.checks import require_choice, require_fields
from jukebox_core.evaluation.bootstrap import paired_difference
from jukebox_core.evaluation.estimates import Masked
from jukebox_core.files import check_replaceable, json_with, write_json
from jukebox_core.locks import sole_writer
from jukebox_core.separation.loading import calibration_of, sizes_of
from jukebox_core.separation.settings import DEFAULTS, PriorName, Settings, tuned_path
from scripts._cli import program
from scripts._methods import METHODS, MethodFlag, MethodName, method_of
from scripts._sweep import Draw, Scores, Sweep, run_draws

_NEURAL: Mapping[str, Sequence[Any]] = {
    "neural_exponent": (1.0, 0.7, 1.5),
    "temperature": (1.0, 1.5, 0.8),
}
"""Exponent of the neural likelihood, and temperature of the priors."""
GRIDS: Mapping[MethodName, Mapping[str, Sequence[Any]]] = {
    "lqvae": {
        "sigma": (0.4, 0.3, 0.2, 0.6),
        "temperature": (1.0, 0.9, 1.1),
        "sampler": ("particle", "ancestral"),
    },
    "lass": {
        "exponent": (3.0, 4.0, 2.0, 6.0),
        "temperature": (1.0, 0.9),
        "smoothing": (3.0, 1.0, 10.0),
        "sampler": ("particle", "ancestral"),
    },
    "hybrid": {
        "exponent": (1.0, 0.7, 0.5, 1.5),
        "sigma": (0.4, 0.3, 0.2),
        "temperature": (1.0, 0.9),
        "smoothing": (3.0, 10.0, 1.0),
        "sampler": ("particle", "ancestral"),
    },
    "neural": {**_NEURAL, "sampler": ("particle", "ancestral")},
    "lqvae-neural": {**_NEURAL, "sigma": (0.4, 0.6, 0.3)},
    "lass-neural": {**_NEURAL, "exponent": (3.0, 1.0, 2.0)},
    "hybrid-neural": {**_NEURAL, "exponent": (1.0, 0.5, 1.5), "sigma": (0.4, 0.6)},
}
"""Settings of the sampling in the order of tuning, the most important first; the first value is the
default. Trying all values takes 1 + the sum over settings of (values - 1) draws."""
MASKS: Mapping[str, Sequence[Any]] = {
    "mask_power": (2.5, 1.5, 2.0, 3.0, 4.0),
    "mask_n_fft": (4096, 2048, 8192),
    "compression": (1.0, 0.5, 0.3),
}
"""Settings of the mask; all combinations are scored, with the same candidates."""


@dataclass(frozen=True)
class Args:
    """Flags of scripts.tune."""

    models: Path
    """Folder of trained models."""
    data: Path
    """Prepared data set."""
    method: MethodFlag = "auto"
    """Separation method; auto: the best one that the models have the parts of."""
    split: str = "validation"
    """Split of the songs."""
    chunks: int = 24
    """Maximum number of chunks, one per song if there are enough songs."""
    candidates: int | None = None
    """Joint candidates per chunk; default: that of the models' preset."""
    budget: int = 16
    """Maximum number of sampling runs, excluding one for the masks; once it is spent, the remaining
    settings keep their defaults."""
    prior: PriorName | None = None
    """Priors of a method with the neural likelihood; default: autoregressive."""
    seed: int = 0
    """Random seed for the choice of chunks and for sampling."""
    chunk_codes: int = 1024
    """Codes per chunk, at most the models' window."""
    jobs: int = 4
    """Processes, of one thread each."""
    sizes: tuple[int, ...] = (8, 16, 64)
    """Other numbers of candidates to score with the rest of the budget; none is chosen,
    because they trade time for quality."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and the test songs."""
        require_fields(self, "chunks", "chunk_codes", "budget", "jobs", whole=True, at_least=1)
        require_fields(self, "candidates", optional=True, whole=True, at_least=1)
        require_fields(self, "sizes", whole=True, at_least=1)
        require_choice("method", self.method, ("auto", *METHODS))
        if self.split == "test":
            raise ValueError("split is test: settings are chosen on validation songs only")


class Tuning:
    """The best settings so far, and everything that was tried."""

    def __init__(self, sweep: Sweep, draw: Draw, folder: Path, budget: int, jobs: int):
        """Score the default settings.

        Args:
            sweep: chunks and models.
            draw: method, settings that stay as they are, number of candidates and seed.
            folder: of the files of scores.
            budget: maximum number of draws.
            jobs: processes.
        """
        self.settings = draw.settings
        self.tried: list[dict[str, Any]] = []
        self._sweep, self._base, self._folder, self._jobs = sweep, draw, folder, jobs
        method = METHODS[draw.method]
        self._calibration = calibration_of(method.folder(sweep.models))
        full = method.resolve(draw.settings)
        beside = method.runs_beside(sweep.models, full)
        # Masks of a network have no settings to tune.
        self._network = method.mask(sweep.models, full, torch.device("cpu")) if beside else None
        self._left = budget
        self._default = _mask_name(_masks()[0])
        self.best = self._draw([{}])[0]
        self._note({}, self.best)

    def _draw(
        self, changes: Sequence[dict[str, Any]], masks: int = 1, sizes: Sequence[int] = ()
    ) -> list[Scores]:
        """Scores of the best settings so far with each of these changes, by the first masks.

        With `sizes`, also the scores of the best settings with these numbers of candidates.
        """
        estimators = {
            _mask_name(mask): Masked(self._network or Settings(**mask).make_mask(self._calibration))
            for mask in _masks()[:masks]
        }
        best = self._base._replace(settings=self.settings)
        draws = [best._replace(settings=replace(self.settings, **change)) for change in changes]
        draws += [best._replace(candidates=size) for size in sizes]
        scores = run_draws(self._sweep, dict.fromkeys(draws, estimators), self._folder, self._jobs)
        self._left -= len(draws)
        return [scores[draw] for draw in draws]

    def sampling(self, name: str, values: Sequence[Any]) -> None:
        """Try the other values of one setting, as many as the budget allows."""
        others = list(values[1:])[: max(0, self._left)]
        best, most = None, 0.0
        for value, scores in zip(others, self._draw([{name: v} for v in others]), strict=True):
            gain = self._note({name: value}, scores)
            if gain > most:
                best, most = (value, scores), gain
        if best is not None:
            self.settings = replace(self.settings, **{name: best[0]})
            self.best = best[1]

    def sizes(self, values: Sequence[int]) -> None:
        """Score other numbers of candidates, as many as the budget allows; none is taken."""
        sizes = list(values)[: max(0, self._left)]
        for size, scores in zip(sizes, self._draw([], sizes=sizes), strict=True):
            self._note({"candidates": size}, scores)

    def _note(self, setting: dict[str, Any], scores: Scores) -> float:
        """Record the scores of a draw; return its gain over the best so far."""
        means = scores.mean(self._default), self.best.mean(self._default)
        return self._record(setting, *means, seconds=scores.seconds)

    def _record(
        self, setting: dict[str, Any], own: list[float], before: list[float], **more: Any
    ) -> float:
        """Record a trial; return the gain."""
        gain = paired_difference(own, before)
        self.tried.append(
            {
                "setting": setting,
                "beside": self.settings.explicit(),
                "sdr": sum(own) / len(own),
                "gain": gain.mean,
                "interval": [gain.low, gain.high],
                "chunks": own,
                **more,
            }
        )
        return gain.mean

    def masks(self) -> None:
        """Take the best mask, from the candidates of the best sampling; a network's has none."""
        if self._network is not None:
            return
        (scores,) = self._draw([{}], len(_masks()))
        means = {name: scores.mean(name) for name in scores.values}
        for mask in _masks():
            self._record(mask, means[_mask_name(mask)], means[self._default])
        winner = max(_masks(), key=lambda mask: sum(means[_mask_name(mask)]))
        changed = {k: v for k, v in winner.items() if v != getattr(DEFAULTS, k)}
        self.settings = replace(self.settings, **changed)


@program
def main(args: Args) -> None:
    """Tune, write the settings, print what was tried."""
    method = method_of(args.method, args.models)
    path = tuned_path(args.models, method)
    check_replaceable(path, json_with("options", "tried", "study"), "settings")
    with sole_writer(path):
        tune(args, method, path)


def tune(args: Args, method: MethodName, path: Path) -> None:
    """Tune a method and write its settings to `path`."""
    study = (args.split, args.chunks, args.seed, args.chunk_codes)
    sweep = Sweep(args.models, args.data, *study, tuned=False)
    own = METHODS[method]
    family = own.folder(args.models)
    fixed = Settings(prior=args.prior)
    priors = own.priors(family, own.resolve(fixed))
    for candidates in args.sizes:  # scored last, but checked first
        try:
            sizes_of(family, priors, candidates)
        except ValueError as error:
            raise ValueError(f"sizes: {error}") from error
    draw = Draw(method, fixed, args.candidates, args.seed)
    tuning = Tuning(sweep, draw, path.with_suffix(".parts"), args.budget, args.jobs)
    for name, values in GRIDS[method].items():
        tuning.sampling(name, values)
    tuning.sizes(args.sizes)
    tuning.masks()
    for tried in tuning.tried:
        low, high = tried["interval"]
        setting = ", ".join(f"{k} {v}" for k, v in tried["setting"].items()) or "defaults"
        took = f"  {tried['seconds']:.1f} s / chunk" if "seconds" in tried else ""
        print(
            f"{setting:48} {tried['sdr']:6.2f} dB  {tried['gain']:+.2f} "
            f"[{low:+.2f}, {high:+.2f}]{took}"
        )
    write_json(
        path,
        {
            "options": tuning.settings.explicit(),
            "tried": tuning.tried,
            "study": sweep.identity() | {"candidates": args.candidates, "budget": args.budget},
            **provenance(),
        },
    )
    print(f"\n{path}: {tuning.settings.explicit() or 'the defaults'}")


def _masks() -> list[dict[str, Any]]:
    """All combinations, the default first."""
    return [dict(zip(MASKS, values, strict=True)) for values in product(*MASKS.values())]


def _mask_name(mask: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in mask.items())


if __name__ == "__main__":
    sys.exit(main())
