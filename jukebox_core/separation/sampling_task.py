"""The task of a sampler: mixture codes, their tables of scores, the priors, log-factors."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jukebox_core.checks import require
from jukebox_core.prior.joint import JointPriors, Prior, as_joint
from jukebox_core.separation.chain import Drawn, draw_codes, draw_independent, links_of
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.posterior import (
    ConstantTable,
    FullTable,
    PairTable,
    make_table,
    uniform_numbers,
)
from jukebox_core.separation.samples import JointSamples


def check_temperature(name: str, value: object) -> None:
    """Refuse a temperature with which logits, divided by it and summed, overflow float32.

    Raises:
        ValueError: It is not a number from 1e-6 to 1e6; the message calls it `name`.
    """
    require(name, value, at_least=1e-6, at_most=1e6)


class Step(NamedTuple):
    """The sources' distributions at one step, [S, B, N, K] each, before the pair likelihood.

    log_prior: log p_i, normalised. log_p: log of p_i exp(f_i) / Z_i, normalised, f_i the step's
    log-factors; log_prior itself if there are none. log_norm: [B, N], the sum of log Z_i: part of
    the step's total mass, so of a particle's weight and of a beam's score. factors: f_i,
    [S, B, 1, K]. The last two are None without log-factors.
    """

    log_prior: Tensor
    log_p: Tensor
    log_norm: Tensor | None = None
    factors: Tensor | None = None

    def log_prior_of(self, codes: Tensor) -> Tensor:
        """Log p_i of codes [S, B, N], [S, B, N]."""
        return self.log_prior.gather(3, codes.unsqueeze(3)).squeeze(3)

    def log_likelihood_of(self, codes: Tensor, score: Tensor) -> Tensor:
        """The pairs' scores [B, N] and the log-factors of their codes [S, B, N], [B, N]."""
        if self.factors is None:
            return score
        factors = self.factors.expand(-1, -1, codes.shape[2], -1)
        return score + factors.gather(3, codes.unsqueeze(3)).squeeze(3).sum(0)

    def total(self, log_total: Tensor) -> Tensor:
        """The step's log-mass [B, N], given the log-mass under `log_p`."""
        return log_total if self.log_norm is None else log_total + self.log_norm

    def reorder(self, parents: Tensor) -> Step:
        """Candidate n replaced by candidate parents[b, n]; parents are [B, N]."""
        index = parents.unsqueeze(2).expand_as(self.log_p)
        log_p = self.log_p.gather(2, index)
        if self.log_norm is None:
            return Step(log_p, log_p)
        log_norm = self.log_norm.gather(1, parents)
        return Step(self.log_prior.gather(2, index), log_p, log_norm, self.factors)


class SamplingTask:
    """N sequences per source to draw for B rows of T mixture codes.

    joint: the priors, names in the order (z1, z2, ...). tables: of the mixture codes. links: of
    the partial sums of more than two sources. batch, candidates, steps: B, N, T.
    """

    def __init__(
        self,
        priors: Mapping[str, Prior] | JointPriors,
        likelihood: Likelihood | None,
        mixture_codes: Tensor,
        candidates: int,
        log_factors: Mapping[str, Tensor] | None = None,
    ):
        """Check that priors, likelihood and codes fit together.

        Args:
            priors: of S sources, in the order of the likelihood: z1, z2, ...
            likelihood: scores of code pairs given a mixture code; of more than two sources a
                `Chain`. None: no pair likelihood, the sources are independent.
            mixture_codes: int64 [B, T], T within the priors' context.
            candidates: N.
            log_factors: {source: [B, T, K]}, see `SourceLikelihood`; None: no source likelihood.
                -inf forbids a code.

        Raises:
            ValueError: the likelihood is for another number of sources, there is no candidate, or
                the parts do not fit together.
        """
        self.joint = joint = as_joint(priors)
        if mixture_codes.ndim != 2 or mixture_codes.shape[1] == 0:
            raise ValueError(
                f"mixture codes are {tuple(mixture_codes.shape)}, expected [B, T], T > 0"
            )
        if likelihood is not None and joint.n_codes != likelihood.n_codes:
            raise ValueError(
                f"the priors of {' and '.join(joint.names)} have {joint.n_codes} codes, "
                f"the likelihood {likelihood.n_codes}: they belong to different codecs"
            )
        self.links = links_of(likelihood)
        if likelihood is not None and len(joint.names) != len(self.links) + 2:
            raise ValueError(
                f"the likelihood is for {len(self.links) + 2} sources, the priors are of "
                f"{len(joint.names)}: {', '.join(joint.names)}"
            )
        self._independent = likelihood is None and len(joint.names) != 2
        self.batch, self.steps = mixture_codes.shape
        if self.steps > joint.n_ctx:
            raise ValueError(f"{self.steps} codes exceed the priors' context of {joint.n_ctx}")
        require("candidates", candidates, whole=True, at_least=1)
        self.candidates = candidates
        self.device = mixture_codes.device
        self.tables = Tables(likelihood, mixture_codes, joint.n_codes)
        self._factors = None if log_factors is None else self._stacked(log_factors)

    def require_pairs(self, why: str) -> None:
        """Refuse any number of sources but two.

        Raises:
            ValueError: the message begins with `why`.
        """
        if len(self.joint.names) != 2:
            raise ValueError(
                f"{why}, but there are {len(self.joint.names)} sources: "
                f"{', '.join(self.joint.names)}"
            )

    def _stacked(self, log_factors: Mapping[str, Tensor]) -> Tensor:
        """Log-factors [T, S, B, 1, K] in the order of the priors."""
        expected = (self.batch, self.steps, self.joint.n_codes)
        for name in self.joint.names:
            if name not in log_factors:
                raise ValueError(f"log-factors of {', '.join(log_factors)}, but none of {name}")
            values = log_factors[name]
            if tuple(values.shape) != expected:
                raise ValueError(
                    f"log-factors of {name} are {tuple(values.shape)}, expected {expected}"
                )
            if not bool((values < math.inf).all()):
                raise ValueError(f"log-factors of {name} hold NaN or infinity")
        stacked = torch.stack([log_factors[name] for name in self.joint.names])
        return stacked.to(self.device).permute(2, 0, 1, 3).unsqueeze(3)

    def uniform(self, generator: torch.Generator, numbers: int) -> Tensor:
        """Random numbers [T, B, numbers, 2 (S - 1)], drawn chunk by chunk; 1 for one source.

        The same chunks get the same numbers, however they are batched.
        """
        sources = len(self.joint.names)
        drawn = _numbers(generator, (self.batch, self.steps, numbers), sources, self.device)
        return drawn.transpose(0, 1).contiguous()

    def new_cache(self) -> Any:
        """An empty cache for all sequences."""
        return self.joint.new_cache(self.batch * self.candidates, self.steps)

    def step(
        self,
        step: int,
        last: Tensor | None,
        cache: Any,
        temperature: float,
        dtype: torch.dtype = torch.float32,
    ) -> Step:
        """The sources' distributions of the next codes, at `step`, after `last` [S, B * N]."""
        logits = self.joint.step(last, cache).to(dtype)
        log_p = torch.log_softmax(logits / temperature, -1)
        log_p = log_p.view(len(log_p), self.batch, self.candidates, -1)
        if self._factors is None:
            return Step(log_p, log_p)
        factors = self._factors[step].to(dtype)  # [S, B, 1, K]
        tilted = log_p + factors
        norms = tilted.logsumexp(3, keepdim=True)
        # Where no code is possible, all stay at -inf.
        tilted = tilted - norms.clamp_min(torch.finfo(dtype).min)
        return Step(log_p, tilted, norms.squeeze(3).sum(0), factors)

    def codes(self, step: int, log_p: Tensor, uniform: Tensor, exact: bool) -> Drawn:
        """The codes of a step drawn from log-probabilities [S, B, N, K]; see `draw_codes`."""
        if self._independent:
            return draw_independent(log_p, uniform)
        return draw_codes(self.links, self.tables.at(step), log_p, uniform, exact)

    @staticmethod
    def draw(draw: Callable[[bool], JointSamples | None]) -> JointSamples:
        """Call `draw(exact)`, again with exact draws if float32 lost probability mass.

        On a GPU, checking each step would wait for the device, so that the loss is only noticed at
        the end.
        """
        samples = draw(False)
        if samples is None:
            samples = draw(True)
        assert samples is not None
        return samples


class Tables:
    """The tables of scores of B chunks' mixture codes; recently used tables are kept.

    Mixture codes are looked up as host integers, so no step waits for a device. Without a pair
    likelihood all steps share one `ConstantTable`.
    """

    def __init__(
        self,
        likelihood: Likelihood | None,
        mixture_codes: Tensor,
        n_codes: int,
        budget: int = 1 << 30,
    ):
        self._likelihood = likelihood
        self._constant = ConstantTable(n_codes, mixture_codes.device)
        self._codes: list[list[int]] = mixture_codes.T.tolist()  # [T][B]
        self._budget = budget
        self._held = 0
        self._kept: OrderedDict[int, FullTable | PairTable] = OrderedDict()

    def at(self, step: int) -> list[FullTable | PairTable]:
        """The tables of all chunks at a step."""
        return [self._table(code) for code in self._codes[step]]

    def _table(self, mixture_code: int) -> FullTable | PairTable:
        if self._likelihood is None:
            return self._constant
        table = self._kept.get(mixture_code)
        if table is None:
            table = make_table(self._likelihood.scores(mixture_code), self._likelihood.n_codes)
            self._held += table.nbytes
            while self._kept and self._held > self._budget:
                self._held -= self._kept.popitem(last=False)[1].nbytes
            self._kept[mixture_code] = table
        self._kept.move_to_end(mixture_code)
        return table


def skip_numbers(
    generator: torch.Generator, windows: int, steps: int, numbers: int, sources: int
) -> None:
    """Draw and drop what `SamplingTask.uniform` would give so many windows of `steps` codes."""
    for _ in range(windows):
        _numbers(generator, (1, steps, numbers), sources, generator.device)


def _numbers(
    generator: torch.Generator, shape: tuple[int, int, int], sources: int, device: torch.device
) -> Tensor:
    """Random numbers [B, T, numbers, 2 (S - 1)]; 1 for one source."""
    return uniform_numbers(generator, shape, device, max(1, 2 * (sources - 1)))
