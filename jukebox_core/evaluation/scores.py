"""Scores of the estimates of a chunk, in dB."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from jukebox_core.evaluation import metrics
from jukebox_core.evaluation.chunks import Chunk

METRICS = ("sdr_bsseval", "sdr", "si_sdr", "si_sdri")
MUSEVAL = "sdr_museval"
"""The SDR of the package museval, computed on request."""


def score(
    chunk: Chunk, stems: Mapping[str, Tensor], with_museval: bool = False
) -> dict[str, dict[str, float | None]]:
    """{source: {metric: dB}} of estimates {source: [T]}.

    None for a silent source, or if there is no finite score.

    Raises:
        ValueError: an estimate has samples that are not finite.
    """
    if not all(x.isfinite().all() for x in stems.values()):
        raise ValueError(f"NaN or infinite samples for {chunk.track} at sample {chunk.start}")
    scores = {}
    reference = museval_sdr(chunk.sources, stems) if with_museval else {}
    for name, truth in chunk.sources.items():
        estimate = stems[name]
        values = {
            "sdr_bsseval": metrics.framewise_sdr(truth, estimate),
            "sdr": metrics.sdr(truth, estimate),
            "si_sdr": metrics.si_sdr(truth, estimate),
            "si_sdri": metrics.si_sdri(truth, estimate, chunk.mixture),
        }
        assert tuple(values) == METRICS
        if with_museval:
            values[MUSEVAL] = reference[name]
        scores[name] = {
            metric: None if name in chunk.silent else _finite(value)
            for metric, value in values.items()
        }
    return scores


def sdr(chunk: Chunk, source: str, stem: Tensor) -> float | None:
    """SDR of an estimate [T], in dB; None for a silent source, or if there is no finite score."""
    return None if source in chunk.silent else _finite(metrics.sdr(chunk.sources[source], stem))


def _finite(score: Tensor) -> float | None:
    return score.item() if score.isfinite() else None


def museval_sdr(truth: Mapping[str, Tensor], stems: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Museval's own SDR, which `sdr_bsseval` must equal; it takes seconds per call.

    NaN if museval refuses to score, as for a silent estimate.
    """
    import museval  # takes seconds to import, and needs ffmpeg to do so

    names, size = list(truth), metrics.BSSEVAL_WINDOW
    references, estimates = (
        torch.stack([x[name] for name in names]).double().unsqueeze(-1).numpy()
        for x in (truth, stems)
    )
    if not (references.any((1, 2)).all() and estimates.any((1, 2)).all()):
        return {name: torch.tensor(math.nan) for name in names}
    frames = museval.evaluate(references, estimates, size, size, mode="v4")[0]  # [S, W]
    scores = torch.from_numpy(np.where(np.isfinite(frames), frames, np.nan))
    return dict(zip(names, scores.nanquantile(0.5, dim=1), strict=True))


def check_museval() -> None:
    """Raise ValueError if museval cannot be imported."""
    tools = [name for name in ("ffmpeg", "ffprobe") if not shutil.which(name)]
    if tools:
        raise ValueError(f"museval needs {' and '.join(tools)} on the PATH")
    if not importlib.util.find_spec("museval"):
        raise ValueError("the package museval is not installed: pip install museval")
