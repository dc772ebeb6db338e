"""Parity checks of beam search, of the originals' rejection choice and of the scores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from jukebox_core.evaluation.metrics import framewise_sdr, sdr
from jukebox_core.prior.joint import Prior
from jukebox_core.separation.beam import BeamSampler, best_entries
from jukebox_core.separation.likelihood import Likelihood, PairScores
from jukebox_core.separation.posterior import keep_top_k
from jukebox_core.separation.rejection import pair_posterior
from lass.likelihood import CountLikelihood
from scripts.check_parity.fixtures import EXACT, FORWARD, Fixture, Report, check
from scripts.check_parity.posterior import counts_from, sparse_posteriors, two_priors, walk

MOST_BEAMS = 20_000  # of the search that stands for all sequences


class MarkovPrior:
    """A prior whose next code depends on the last one alone; code 0 stands before the first."""

    def __init__(self, transitions: Tensor):
        self.n_codes = len(transitions)
        self.n_ctx = 1 << 30
        self._log_p = transitions.log()

    def new_cache(self, batch_size: int, length: int) -> _NoCache:
        """Nothing to remember but the number of sequences."""
        return _NoCache(batch_size)

    def step(self, codes: Tensor | None, cache: _NoCache) -> Tensor:
        """Logits [B, K]."""
        if codes is None:
            codes = torch.zeros(cache.batch_size, dtype=torch.int64)
        return self._log_p[codes]


class _NoCache:
    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def reorder(self, parents: Tensor) -> None:
        """Nothing to reorder."""


class SparseLikelihood:
    """The recorded pairs and scores of every mixture code."""

    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, coords: Tensor, data: Tensor):
        self.n_codes = len(coords)
        self._coords, self._data = coords, data

    def scores(self, mixture_code: int) -> PairScores:
        """Pairs and scores of one mixture code."""
        return PairScores(self._data[mixture_code], self._coords[mixture_code])


class Beams(NamedTuple):
    """codes: [N, T] per source. score: [N], float64, ascending."""

    first: Tensor
    second: Tensor
    score: Tensor


def beam_search(
    priors: tuple[Prior, Prior],
    likelihood: Likelihood,
    mixture: Tensor,
    beams: int,
    temperature: float,
) -> Beams:
    """`BeamSampler` on one mixture [T]."""
    named: Mapping[str, Prior] = {"first": priors[0], "second": priors[1]}
    found = BeamSampler(temperature)(named, likelihood, mixture.unsqueeze(0), beams)
    score = found.log_likelihood + found.log_prior["first"] + found.log_prior["second"]
    return Beams(found.codes["first"][0], found.codes["second"][0], score[0])


def scores_of(
    priors: tuple[Prior, Prior],
    likelihood: Likelihood,
    mixture: Tensor,
    codes: tuple[Tensor, Tensor],
    temperature: float,
) -> Tensor:
    """Joint log-scores [N] of given sequences [N, T]; -inf where a pair is not possible."""
    steps = walk(priors, likelihood, mixture, codes, temperature)
    total = torch.zeros(len(codes[0]), dtype=torch.float64)
    k = priors[0].n_codes
    for step, (joint, pairs) in enumerate(zip(steps.joint, steps.pairs, strict=True)):
        flat = codes[0][:, step] * k + codes[1][:, step]
        if pairs is None:
            total += joint.gather(1, flat.unsqueeze(1)).squeeze(1)
        else:
            match = (pairs[0] * k + pairs[1]) == flat.unsqueeze(1)  # [N, P]
            total += joint.masked_fill(~match, -torch.inf).amax(1)
    return total


@check("lass_e2e")
def lass_e2e(fixture: Fixture, report: Report) -> None:
    """LASS's one-step posteriors, and a beam search at least as good as the recorded one."""
    info = fixture.info
    priors = two_priors(fixture)
    counts = counts_from(fixture, priors[0].n_codes)
    likelihood = CountLikelihood(counts, info["lambda_coeff"], symmetric=False)
    mixture = fixture.tensor("in/mixture").flatten()
    temperature = info.get("temperature", 1.0)
    name = "log_joint of CountLikelihood"
    sparse_posteriors(
        fixture, report, name, "out/sampled/", priors, likelihood, mixture, temperature
    )
    for prefix in sorted({key.rsplit("/", 1)[0] for key in fixture.arrays if "/beam" in key}):
        beams = fixture.tensor(f"{prefix}/x0"), fixture.tensor(f"{prefix}/x1")
        theirs = scores_of(priors, likelihood, mixture, beams, temperature).max().item()
        ours = (
            beam_search(priors, likelihood, mixture, len(beams[0]), temperature).score.max().item()
        )
        report.error(
            "BeamSampler below the recorded beams",
            max(theirs - ours, 0.0) / abs(theirs),
            FORWARD,
            f"log-score {ours:.4f}, the recorded (defective) search's {theirs:.4f}",
        )


@check("beam_search")
def beam_search_check(fixture: Fixture, report: Report) -> None:
    """Beam search on Markov priors, against reference beams and all sequences enumerated."""
    transitions = (fixture.tensor("in/P0"), fixture.tensor("in/P1"))
    priors = cast(tuple[Prior, Prior], tuple(MarkovPrior(p) for p in transitions))
    likelihood = SparseLikelihood(fixture.tensor("in/ll_coords"), fixture.tensor("in/ll_data"))
    mixture = fixture.tensor("in/mixture")
    for prefix in sorted({key.rsplit("/", 1)[0] for key in fixture.arrays if "/map_score" in key}):
        match = re.fullmatch(r"out/T(\d+)_temp([\d.]+)", prefix)
        assert match is not None
        codes, temperature = mixture[: int(match[1])], float(match[2])
        _best_sequences(fixture, report, prefix, priors, likelihood, codes, temperature)
        for sub in {k.rsplit("/", 1)[0] for k in fixture.arrays if k.startswith(f"{prefix}/beams")}:
            beams = int(sub.rsplit("beams", 1)[1])
            ours = beam_search(priors, likelihood, codes, beams, temperature)
            _same_beams(fixture, report, "BeamSampler", f"{sub}/correct_", ours)
            upstream = fixture.tensor(f"{sub}/upstream_x0"), fixture.tensor(f"{sub}/upstream_x1")
            report.close(
                "score of the recorded beams",
                scores_of(priors, likelihood, codes, upstream, temperature),
                fixture.tensor(f"{sub}/upstream_true_scores"),
                note="the recorded search's own ranking is defective and not reproduced",
            )
    _sampled(fixture, report, priors, likelihood, mixture)
    best = best_entries(fixture.tensor("in/get_topk_x"), len(fixture.tensor("out/get_topk_rows")))
    for part in ("values", "rows", "columns"):
        key = "out/get_topk_" + ("cols" if part == "columns" else part)
        report.close("best_entries", getattr(best, part), fixture.tensor(key), EXACT)


def _best_sequences(
    fixture: Fixture,
    report: Report,
    prefix: str,
    priors: tuple[Prior, Prior],
    likelihood: SparseLikelihood,
    codes: Tensor,
    temperature: float,
) -> None:
    """With as many beams as there are shorter sequences nothing is pruned."""
    pairs = fixture.tensor("in/ll_data").shape[1]
    every = min(pairs ** (len(codes) - 1), MOST_BEAMS)
    ours = beam_search(priors, likelihood, codes, every, temperature)
    name = "BeamSampler without pruning"
    report.close(name, ours.score[-1], fixture.tensor(f"{prefix}/map_score"))
    for source, found in (("x0", ours.first), ("x1", ours.second)):
        report.equal(f"{name}, codes", found[-1], fixture.tensor(f"{prefix}/map_{source}"))
    forced = {key: key for key in fixture.arrays if key.startswith(f"{prefix}/bruteforce")}
    for key in forced:
        if not key.endswith("_scores"):
            continue
        wanted = fixture.tensor(key).sort().values
        report.close(f"{name}, best {len(wanted)}", ours.score[-len(wanted) :], wanted)


def _same_beams(fixture: Fixture, report: Report, name: str, prefix: str, ours: Beams) -> None:
    wanted = fixture.tensor(f"{prefix}scores")
    live = ours.score[-len(wanted) :]
    report.close(f"{name} scores", live, wanted)
    gaps = wanted.diff().abs().min() if len(wanted) > 1 else torch.tensor(1.0)
    if gaps > 1e-6:  # equal scores may come in any order
        for source, found in (("x0", ours.first), ("x1", ours.second)):
            recorded = fixture.tensor(f"{prefix}{source}")
            report.equal(f"{name} codes", found[-len(wanted) :], recorded)


def _sampled(
    fixture: Fixture,
    report: Report,
    priors: tuple[Prior, Prior],
    likelihood: SparseLikelihood,
    mixture: Tensor,
) -> None:
    temperature = fixture.info["sampled"]["temperature"]
    for key in fixture.arrays:
        match = re.fullmatch(r"out/sampled_topk(\w+)/posterior_unnormalised", key)
        if not match:
            continue
        top_k = 0 if match[1] == "None" else int(match[1])
        prefix = key.rsplit("/", 1)[0]
        codes = fixture.tensor(f"{prefix}/x0"), fixture.tensor(f"{prefix}/x1")
        steps = walk(priors, likelihood, mixture[: codes[0].shape[1]], codes, temperature)
        for joint, wanted in zip(steps.joint, fixture.tensor(key), strict=True):
            report.close("log_joint, keep_top_k", keep_top_k(joint, top_k), wanted)


@check("rejection_sampling")
def rejection_sampling(fixture: Fixture, report: Report) -> None:
    """The originals' choice among all pairs of candidates."""
    for number, case in enumerate(fixture.info["cases"]):
        inputs, wanted = fixture.under(f"case{number}/in/"), fixture.under(f"case{number}/out/")
        found = pair_posterior(
            (inputs["logp0"], inputs["logp1"]),
            (inputs["res0"], inputs["res1"]),
            inputs["mix"].flatten(),
            tuple(case["alpha"]),
            case["n_samples"],
        )
        report.close("pair_posterior", found.posterior, wanted["posterior"])
        report.close("pair_posterior variance", found.variance, wanted["sigma_squared"])
        best = torch.tensor(found.best)
        report.equal("PairPosterior.best", best[0], wanted["argmax_0"])
        report.equal("PairPosterior.best", best[1], wanted["argmax_1"])
        for source, marginal in enumerate(found.marginals()):
            ordered, order = marginal.sort()
            recorded = wanted[f"marginal_{source}_sorted"]
            report.close("PairPosterior.marginals", ordered, recorded)
            report.equal(
                "PairPosterior.marginals order", order, wanted[f"marginal_{source}_idx_sorted"]
            )


@check("sdr")
def sdr_check(fixture: Fixture, report: Report) -> None:
    """SDR of whole signals and windows, and of all candidates against their references."""
    for number, case in enumerate(fixture.info["cases"]):
        reference, estimate = (
            _audio(fixture, f"case{number}/{which}_int16") for which in ("ref", "est")
        )
        report.close("framewise_sdr", framewise_sdr(reference, estimate)[0], case["sdr"])
        windows = case["plain_snr_per_44100_window"]
        length = min(44_100, reference.shape[-1])
        frames = [x.unfold(-1, length, length)[0] for x in (reference, estimate)]
        report.close("sdr of every window", sdr(*frames), windows)
    references, candidates = (_audio(fixture, f"evaluate/{w}_int16") for w in ("gt", "cand"))
    for source in range(len(references)):
        scores = framewise_sdr(references[source], candidates[:, source])
        report.close(
            "framewise_sdr of candidates", scores, fixture.tensor(f"evaluate/sdr_{source}")
        )
        order = fixture.tensor(f"evaluate/sdr_{source}_sorted_idx")
        report.equal("framewise_sdr of candidates, order", scores.argsort(), order)


def _audio(fixture: Fixture, key: str) -> Tensor:
    return fixture.tensor(key).double() / 32768
