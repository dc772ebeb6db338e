"""Parity checks of the one-step posteriors, walked along recorded codes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jukebox_core.prior.joint import Prior
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.posterior import keep_top_k, log_joint
from lass.counts import Counts, from_keys, to_keys
from lass.likelihood import CountLikelihood
from lqvae.likelihood import LatentGaussianLikelihood
from scripts.check_parity.fixtures import Fixture, check
from scripts.check_parity.prior import prior_from


class Step(NamedTuple):
    """A step along forced codes. joint: [N, P]. logits, log_p: per source [N, K] and [N]."""

    joint: Tensor
    pairs: Tensor | None
    logits: list[Tensor]
    log_p: list[Tensor]


@torch.no_grad()
def walk(
    priors: tuple[Prior, Prior],
    likelihood: Likelihood,
    mixture: Tensor,
    codes: tuple[Tensor, Tensor],
    temperature: float = 1.0,
) -> list[Step]:
    """One-step posteriors along forced codes [N, T] of both sources."""
    n, steps = codes[0].shape
    caches = [prior.new_cache(n, steps) for prior in priors]
    result = []
    for step in range(steps):
        last = [own[:, step - 1] if step else None for own in codes]
        logits = [
            prior.step(code, cache) / temperature
            for prior, code, cache in zip(priors, last, caches, strict=True)
        ]
        log_p = [x.log_softmax(-1) for x in logits]
        scores = likelihood.scores(int(mixture[step]))
        forced = [
            x.gather(1, own[:, step : step + 1]).squeeze(1)
            for x, own in zip(log_p, codes, strict=True)
        ]
        joint = log_joint(log_p[0], log_p[1], scores)
        result.append(Step(joint, scores.pairs, logits, forced))
    return result


def in_order(joint: Tensor, pairs: Tensor, expected: Tensor, n_codes: int) -> Tensor:
    """Columns of `joint` [N, P] in the order of the pairs `expected` [2, P].

    Raises:
        ValueError: the pairs are not the same.
    """
    flat, order = (pairs[0] * n_codes + pairs[1]).sort()
    expected_flat = expected[0].long() * n_codes + expected[1].long()
    if not torch.equal(flat, expected_flat.sort().values):
        raise ValueError(f"{len(flat)} pairs are stored, {len(expected_flat)} others were recorded")
    return joint[:, order[torch.searchsorted(flat, expected_flat)]]


def counts_from(fixture: Fixture, n_codes: int) -> Counts:
    """Recorded counts, which hold both orders of the sources already."""
    first, second, mixture = fixture.tensor("in/coords").long().numpy()
    keys = to_keys(n_codes, first, second, mixture)
    order = keys.argsort()
    return from_keys(n_codes, keys[order], fixture.arrays["in/counts"][order])


def two_priors(fixture: Fixture) -> tuple[Prior, Prior]:
    """The priors of a fixture, in eval mode."""
    config = fixture.config()
    first, second = (prior_from(fixture.under(f"prior{i}/"), config).eval() for i in range(2))
    return first, second


@check("hybrid_posterior")
def hybrid_posterior(fixture: Fixture) -> None:
    """The hybrid's one-step posteriors and accumulated log-probabilities."""
    sparse_posteriors(fixture, "out", "in/z_mixture")


def sparse_posteriors(
    fixture: Fixture, prefix: str, mixture_key: str
) -> tuple[tuple[Prior, Prior], CountLikelihood, Tensor, float]:
    """Compare the posterior of every recorded step.

    Returns:
        Priors, likelihood, mixture and temperature of the fixture.
    """
    priors = two_priors(fixture)
    counts = counts_from(fixture, priors[0].n_codes)
    likelihood = CountLikelihood(counts, fixture.info["lambda_coeff"], symmetric=False)
    mixture = fixture.tensor(mixture_key).flatten()
    temperature = fixture.info.get("temperature", 1.0)
    codes = fixture.tensor(f"{prefix}/x0"), fixture.tensor(f"{prefix}/x1")
    steps = walk(priors, likelihood, mixture, codes, temperature)
    name = "log_joint of CountLikelihood"
    for number, step in enumerate(steps):
        recorded = fixture.tensor(f"{prefix}/step{number}/coords")
        if step.pairs is None:
            fixture.fail(name, f"mixture code {int(mixture[number])} was never counted")
            continue
        joint = in_order(step.joint, step.pairs, recorded, counts.n_codes)
        fixture.close(name, joint, f"{prefix}/step{number}/posterior_unnormalised")
    for source in range(2):
        if (key := f"{prefix}/log_p_{source}_sum") in fixture.arrays:
            fixture.close("summed log-probabilities", sum(s.log_p[source] for s in steps), key)
    return priors, likelihood, mixture, temperature


@check("lqvae_posterior")
def lqvae_posterior(fixture: Fixture) -> None:
    """LQ-VAE's one-step posteriors over all pairs, with and without top-k."""
    priors = two_priors(fixture)
    k = priors[0].n_codes
    codebook = fixture.tensor("in/codebook_top")
    mixture = fixture.tensor("in/z_mixture").flatten()
    latents = fixture.tensor("in/m_latent")[0].T
    fixture.close("codebook lookup of the mixture", codebook[mixture], latents)
    for case in fixture.info["cases"]:
        tag = case["tag"]
        table = fixture.tensor(f"in/{tag.split('/')[1]}/sum_table").view(k, k)
        # The recorded program looks up table[x1, x0]; our rows are the first source's codes.
        likelihood = LatentGaussianLikelihood(codebook, table.T.contiguous(), case["sigma"])
        codes = fixture.tensor(f"{tag}/x0"), fixture.tensor(f"{tag}/x1")
        steps = walk(priors, likelihood, mixture, codes, case["temp"])
        for source in range(2):
            logits = torch.stack([step.logits[source] for step in steps])
            fixture.close(
                "AutoregressivePrior.step", logits, f"{tag}/prior{source}_logits_over_temp"
            )
            total = sum(step.log_p[source] for step in steps)
            fixture.close("summed log-probabilities", total, f"{tag}/log_p_{source}_sum")
        expected = fixture.tensor(f"{tag}/posterior_logits_in")  # flat index x1 * K + x0
        normalised = fixture.tensor(f"{tag}/posterior_logits_normalised")
        name = "log_joint of LatentGaussianLikelihood"
        for step, recorded, total in zip(steps, expected, normalised, strict=True):
            full = step.joint.view(-1, k, k).transpose(1, 2).flatten(1)
            kept = keep_top_k(step.joint, case["top_k_posterior"])
            flat = kept.view(-1, k, k).transpose(1, 2).flatten(1)
            fixture.close(name, flat if recorded.isinf().any() else full, recorded)
            fixture.close(f"{name}, normalised", flat.log_softmax(-1), total)
