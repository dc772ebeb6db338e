"""Choose a method's inference settings on validation songs, and write them with the models.

    python -m scripts.tune --method hybrid --models runs/demo/models --data runs/demo/data

One setting after the other takes the value with the highest mean SDR of what a user gets (the
mixture masked by the candidates; no reference, no oracle), the others held at the best so far: the
sampling first, each value one draw of candidates on all chunks, then the mask, every one from the
candidates of the best sampling, drawn once more; what the budget leaves goes to other numbers of
candidates, scored and not chosen. A value is kept only if it beats the one before. Writes
MODELS/tuned/METHOD.json, which scripts.separate, scripts.evaluate and `build_separator` then take
their defaults from (a flag goes before it; delete the file to go back). The budget bounds the
draws; a stopped run goes on.

Tuning starts from the built-in settings, whatever was tuned before, and with the calibration of
spectra where it was measured. Beside the settings the file holds everything tried, chunk by chunk.

The test split is refused: its songs are for the last measurement alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from jukebox_core.checkpoints import provenance
from jukebox_core.checks import require_choice, require_fields
from jukebox_core.evaluation.bootstrap import paired_difference
from jukebox_core.files import check_replaceable, json_with, write_json
from jukebox_core.separation.mask import RatioMask
from scripts._cli import program
from scripts._models import FAMILY, METHODS, Method, refinement_of, sizes_of
from scripts._settings import tuned_path
from scripts._sweep import Draw, Refined, Scores, Study, run_draws

GRIDS: Mapping[Method, Mapping[str, Sequence[Any]]] = {
    "lqvae": {
        "sigma": (0.4, 0.3, 0.2, 0.6),
        "temperature": (1.0, 0.9, 1.1),
        "sampler": ("particle", "ancestral"),
    },
    "lass": {
        "weight": (3.0, 4.0, 2.0, 6.0),
        "temperature": (1.0, 0.9),
        "backoff": (3.0, 1.0, 10.0),
        "sampler": ("particle", "ancestral"),
    },
    "hybrid": {
        "weight": (1.0, 0.7, 0.5, 1.5),
        "sigma": (0.4, 0.3, 0.2),
        "temperature": (1.0, 0.9),
        "backoff": (3.0, 10.0, 1.0),
        "sampler": ("particle", "ancestral"),
    },
}
"""The sampling's settings in the order of tuning, what matters most first; the first value is the
default. A budget of 8 draws reaches all but the hybrid's last backoff and the counted systems'
samplers."""
MASKS: Mapping[str, Sequence[Any]] = {
    "mask_power": (2.5, 1.5, 2.0, 3.0, 4.0),
    "mask_n_fft": (4096, 2048, 8192),
    "compression": (1.0, 0.5, 0.3),
}
"""The refinement's; all combinations are scored, of the same candidates."""


@dataclass(frozen=True)
class Args:
    """Flags of scripts.tune."""

    models: Path
    """Folder of trained models."""
    data: Path
    """Prepared data set."""
    method: Method = "hybrid"
    """Which of the three systems."""
    split: str = "validation"
    """Whose songs."""
    chunks: int = 24
    """At most so many chunks, one per song where there are enough songs."""
    candidates: int | None = None
    """Joint candidates per chunk; default: the models' preset."""
    budget: int = 16
    """Draws at most, beside one for the masks; settings that come later keep their defaults when it
    is spent."""
    seed: int = 0
    """Of the chunks and of the sampling."""
    chunk_codes: int = 1024
    """Codes per chunk, at most the models' window."""
    jobs: int = 4
    """Processes, of one thread each."""
    sizes: tuple[int, ...] = (8, 16, 64)
    """Other numbers of candidates to score beside the settings found, with what the budget leaves;
    none is chosen, they buy quality with time."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and the test songs."""
        require_fields(self, "chunks", "chunk_codes", "budget", "jobs", whole=True, at_least=1)
        require_fields(self, "candidates", optional=True, whole=True, at_least=1)
        require_fields(self, "sizes", whole=True, at_least=1)
        require_choice("method", self.method, METHODS)
        if self.split == "test":
            raise ValueError("split is test: settings are chosen on validation songs alone")


class Tuning:
    """The best so far, and everything that was tried."""

    def __init__(self, args: Args, study: Study):
        self.options: dict[str, Any] = {}
        self.tried: list[dict[str, Any]] = []
        self._args, self._study = args, study
        self._left = args.budget
        self._default = _mask_name(_masks()[0])
        self.best = self._draw([{}])[0]
        self._note({}, self.best)

    def _draw(self, settings: Sequence[dict[str, Any]], masks: int = 1) -> list[Scores]:
        """Scores of the best options so far with each of these instead, by the first masks."""
        ways = {_mask_name(mask): Refined(_mask(self._args, mask)) for mask in _masks()[:masks]}
        shared = {} if self._args.candidates is None else {"candidates": self._args.candidates}
        draws = [
            Draw.of(self._args.method, self._args.seed, **(shared | self.options | setting))
            for setting in settings
        ]
        folder = tuned_path(self._args.models, self._args.method).with_suffix(".parts")
        found = run_draws(self._study, dict.fromkeys(draws, ways), folder, self._args.jobs)
        self._left -= len(draws)
        return [found[draw] for draw in draws]

    def sampling(self, name: str, values: Sequence[Any]) -> None:
        """Try the values of one setting beside its default, as many as the budget allows."""
        others = list(values[1:])[: max(0, self._left)]
        best, most = None, 0.0
        for value, scores in zip(others, self._draw([{name: v} for v in others]), strict=True):
            gain = self._note({name: value}, scores)
            if gain > most:
                best, most = (value, scores), gain
        if best is not None:
            self.options[name], self.best = best

    def sizes(self, values: Sequence[int]) -> None:
        """Score other numbers of candidates, as many as the budget allows; none is taken."""
        some = list(values)[: max(0, self._left)]
        for value, scores in zip(some, self._draw([{"candidates": n} for n in some]), strict=True):
            self._note({"candidates": value}, scores)

    def _note(self, setting: dict[str, Any], scores: Scores) -> float:
        """Tell the scores of a draw; its gain over the best so far."""
        means = scores.mean(self._default), self.best.mean(self._default)
        return self._tell(setting, *means, seconds=scores.seconds)

    def _tell(
        self, setting: dict[str, Any], own: list[float], before: list[float], **more: Any
    ) -> float:
        """Add to what was tried; the gain."""
        gain = paired_difference(own, before)
        self.tried.append(
            {
                "setting": setting,
                "beside": dict(self.options),
                "sdr": sum(own) / len(own),
                "gain": gain.mean,
                "interval": [gain.low, gain.high],
                "chunks": own,
                **more,
            }
        )
        return gain.mean

    def masks(self) -> None:
        """Take the best mask, from the candidates of the best sampling."""
        (scores,) = self._draw([{}], len(_masks()))
        means = {name: scores.mean(name) for name in scores.values}
        for mask in _masks():
            self._tell(mask, means[_mask_name(mask)], means[self._default])
        winner = max(_masks(), key=lambda mask: sum(means[_mask_name(mask)]))
        defaults = {name: values[0] for name, values in MASKS.items()}
        self.options |= {k: v for k, v in winner.items() if v != defaults[k]}


@program
def main(args: Args) -> None:
    """Tune, write the settings, print what was tried."""
    path = tuned_path(args.models, args.method)
    check_replaceable(path, json_with("options", "tried", "study"), "settings")
    chosen = (args.split, args.chunks, args.seed, args.chunk_codes)
    study = Study(args.models, args.data, *chosen, tuned=False)
    for candidates in args.sizes:  # scored last, but checked first
        try:
            sizes_of(args.method, args.models, candidates)
        except ValueError as error:
            raise ValueError(f"sizes: {error}") from error
    tuning = Tuning(args, study)
    for name, values in GRIDS[args.method].items():
        tuning.sampling(name, values)
    tuning.sizes(args.sizes)
    tuning.masks()
    for tried in tuning.tried:
        low, high = tried["interval"]
        setting = ", ".join(f"{k} {v}" for k, v in tried["setting"].items()) or "built in"
        took = f"  {tried['seconds']:.1f} s / chunk" if "seconds" in tried else ""
        print(
            f"{setting:48} {tried['sdr']:6.2f} dB  {tried['gain']:+.2f} "
            f"[{low:+.2f}, {high:+.2f}]{took}"
        )
    write_json(
        path,
        {
            "options": tuning.options,
            "tried": tuning.tried,
            "study": study.identity() | {"candidates": args.candidates, "budget": args.budget},
            **provenance(),
        },
    )
    print(f"\n{path}: {tuning.options or 'the defaults'}")


def _masks() -> list[dict[str, Any]]:
    """All combinations, the default first."""
    return [dict(zip(MASKS, values, strict=True)) for values in product(*MASKS.values())]


def _mask_name(mask: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in mask.items())


def _mask(args: Args, mask: Mapping[str, Any]) -> RatioMask:
    return refinement_of({"calibration": None, **mask}, args.models / FAMILY[args.method])


if __name__ == "__main__":
    sys.exit(main())
