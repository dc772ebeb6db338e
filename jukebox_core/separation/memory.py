"""The number of windows that fit in memory, and errors that mean a lack of memory."""

from __future__ import annotations

import torch

from jukebox_core.machine import free_bytes
from jukebox_core.prior.joint import JointPriors

SHARE = 0.5
"""Fraction of free memory to plan for; the estimate covers only the large parts."""

CPU_SEQUENCES = 256
"""Sequences of a source decoded together from which a CPU gains little by more."""

GPU_SEQUENCES = 4096
"""Sequences of a source decoded together from which a GPU gains little by more."""

_LOGITS = 16  # float32 rows [K] of a sequence: logits, log-probabilities, the draw's intermediates
_MESSAGES = 8  # float64 rows [K] of a partial sum: its parts, its mass, intermediates
_TABLES = 3  # float32 tables [K, K] of a window's step
_FACTORS = 4  # float32 tensors [T, K] of a source: network's logits, log-factors, intermediates


class TooLarge(ValueError):
    """The smallest piece of the work does not fit the memory."""


def windows_that_fit(
    joint: JointPriors,
    candidates: int,
    codes: int,
    samples: int,
    device: torch.device,
    processes: int = 1,
    shifts: int = 1,
    factors: bool = False,
) -> int:
    """Windows to sample together, at least 1: useful on the device, within half its free memory.

    Args:
        joint: the priors of S sources; a cache for one candidate is made to see its size.
        candidates: N.
        codes: of a sequence, its context included.
        samples: of a decoded candidate.
        device: where the priors are.
        processes: that share the free memory.
        shifts: sequences of mixture codes per window.
        factors: whether there is a source likelihood.
    """
    useful = -(-(CPU_SEQUENCES if device.type == "cpu" else GPU_SEQUENCES) // candidates)
    sources, k = len(joint.names), joint.n_codes
    rows = 4 * _LOGITS * sources + 8 * _MESSAGES * max(0, sources - 2)
    on_device = candidates * (joint.new_cache(1, codes).nbytes() + rows * k)
    on_device += 4 * _TABLES * shifts * k**2
    if factors:
        on_device += 4 * _FACTORS * shifts * codes * k * sources
    on_host = 2 * decoded_bytes(candidates, samples, sources)  # decoded in parts and joined
    host, own = torch.device("cpu"), free_bytes(device)
    if device.type == "cpu":
        fits = own / (on_device + on_host)
    else:
        fits = min(own / on_device, free_bytes(host) / on_host)
    return max(1, min(useful, int(SHARE * fits / processes)))


def decoded_bytes(candidates: int, samples: int, sources: int) -> int:
    """Bytes of a window's candidates of all sources, as float32 audio."""
    return 4 * candidates * samples * sources
