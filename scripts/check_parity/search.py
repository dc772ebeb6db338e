"""Parity checks of beam search, of upstream's rejection choice and of the scores."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from jukebox_core.evaluation.metrics import framewise_sdr, sdr
from jukebox_core.prior.joint import Prior
from jukebox_core.separation.beam import BeamSampler, best_entries
from jukebox_core.separation.likelihood import Likelihood, PairScores
from jukebox_core.separation.posterior import keep_top_k
from jukebox_core.separation.rejection import pair_posterior
from scripts.check_parity.fixtures import EXACT, FORWARD, Fixture, check
from scripts.check_parity.posterior import sparse_posteriors, walk

MOST_BEAMS = 20_000  # of the search without pruning


class MarkovPrior:
    """A prior whose next code depends only on the last one; code 0 precedes the first."""

    n_ctx = 1 << 30

    def __init__(self, transitions: Tensor):
        self.n_codes = len(transitions)
        self._log_p = transitions.log()

    def new_cache(self, batch_size: int, length: int) -> SimpleNamespace:
        """A cache of only the number of sequences."""
        return SimpleNamespace(batch_size=batch_size, reorder=lambda parents: None)

    def step(self, codes: Tensor | None, cache: SimpleNamespace) -> Tensor:
        """Logits [B, K]."""
        return self._log_p[torch.zeros(cache.batch_size).long() if codes is None else codes]


class SparseLikelihood:
    """The recorded pairs and scores of every mixture code."""

    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, coords: Tensor, data: Tensor):
        self.n_codes = len(coords)
        self._coords, self._data = coords, data

    def scores(self, mixture_code: int) -> PairScores:
        """Pairs and scores of one mixture code."""
        return PairScores(self._data[mixture_code], self._coords[mixture_code])


class Problem(NamedTuple):
    """The priors, the likelihood and the mixture to decode. mixture: [T]."""

    priors: tuple[Prior, Prior]
    likelihood: Likelihood
    mixture: Tensor
    temperature: float

    def search(self, beams: int) -> tuple[dict[str, Tensor], Tensor]:
        """Codes of `BeamSampler` [N, T] per source and float64 scores [N], ascending."""
        named = {"x0": self.priors[0], "x1": self.priors[1]}
        mixture = self.mixture.unsqueeze(0)
        samples = BeamSampler(self.temperature)(named, self.likelihood, mixture, beams)
        score = samples.log_likelihood + samples.log_prior["x0"] + samples.log_prior["x1"]
        return {name: codes[0] for name, codes in samples.codes.items()}, score[0]

    def scores(self, codes: tuple[Tensor, Tensor]) -> Tensor:
        """Joint log-scores [N] of sequences [N, T]; -inf where a pair is impossible."""
        total = torch.zeros(len(codes[0]), dtype=torch.float64)
        k = self.priors[0].n_codes
        for number, step in enumerate(walk(*self[:3], codes, self.temperature)):
            flat = (codes[0][:, number] * k + codes[1][:, number]).unsqueeze(1)
            if step.pairs is None:
                total += step.joint.gather(1, flat).squeeze(1)
            else:
                match = (step.pairs[0] * k + step.pairs[1]) == flat  # [N, P]
                total += step.joint.masked_fill(~match, -torch.inf).amax(1)
        return total


@check("lass_e2e")
def lass_e2e(fixture: Fixture) -> None:
    """LASS's one-step posteriors, and a beam search at least as good as the recorded one."""
    problem = Problem(*sparse_posteriors(fixture, "out/sampled", "in/mixture"))
    for prefix in sorted({key.rsplit("/", 1)[0] for key in fixture.arrays if "/beam" in key}):
        beams = fixture.tensor(f"{prefix}/x0"), fixture.tensor(f"{prefix}/x1")
        theirs = problem.scores(beams).max().item()
        ours = problem.search(len(beams[0]))[1].max().item()
        fixture.error(
            "BeamSampler below the recorded beams",
            max(theirs - ours, 0.0) / abs(theirs),
            FORWARD,
            f"log-score {ours:.4f}, the recorded (defective) search's {theirs:.4f}",
        )


@check("beam_search")
def beam_search_check(fixture: Fixture) -> None:
    """Beam search on Markov priors, against reference beams and all sequences enumerated."""
    transitions = (fixture.tensor("in/P0"), fixture.tensor("in/P1"))
    priors = cast(tuple[Prior, Prior], tuple(MarkovPrior(p) for p in transitions))
    likelihood = SparseLikelihood(fixture.tensor("in/ll_coords"), fixture.tensor("in/ll_data"))
    mixture = fixture.tensor("in/mixture")
    for match in fixture.matching(r"(out/T(\d+)_temp([\d.]+))/map_score"):
        problem = Problem(priors, likelihood, mixture[: int(match[2])], float(match[3]))
        _best_sequences(fixture, match[1], problem)
        for scores in fixture.matching(rf"({re.escape(match[1])}/beams(\d+))/correct_scores"):
            _same_beams(fixture, scores[1], *problem.search(int(scores[2])))
            upstream = tuple(fixture.tensor(f"{scores[1]}/upstream_{x}") for x in ("x0", "x1"))
            fixture.close(
                "score of the recorded beams",
                problem.scores((upstream[0], upstream[1])),
                f"{scores[1]}/upstream_true_scores",
                note="the recorded search's own ranking is defective and not reproduced",
            )
    temperature = fixture.info["sampled"]["temperature"]
    for match in fixture.matching(r"(out/sampled_topk(\w+))/posterior_unnormalised"):
        codes = fixture.tensor(f"{match[1]}/x0"), fixture.tensor(f"{match[1]}/x1")
        steps = walk(priors, likelihood, mixture, codes, temperature)
        top_k = 0 if match[2] == "None" else int(match[2])
        for step, expected in zip(steps, fixture.tensor(match[0]), strict=True):
            fixture.close("log_joint, keep_top_k", keep_top_k(step.joint, top_k), expected)
    best = best_entries(fixture.tensor("in/get_topk_x"), len(fixture.tensor("out/get_topk_rows")))
    for part, key in {"values": "values", "rows": "rows", "columns": "cols"}.items():
        fixture.close("best_entries", getattr(best, part), f"out/get_topk_{key}", EXACT)


def _best_sequences(fixture: Fixture, prefix: str, problem: Problem) -> None:
    """With as many beams as there are shorter sequences nothing is pruned."""
    pairs = fixture.tensor("in/ll_data").shape[1]
    codes, score = problem.search(min(pairs ** (len(problem.mixture) - 1), MOST_BEAMS))
    name = "BeamSampler without pruning"
    fixture.close(name, score[-1], f"{prefix}/map_score")
    for source, sequences in codes.items():
        fixture.equal(f"{name}, codes", sequences[-1], f"{prefix}/map_{source}")
    for match in fixture.matching(rf"{re.escape(prefix)}/bruteforce.*_scores"):
        expected = fixture.tensor(match[0]).sort().values
        fixture.close(f"{name}, best {len(expected)}", score[-len(expected) :], expected)


def _same_beams(fixture: Fixture, prefix: str, codes: dict[str, Tensor], score: Tensor) -> None:
    expected = fixture.tensor(f"{prefix}/correct_scores")
    fixture.close("BeamSampler scores", score[-len(expected) :], expected)
    if len(expected) < 2 or expected.diff().abs().min() > 1e-6:  # equal ones come in any order
        for source, sequences in codes.items():
            recorded = f"{prefix}/correct_{source}"
            fixture.equal("BeamSampler codes", sequences[-len(expected) :], recorded)


@check("rejection_sampling")
def rejection_sampling(fixture: Fixture) -> None:
    """Upstream's choice among all pairs of candidates."""
    for number, case in enumerate(fixture.info["cases"]):
        inputs, expected = fixture.under(f"case{number}/in/"), fixture.under(f"case{number}/out/")
        pairs = pair_posterior(
            (inputs["logp0"], inputs["logp1"]),
            (inputs["res0"], inputs["res1"]),
            inputs["mix"].flatten(),
            tuple(case["alpha"]),
            case["n_samples"],
        )
        fixture.close("pair_posterior", pairs.posterior, expected["posterior"])
        fixture.close("pair_posterior variance", pairs.variance, expected["sigma_squared"])
        for source, best in enumerate(pairs.best):
            fixture.equal("PairPosterior.best", best, expected[f"argmax_{source}"])
        for source, marginal in enumerate(pairs.marginals()):
            ordered, order = marginal.sort()
            key = f"marginal_{source}"
            fixture.close("PairPosterior.marginals", ordered, expected[f"{key}_sorted"])
            fixture.equal("PairPosterior.marginals order", order, expected[f"{key}_idx_sorted"])


@check("sdr")
def sdr_check(fixture: Fixture) -> None:
    """SDR of whole signals and windows, and of all candidates against their references."""
    for number, case in enumerate(fixture.info["cases"]):
        reference, estimate = (
            _audio(fixture, f"case{number}/{which}_int16") for which in ("ref", "est")
        )
        fixture.close("framewise_sdr", framewise_sdr(reference, estimate)[0], case["sdr"])
        windows = case["plain_snr_per_44100_window"]
        length = min(44_100, reference.shape[-1])
        frames = [x.unfold(-1, length, length)[0] for x in (reference, estimate)]
        fixture.close("sdr of every window", sdr(*frames), windows)
    references, candidates = (_audio(fixture, f"evaluate/{w}_int16") for w in ("gt", "cand"))
    for source in range(len(references)):
        scores, key = framewise_sdr(references[source], candidates[:, source]), "evaluate/sdr_"
        fixture.close("framewise_sdr of candidates", scores, f"{key}{source}")
        order = scores.argsort()
        fixture.equal("framewise_sdr of candidates, order", order, f"{key}{source}_sorted_idx")


def _audio(fixture: Fixture, key: str) -> Tensor:
    return fixture.tensor(key).double() / 32768
