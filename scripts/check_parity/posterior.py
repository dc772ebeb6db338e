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
from scripts.check_parity.fixtures import Fixture, Report, check, sub_config
from scripts.check_parity.prior import prior_from


class Steps(NamedTuple):
    """A walk along forced codes. joint: per step [N, P]. log_p: per source [N]."""

    joint: list[Tensor]
    pairs: list[Tensor | None]
    logits: list[tuple[Tensor, Tensor]]
    log_p: tuple[Tensor, Tensor]


@torch.no_grad()
def walk(
    priors: tuple[Prior, Prior],
    likelihood: Likelihood,
    mixture: Tensor,
    codes: tuple[Tensor, Tensor],
    temperature: float = 1.0,
) -> Steps:
    """One-step posteriors along given codes [N, T] of both sources."""
    n, steps = codes[0].shape
    caches = [prior.new_cache(n, steps) for prior in priors]
    result = Steps([], [], [], (torch.zeros(n), torch.zeros(n)))
    for step in range(steps):
        last = [codes[i][:, step - 1] if step else None for i in range(2)]
        logits = [
            prior.step(code, cache) / temperature
            for prior, code, cache in zip(priors, last, caches, strict=True)
        ]
        log_p = [x.log_softmax(-1) for x in logits]
        scores = likelihood.scores(int(mixture[step]))
        result.logits.append((logits[0], logits[1]))
        result.joint.append(log_joint(log_p[0], log_p[1], scores))
        result.pairs.append(scores.pairs)
        for source in range(2):
            chosen = log_p[source].gather(1, codes[source][:, step : step + 1])
            result.log_p[source].add_(chosen.squeeze(1))
    return result


def in_order(joint: Tensor, pairs: Tensor, wanted: Tensor, n_codes: int) -> Tensor:
    """Columns of `joint` [N, P] in the order of the pairs `wanted` [2, P].

    Raises:
        ValueError: the pairs are not the same.
    """
    flat, order = (pairs[0] * n_codes + pairs[1]).sort()
    wanted_flat = wanted[0].long() * n_codes + wanted[1].long()
    if not torch.equal(flat, wanted_flat.sort().values):
        raise ValueError(f"{len(flat)} pairs are stored, {len(wanted_flat)} others were recorded")
    return joint[:, order[torch.searchsorted(flat, wanted_flat)]]


def counts_from(fixture: Fixture, n_codes: int) -> Counts:
    """Recorded counts, which hold both orders of the sources already."""
    first, second, mixture = fixture.tensor("in/coords").long().numpy()
    keys = to_keys(n_codes, first, second, mixture)
    order = keys.argsort()
    return from_keys(n_codes, keys[order], fixture.arrays["in/counts"][order])


def two_priors(fixture: Fixture) -> tuple[Prior, Prior]:
    """The priors of a fixture, in eval mode."""
    config = sub_config(fixture.info)
    first, second = (prior_from(fixture.under(f"prior{i}/"), config).eval() for i in range(2))
    return first, second


@check("hybrid_posterior")
def hybrid_posterior(fixture: Fixture, report: Report) -> None:
    """The hybrid's one-step posteriors and accumulated log-probabilities."""
    priors = two_priors(fixture)
    counts = counts_from(fixture, priors[0].n_codes)
    likelihood = CountLikelihood(counts, fixture.info["lambda_coeff"], symmetric=False)
    mixture = fixture.tensor("in/z_mixture").flatten()
    temperature = fixture.info.get("temperature", 1.0)
    name = "log_joint of CountLikelihood"
    sparse_posteriors(fixture, report, name, "out/", priors, likelihood, mixture, temperature)


def sparse_posteriors(
    fixture: Fixture,
    report: Report,
    name: str,
    prefix: str,
    priors: tuple[Prior, Prior],
    likelihood: Likelihood,
    mixture: Tensor,
    temperature: float,
) -> None:
    """Compare the posterior of every recorded step."""
    codes = fixture.tensor(f"{prefix}x0"), fixture.tensor(f"{prefix}x1")
    steps = walk(priors, likelihood, mixture, codes, temperature)
    for step, (joint, pairs) in enumerate(zip(steps.joint, steps.pairs, strict=True)):
        wanted = fixture.tensor(f"{prefix}step{step}/posterior_unnormalised")
        recorded = fixture.tensor(f"{prefix}step{step}/coords")
        if pairs is None:
            report.fail(name, f"mixture code {int(mixture[step])} was never counted")
            continue
        report.close(name, in_order(joint, pairs, recorded, priors[0].n_codes), wanted)
    for source in range(2):
        key = f"{prefix}log_p_{source}_sum"
        if key in fixture:
            report.close("summed log-probabilities", steps.log_p[source], fixture.tensor(key))


@check("lqvae_posterior")
def lqvae_posterior(fixture: Fixture, report: Report) -> None:
    """LQ-VAE's one-step posteriors over all pairs, with and without top-k."""
    priors = two_priors(fixture)
    k = priors[0].n_codes
    codebook = fixture.tensor("in/codebook_top")
    mixture = fixture.tensor("in/z_mixture").flatten()
    latents = fixture.tensor("in/m_latent")[0].T
    report.close("codebook lookup of the mixture", codebook[mixture], latents)
    for case in fixture.info["cases"]:
        tag = case["tag"]
        table = fixture.tensor(f"in/{tag.split('/')[1]}/sum_table").view(k, k)
        # The recorded program looks up table[x1, x0]; our rows are the first source's codes.
        likelihood = LatentGaussianLikelihood(codebook, table.T.contiguous(), case["sigma"])
        codes = fixture.tensor(f"{tag}/x0"), fixture.tensor(f"{tag}/x1")
        steps = walk(priors, likelihood, mixture, codes, case["temp"])
        for source in range(2):
            logits = torch.stack([both[source] for both in steps.logits])
            recorded = fixture.tensor(f"{tag}/prior{source}_logits_over_temp")
            report.close("AutoregressivePrior.step", logits, recorded)
            total = fixture.tensor(f"{tag}/log_p_{source}_sum")
            report.close("summed log-probabilities", steps.log_p[source], total)
        wanted = fixture.tensor(f"{tag}/posterior_logits_in")  # flat index x1 * K + x0
        normalised = fixture.tensor(f"{tag}/posterior_logits_normalised")
        name = "log_joint of LatentGaussianLikelihood"
        for step, joint in enumerate(steps.joint):
            kept = keep_top_k(joint, case["top_k_posterior"])
            flat = kept.view(-1, k, k).transpose(1, 2).flatten(1)
            full = joint.view(-1, k, k).transpose(1, 2).flatten(1)
            before = flat if wanted[step].isinf().any() else full
            report.close(name, before, wanted[step])
            report.close(f"{name}, normalised", flat.log_softmax(-1), normalised[step])
