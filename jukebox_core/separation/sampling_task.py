"""The task of a sampler: mixture codes, their tables of scores, both priors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from jukebox_core.checks import require
from jukebox_core.prior.joint import JointPriors, Prior, as_joint
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.posterior import FullTable, PairTable, make_table, uniform_numbers
from jukebox_core.separation.samples import JointSamples


def check_temperature(name: str, value: object) -> None:
    """Refuse a temperature with which logits, divided by it and summed, overflow float32.

    Raises:
        ValueError: It is not a number from 1e-6 to 1e6; the message calls it `name`.
    """
    require(name, value, at_least=1e-6, at_most=1e6)


class SamplingTask:
    """N sequences per source to draw for B rows of T mixture codes.

    joint: both priors, names in the order (z1, z2). tables: of the mixture codes. batch,
    candidates, steps: B, N, T.
    """

    def __init__(
        self,
        priors: Mapping[str, Prior] | JointPriors,
        likelihood: Likelihood,
        mixture_codes: Tensor,
        candidates: int,
    ):
        """Check that priors, likelihood and codes fit together.

        Args:
            priors: the two sources' priors; the first is z1 of the likelihood, the second z2.
            likelihood: scores of code pairs given a mixture code.
            mixture_codes: int64 [B, T], T within the priors' context.
            candidates: N.

        Raises:
            ValueError: there are not two priors, there is no candidate, or the parts do not fit
                together.
        """
        self.joint = joint = as_joint(priors)
        if mixture_codes.ndim != 2 or mixture_codes.shape[1] == 0:
            raise ValueError(
                f"mixture codes are {tuple(mixture_codes.shape)}, expected [B, T], T > 0"
            )
        if joint.n_codes != likelihood.n_codes:
            raise ValueError(
                f"the priors of {' and '.join(joint.names)} have {joint.n_codes} codes, "
                f"the likelihood {likelihood.n_codes}: they belong to different codecs"
            )
        self.batch, self.steps = mixture_codes.shape
        if self.steps > joint.n_ctx:
            raise ValueError(f"{self.steps} codes exceed the priors' context of {joint.n_ctx}")
        require("candidates", candidates, whole=True, at_least=1)
        self.candidates = candidates
        self.device = mixture_codes.device
        self.tables = Tables(likelihood, mixture_codes)

    def uniform(self, generator: torch.Generator, numbers: int) -> Tensor:
        """Random numbers [T, B, numbers, 2], drawn chunk by chunk.

        The same chunks get the same numbers, however they are batched.
        """
        shape = (self.batch, self.steps, numbers)
        return uniform_numbers(generator, shape, self.device).transpose(0, 1).contiguous()

    def new_cache(self) -> Any:
        """An empty cache for all sequences."""
        return self.joint.new_cache(self.batch * self.candidates, self.steps)

    def log_p(
        self,
        last: Tensor | None,
        cache: Any,
        temperature: float,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Log-probabilities [2, B, N, K] of the next codes after `last` [2, B * N]."""
        logits = self.joint.step(last, cache).to(dtype)
        log_p = torch.log_softmax(logits / temperature, -1)
        return log_p.view(2, self.batch, self.candidates, -1)

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

    Mixture codes are looked up as host integers, so no step waits for a device.
    """

    def __init__(self, likelihood: Likelihood, mixture_codes: Tensor, budget: int = 1 << 30):
        self._likelihood = likelihood
        self._codes: list[list[int]] = mixture_codes.T.tolist()  # [T][B]
        self._budget = budget
        self._held = 0
        self._kept: OrderedDict[int, FullTable | PairTable] = OrderedDict()

    def at(self, step: int) -> list[FullTable | PairTable]:
        """The tables of all chunks at a step."""
        return [self._table(code) for code in self._codes[step]]

    def _table(self, mixture_code: int) -> FullTable | PairTable:
        table = self._kept.get(mixture_code)
        if table is None:
            table = make_table(self._likelihood.scores(mixture_code), self._likelihood.n_codes)
            self._held += table.nbytes
            while self._kept and self._held > self._budget:
                self._held -= self._kept.popitem(last=False)[1].nbytes
            self._kept[mixture_code] = table
        self._kept.move_to_end(mixture_code)
        return table
