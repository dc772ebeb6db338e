"""More than two sources: a chain of partial sums, whose posterior is drawn exactly.

The mixture of S sources is built source by source. s_1 = z_1 is the first source's code, s_k the
code of the sum of the first k sources, and the mixture's code m comes last:

    p(z_1 .. z_S | m) ~ sum over s_2 .. s_{S-1} of
        prod_i p_i(z_i)  prod_{k=2}^{S-1} p(s_k | s_{k-1}, z_k)  exp(scores_m[s_{S-1}, z_S])

Messages p(s_k) go forward, [N, K] each; the pair (s_{S-1}, z_S) is drawn from the exact pair
posterior, then (s_{k-1}, z_k) given s_k, backwards (forward filtering, backward sampling). The time
grows linearly with S, and nothing of size K^S, or N x K^2, is held. With two sources there are no
partial sums, and the draw is that of `posterior.draw_chunks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from jukebox_core.inverse_cdf import precise
from jukebox_core.separation.likelihood import Likelihood, Scores
from jukebox_core.separation.posterior import (
    FullTable,
    PairTable,
    categorical,
    draw_chunks,
)


class Parts(NamedTuple):
    """Pairs of codes and log p(sum | first, second), [N] each."""

    first: Tensor
    second: Tensor
    log_p: Tensor


class Message(Protocol):
    """What a partial sum's code may be, given the distributions of its parts."""

    @property
    def mass(self) -> Tensor:
        """Sums of first[n, i] second[n, j] p(s | i, j) over all pairs, [N, K]."""
        ...

    def parts(self, sums: Tensor, uniform: Tensor) -> Parts:
        """Pairs drawn given the codes [N] of their sums; uniform: [N, 2]."""
        ...


class Link(Protocol):
    """The distribution p(s | first, second) of a partial sum's code, given two codes."""

    n_codes: int

    def message(self, first: Tensor, second: Tensor) -> Message:
        """The message of probabilities first and second, [N, K] each.

        first: of the code of the sum so far, float64 where the device has it; second: of the next
        source's code.
        """
        ...


class Chain:
    """The `Likelihood` of more than two sources.

    Its pairs are (code of the sum of all but the last source, code of the last source).
    """

    def __init__(self, links: Sequence[Link], last: Likelihood):
        """Join links and the mixture's likelihood.

        Args:
            links: S - 2, of the sums of the first 2 .. S - 1 sources.
            last: of the mixture.

        Raises:
            ValueError: the parts have different numbers of codes.
        """
        sizes = {last.n_codes, *(link.n_codes for link in links)}
        if len(sizes) > 1:
            raise ValueError(f"the links of a chain have {sorted(sizes)} codes, expected the same")
        self.n_codes = last.n_codes
        self.links = tuple(links)
        self.last = last

    def scores(self, mixture_code: int) -> Scores:
        """Those of the mixture's likelihood."""
        return self.last.scores(mixture_code)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the mixture's likelihood; the links are made with the same."""
        return self.last.settings


def links_of(likelihood: Likelihood | None) -> tuple[Link, ...]:
    """The links of the partial sums; none for a likelihood of two sources."""
    return likelihood.links if isinstance(likelihood, Chain) else ()


class Drawn(NamedTuple):
    """One code per source and candidate.

    codes: [S, B, N]. score: [B, N], the log-likelihood of the mixture code plus the
    log-probabilities of the partial sums that were drawn. log_total: [B, N], log of the step's mass
    over all codes of all sources. lost: see `posterior.Draw`.
    """

    codes: Tensor
    score: Tensor
    log_total: Tensor
    lost: Tensor | None = None


def draw_codes(
    links: Sequence[Link],
    tables: Sequence[FullTable | PairTable],
    log_p: Tensor,
    uniform: Tensor,
    exact: bool = False,
) -> Drawn:
    """One code of every source for each of N candidates of B chunks.

    Probabilities of partial sums below e^-700 count as zero.

    Args:
        links: of the partial sums, S - 2.
        tables: of the chunks' mixture codes.
        log_p: [S, B, N, K] log-probabilities of the sources' next codes.
        uniform: [B, N, 2 (S - 1)], see `posterior.uniform_numbers`.
        exact: see `posterior.draw_chunks`.
    """
    messages: list[Message] = []
    so_far = log_p[0]
    for link, log_next in zip(links, log_p[1:-1], strict=True):
        first, second = (x.flatten(0, 1).to(precise(x.device)).exp() for x in (so_far, log_next))
        messages.append(link.message(first, second))
        so_far = messages[-1].mass.log().to(log_p.dtype).view_as(log_next)
    pair = draw_chunks(tables, so_far, log_p[-1], uniform[..., :2], exact)
    codes, sums, score = [pair.second], pair.first, pair.score
    for number, message in enumerate(reversed(messages), start=1):
        numbers = uniform[..., 2 * number : 2 * number + 2].flatten(0, 1)
        parts = message.parts(sums.flatten(), numbers)
        sums, last = parts.first.view_as(sums), parts.second.view_as(sums)
        codes.append(last)
        score = score + parts.log_p.view_as(score).to(score.dtype)
    codes.append(sums)
    return Drawn(torch.stack(codes[::-1]), score, pair.log_total, pair.lost)


def draw_independent(log_p: Tensor, uniform: Tensor) -> Drawn:
    """One code of every source from its own distribution; arguments as in `draw_codes`."""
    drawn = [categorical(own, uniform[..., i]) for i, own in enumerate(log_p)]
    total = torch.stack([mass for _, mass in drawn]).sum(0)
    return Drawn(torch.stack([code for code, _ in drawn]), torch.zeros_like(total), total)
