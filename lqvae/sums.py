"""Code sums: the code of the weighted mean of every pair of codes (LQ-VAE, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jukebox_core.checks import plain, require
from jukebox_core.tables import read_table, write_table

ALPHA = (0.5, 0.5)
KIND = "code_sums"
PAIR = "2 of 2"
"""Place of the sum of two sources that are the mixture."""
_PART = 1 << 18  # elements searched at a time: they stay in the cache


def code_sums(codebook: Tensor, alpha: Sequence[float] = ALPHA) -> Tensor:
    """B(a0 e_i + a1 e_j) for all pairs: int64 [K, K], row i, column j.

    At alpha = (0.5, 0.5) the mean of two codes is equally far from both, so that rounding would
    decide unless a third code is nearer. Therefore distances are computed in float64, distances
    within 1e-9 (relative to the codebook's scale) of the least are ties, and the lowest index wins.

    Args:
        codebook: [K, D].
        alpha: weights of the first and the second source.

    Raises:
        ValueError: The codebook is not [K, D] or not finite, or the weights are not two, are
            negative, both 0, or too large for float32.
    """
    if codebook.ndim != 2 or not torch.isfinite(codebook).all():
        raise ValueError(f"codebook is {tuple(codebook.shape)}, expected [K, D] of finite numbers")
    _check_weights(alpha)
    a, b = map(float, alpha)
    vectors = codebook.detach().cpu().double().numpy()
    # |a e_i + b e_j - e_k|^2, without the terms that are equal for all k, is the sum of a function
    # of (i, k) and a function of (j, k): two tables [K, K]. They are searched in float32; all codes
    # that may be nearest or tied, allowing for rounding, are compared in float64.
    norms, products, n_codes = np.square(vectors).sum(1), vectors @ vectors.T, len(vectors)
    scale = norms.max()
    # Both tables and their sum are rounded: three errors of half an ulp per value.
    largest, tolerance = (1 + 2 * a + 2 * b) * scale, 1e-9 * scale
    slack = np.float32(tolerance + 4 * np.finfo(np.float32).eps * largest)
    if not largest < np.finfo(np.float32).max / 4:
        raise ValueError(f"alpha is {(a, b)}, too large for this codebook: use smaller weights")
    by_first = (norms - 2 * a * products).astype(np.float32)
    by_second = (-2 * b * products).astype(np.float32)
    table = np.zeros((n_codes, n_codes), np.int64)
    size = max(1, _PART // n_codes)
    for i in range(n_codes):
        for start in range(i if a == b else 0, n_codes, size):  # equal weights: a symmetric table
            distances = by_first[i] + by_second[start : start + size]  # [j, k]
            near = distances <= distances.min(1, keepdims=True) + slack
            j, k = np.divmod(np.flatnonzero(near), n_codes)  # sorted by j, then k
            exact = norms[k] - 2 * (a * products[i, k] + b * products[start + j, k])
            starts = np.flatnonzero(np.diff(j, prepend=-1))
            least = np.repeat(np.minimum.reduceat(exact, starts), np.diff(starts, append=len(j)))
            tied = np.where(exact <= least + tolerance, k, n_codes)
            table[i, start : start + size] = np.minimum.reduceat(tied, starts)
    return torch.from_numpy(np.triu(table) + np.triu(table, 1).T if a == b else table)


def _check_weights(alpha: Sequence[float]) -> None:
    if len(alpha) != 2:
        raise ValueError(f"alpha has {len(alpha)} weights, expected two")
    for index, weight in enumerate(alpha):
        require(f"alpha[{index}]", weight, at_least=0)
    if not any(alpha):
        raise ValueError(f"alpha is {tuple(alpha)}, expected at least one weight above 0")


def save_sums(
    path: Path, table: Tensor, codec_fingerprint: str, alpha: Sequence[float], place: str = PAIR
) -> None:
    """Write a table [K, K] atomically, marked with its codec.

    Args:
        path: the file.
        table: from `code_sums`.
        codec_fingerprint: of the codebook's codec.
        alpha: weights of the first and the second source.
        place: the sum among those of a mixture, see `partial_sums.Step.place`.

    Raises:
        ValueError: The weights are not two, are negative, or both 0.
    """
    _check_weights(alpha)
    metadata = {
        "kind": KIND,
        "codec": codec_fingerprint,
        "alpha": " ".join(repr(float(a)) for a in alpha),
    } | ({} if place == PAIR else {"sum": place})
    write_table(path, {"sum_codes": table.to(torch.int32)}, metadata)


def load_sums(
    path: Path,
    codec_fingerprint: str | None = None,
    place: str | None = PAIR,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Read a table of code sums, int64 [K, K].

    Args:
        path: written by `save_sums`.
        codec_fingerprint: of the codec to use the sums with; None accepts any.
        place: the sum among those of a mixture; None accepts any.
        weights: of the first and the second source, to a thousandth; None accepts any.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind, or belongs to another codec or another sum.
    """
    tensors, metadata = read_table(path, KIND, codec_fingerprint)
    if place not in (None, stored := metadata.get("sum", PAIR)):
        raise ValueError(
            f"{path} is the table of sum {plain(stored)} sources, expected sum {place}: compute "
            "the code sums with the gains of all sources"
        )
    if weights is not None:
        stored = metadata.get("alpha", "")
        if not _near(stored, weights):
            raise ValueError(
                f"{path} has the weights {plain(stored)}, the sources "
                f"{' '.join(f'{w:.6g}' for w in weights)}: compute the code sums with the gains of "
                "all sources"
            )
    table = tensors.get("sum_codes", torch.empty(0))
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.is_floating_point():
        raise ValueError(
            f"{path} holds sums of {table.dtype} and shape {tuple(table.shape)}, "
            "expected integers [K, K]"
        )
    table = table.long()
    check_sum_codes(f"the sums of {path}", table)
    return table


def _near(stored: str, weights: Sequence[float]) -> bool:
    try:
        found = [float(word) for word in stored.split()]
    except ValueError:
        return False
    pairs = zip(found, weights, strict=False)
    return len(found) == len(weights) and all(abs(a - b) < 1e-3 for a, b in pairs)


def check_sum_codes(name: str, table: Tensor) -> None:
    """Raise ValueError unless a table [K, K] holds only codes; the message calls it `name`."""
    if table.numel() and not 0 <= int(table.min()) <= int(table.max()) < len(table):
        raise ValueError(
            f"{name} span {int(table.min())} to {int(table.max())}, expected codes from 0 to "
            f"{len(table) - 1}"
        )
