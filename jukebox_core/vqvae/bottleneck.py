"""Vector quantiser whose codebook follows its inputs by exponential averages, with restarts."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PART = 1 << 20  # distances computed at a time on a CPU
_FORGOTTEN = 1e-20  # smaller averaged counts are too small to divide by


class Quantised(NamedTuple):
    """codes: [B, T]. latents: [B, D, T], straight-through. commit: scalar. metrics: scalars."""

    codes: Tensor
    latents: Tensor
    commit: Tensor
    metrics: dict[str, Tensor]


class Bottleneck(nn.Module):
    """Nearest-code quantiser of latents [B, D, T] with an EMA codebook [K, D].

    In training mode every call updates the codebook: counts and sums decay by `mu`, a code is
    sums / counts, and a code whose averaged count falls under `revival_threshold` restarts at a
    random latent of the batch (Jukebox, arXiv 2005.00341, section 3.1).

    Under torch.distributed the ranks' batches count as one: sums are added, restarts are drawn from
    all ranks. The codebook is the same everywhere and equals the codebook of one process with the
    whole batch, whose item n is item n // P of rank n % P (as in
    `jukebox_core.datasets.batches.Batches`).
    """

    codebook: Tensor
    ema_sum: Tensor
    ema_count: Tensor
    initialised: Tensor

    def __init__(self, n_codes: int, width: int, mu: float, revival_threshold: float = 1.0):
        super().__init__()
        self.mu = mu
        self.revival_threshold = revival_threshold
        self.register_buffer("codebook", torch.zeros(n_codes, width))
        self.register_buffer("ema_sum", torch.zeros(n_codes, width))
        self.register_buffer("ema_count", torch.zeros(n_codes))
        self.register_buffer("initialised", torch.tensor(False))
        self._ready = False  # host copy of `initialised`: no device sync per call

    @property
    def n_codes(self) -> int:
        """Number of codes K."""
        return self.codebook.shape[0]

    def forward(self, latents: Tensor, generator: torch.Generator | None = None) -> Quantised:
        """Quantise [B, D, T]; update the codebook in training mode."""
        # The codebook and its averages stay in float32 under autocast.
        with torch.autocast(latents.device.type, enabled=False):
            return self._forward(latents.float(), generator)

    def _forward(self, latents: Tensor, generator: torch.Generator | None) -> Quantised:
        batch, width, steps = latents.shape
        flat = latents.transpose(1, 2).reshape(-1, width)  # [B * T, D]
        if self.training:
            self._initialise(flat.detach(), steps, generator)
        codes, fit = self._nearest(flat)
        metrics = {"fit": fit, "pn": _prenorm(flat.detach())}
        # The lookup precedes the update: the loss sees the codebook that chose the codes.
        quantised = F.embedding(codes, self.codebook)
        if self.training:
            metrics |= self._update(flat.detach(), steps, codes, generator)
        commit = (quantised - flat).square().mean()
        through = flat + (quantised - flat).detach()
        if not self.training:
            through = through.detach()  # as the originals: only `commit` reaches the encoder
        return Quantised(
            codes.view(batch, steps),
            through.view(batch, steps, width).transpose(1, 2),
            commit,
            metrics,
        )

    def encode(self, latents: Tensor) -> Tensor:
        """Nearest codes [B, T] of latents [B, D, T]."""
        flat = latents.float().transpose(1, 2).reshape(-1, latents.shape[1])
        return self._nearest(flat)[0].view(latents.shape[0], -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents [B, D, T] of codes [B, T]."""
        return F.embedding(codes, self.codebook).transpose(1, 2)

    def restore_averages(self, usage: float = 1.0) -> None:
        """Start the averages from the codebook, every code as if used `usage` times."""
        self.ema_sum.copy_(self.codebook * usage)
        self.ema_count.fill_(usage)
        self.initialised.fill_(True)
        self._ready = True

    @torch.no_grad()
    def _nearest(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [M] of vectors [M, D], and their mean squared distance."""
        norms = self.codebook.square().sum(1)  # [K]
        # On a CPU some rows at a time: their distances stay in the cache.
        rows = max(1, _PART // len(norms)) if flat.device.type == "cpu" else max(1, len(flat))
        nearest = []
        for part in flat.split(rows):
            squared = (2 * part) @ self.codebook.T  # [M, K]
            torch.sub(part.square().sum(1, keepdim=True), squared, out=squared)
            nearest.append(squared.add_(norms).min(dim=1))
        distance, codes = (torch.cat(parts) for parts in zip(*nearest, strict=True))
        return codes, distance.mean()

    def _initialise(self, flat: Tensor, steps: int, generator: torch.Generator | None) -> None:
        if self._ready:
            return
        if not bool(self.initialised):
            self.codebook.copy_(self._random_latents(flat, steps, generator))
            self.restore_averages()
        self._ready = True

    def _random_latents(
        self, flat: Tensor, steps: int, generator: torch.Generator | None
    ) -> Tensor:
        """[K, D] latents drawn without replacement, tiled with noise where there are too few.

        Args:
            flat: [B * T, D], this rank's latents.
            steps: T.
            generator: of the draws; rank 0's are used.
        """
        width, device = flat.shape[1], flat.device
        total = len(flat) * _ranks()
        repeats = max(1, -(-self.n_codes // total))
        noise = None
        if repeats > 1:
            noise = torch.randn(repeats * total, width, generator=generator, dtype=flat.dtype)
        drawn = torch.randperm(repeats * total, generator=generator)[: self.n_codes]
        picks = _from_first(drawn.to(device))
        chosen = _gather_rows(flat, steps, picks % total)
        if noise is not None:
            chosen = chosen + _from_first(noise[drawn].to(device)) * (0.01 / math.sqrt(width))
        return chosen

    @torch.no_grad()
    def _update(
        self, flat: Tensor, steps: int, codes: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        replacements = self._random_latents(flat, steps, generator)
        sums = torch.zeros_like(self.ema_sum).index_add_(0, codes, flat)
        counts = torch.zeros_like(self.ema_count).index_add_(
            0, codes, torch.ones_like(codes, dtype=self.ema_count.dtype)
        )
        if _distributed():
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(counts)
        self.ema_sum.mul_(self.mu).add_(sums, alpha=1 - self.mu)
        self.ema_count.mul_(self.mu).add_(counts, alpha=1 - self.mu)
        alive = (self.ema_count >= self.revival_threshold).unsqueeze(1)  # [K, 1]
        count = self.ema_count.unsqueeze(1)
        # With a threshold of zero, a code that is never used again stays where it is.
        mean = torch.where(count > _FORGOTTEN, self.ema_sum / count, self.codebook)
        updated = torch.where(alive, mean, replacements)
        probabilities = counts / counts.sum()
        metrics = {
            "entropy": -(probabilities * torch.log(probabilities + 1e-8)).sum(),
            "used_curr": (counts >= self.revival_threshold).sum().float(),
            "usage": alive.sum().float(),
            "dk": (updated - self.codebook).norm() / math.sqrt(self.codebook.numel()),
        }
        # A new tensor rather than an in-place copy: autograd may still hold the old one.
        self.codebook = updated
        return metrics


def _prenorm(flat: Tensor) -> Tensor:
    """Root mean square of the latents about their mean (Jukebox logs it as `pn`)."""
    return (flat - flat.mean()).norm() / math.sqrt(flat.numel())


def _gather_rows(flat: Tensor, steps: int, index: Tensor) -> Tensor:
    """Rows [P, D] of the latents [B * T, D] of all ranks, whose items take turns in their order."""
    if not _distributed():
        return flat[index]
    size, rank = _ranks(), torch.distributed.get_rank()
    item, step = index // steps, index % steps
    own = (item % size == rank).unsqueeze(1)
    rows = torch.where(own, flat[item // size * steps + step], torch.zeros_like(flat[:1]))
    torch.distributed.all_reduce(rows)
    return rows


def _from_first(x: Tensor) -> Tensor:
    """Rank 0's tensor."""
    if _distributed():
        x = x.contiguous()
        torch.distributed.broadcast(x, 0)
    return x


def _ranks() -> int:
    return torch.distributed.get_world_size() if _distributed() else 1


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
