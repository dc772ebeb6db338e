"""Code sums: the code of the weighted mean of every pair of codes (LQ-VAE, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jukebox_core.files import atomic_path

ALPHA = (0.5, 0.5)


@torch.no_grad()
def code_sums(codebook: Tensor, alpha: Sequence[float] = ALPHA) -> Tensor:
    """B(a0 e_i + a1 e_j) for all pairs: int64 [K, K], row i, column j.

    At alpha = (0.5, 0.5) the mean of two codes is equally far from both, so unless a third code is
    nearer, rounding would decide. The rule here: distances are taken in float64, those within
    1e-9 (relative to the codebook's scale) of the least are ties, and the lowest index wins.

    Args:
        codebook: [K, D].
        alpha: weights of the first and the second source.
    """
    codebook = codebook.double()
    n_codes = codebook.shape[0]
    norms = codebook.square().sum(1)
    tolerance = 1e-9 * norms.max().clamp_min(1e-300)
    products = codebook @ codebook.T  # [K, K]; |a0 e_i + a1 e_j - e_k|^2 needs nothing else
    table = torch.empty(n_codes, n_codes, dtype=torch.int64)
    for i in range(n_codes):
        cross = alpha[0] * products[i] + alpha[1] * products  # [j, k]: (a0 e_i + a1 e_j) . e_k
        distances = norms - 2 * cross  # up to |a0 e_i + a1 e_j|^2, the same for every k
        ties = distances <= distances.min(1, keepdim=True).values + tolerance
        table[i] = ties.int().argmax(1)
    return table


def save_sums(path: Path, table: Tensor, codec_fingerprint: str, alpha: Sequence[float]) -> None:
    """Write a table [K, K] atomically, marked with the codec it belongs to."""
    metadata = {
        "kind": "code_sums",
        "codec": codec_fingerprint,
        "alpha": " ".join(repr(float(a)) for a in alpha),
    }
    with atomic_path(path) as temporary:
        save_file({"sum_codes": table.to(torch.int32).contiguous()}, temporary, metadata)


def load_sums(path: Path, codec_fingerprint: str | None = None) -> Tensor:
    """The table [K, K] int64 of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or was made with another codec.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with scripts.precompute_sums")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != "code_sums":
                raise ValueError(f"{path} holds {metadata.get('kind', 'no')} data, not code sums")
            table = file.get_tensor("sum_codes").long()
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable code-sum file ({error})") from error
    if codec_fingerprint is not None and metadata.get("codec") != codec_fingerprint:
        raise ValueError(f"{path} was made with another codec; run scripts.precompute_sums again")
    return table
