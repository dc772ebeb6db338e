"""What scripts.evaluate scores: the chunks, the estimates of every method, their values."""

from __future__ import annotations

import importlib.util
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jukebox_core import audio as audio_io
from jukebox_core.checks import require, require_seed
from jukebox_core.datasets.crops import long_enough
from jukebox_core.datasets.manifest import Manifest, Track
from jukebox_core.evaluation import metrics
from jukebox_core.evaluation.results import METRICS, MUSEVAL
from jukebox_core.separation.selection import Candidates
from jukebox_core.separation.separator import Separator
from jukebox_core.vqvae.model import VQVAE

_TRIES = 100  # random offsets in a song before it is searched from the beginning


@dataclass(frozen=True)
class Chunk:
    """A stretch of a song: mixture [T] and {source: [T]}, T samples from `start` on."""

    track: str
    start: int
    mixture: Tensor
    sources: dict[str, Tensor]


class Estimate(NamedTuple):
    """One way to get estimates {source: [T]} out of a method, for one chunk."""

    estimate: str
    refined: bool
    stems: dict[str, Tensor]


class Found(NamedTuple):
    """What a system makes of one chunk.

    seconds: of drawing and decoding the candidates, of the pick and of the refinement: what a user
    waits for. uncertainty: [F, frames], see `Separator.uncertainty`.
    """

    seconds: float
    estimates: list[Estimate]
    uncertainty: Tensor


Silent = Callable[[Tensor], bool]


def choose_chunks(
    manifest: Manifest, split: str, count: int, length: int, seed: int, silent: Silent
) -> tuple[list[Chunk], list[str]]:
    """One random non-silent chunk of every song in order, and again from the first song on.

    Args:
        manifest: the data set.
        split: whose songs.
        count: chunks wanted.
        length: samples per chunk.
        seed: of the offsets.
        silent: whether a source's chunk is silent; no source of a chunk may be.

    Returns:
        The chunks, which do not overlap (so there may be fewer than wanted), and the names of songs
        that were left out: too short, or with no such chunk.

    Raises:
        ValueError: the split has no usable song.
    """
    require("count", count, whole=True, at_least=1)
    require("length", length, whole=True, at_least=1)
    require_seed("seed", seed)
    tracks = manifest.split(split)
    if not tracks:
        raise ValueError(f"{manifest.root} has no songs in its {split} split")
    usable = long_enough(tracks, length)
    left_out = [track.name for track in tracks if track not in usable]
    chunks: list[Chunk] = []
    while usable and len(chunks) < count:
        for track in list(usable)[: count - len(chunks)]:
            taken = [chunk.start for chunk in chunks if chunk.track == track.name]
            generator = np.random.default_rng([seed, len(chunks)])
            chunk = _cut(track, length, generator, silent, taken)
            if chunk is None:
                usable.remove(track)
                left_out.append(track.name)
            else:
                chunks.append(chunk)
    if not chunks:
        raise ValueError(
            f"no song of the {split} split has {length} samples in which no source is silent"
        )
    used = {chunk.track for chunk in chunks}
    return chunks, [name for name in left_out if name not in used]


def _cut(
    track: Track, length: int, generator: np.random.Generator, silent: Silent, taken: Sequence[int]
) -> Chunk | None:
    """A chunk of a song that overlaps none taken before; None where all is silent or taken."""
    sources = {name: audio_io.load(path)[0][0] for name, path in track.sources.items()}
    last = track.samples - length
    random = (int(start) for start in generator.integers(last + 1, size=_TRIES))
    for start in [*random, *range(0, last + 1, max(1, length // 4))]:
        if any(abs(start - other) < length for other in taken):
            continue
        cut = {name: x[start : start + length].clone() for name, x in sources.items()}
        if not any(silent(x) for x in cut.values()):
            mixture = audio_io.load_segment(track.mixture, start, length)[0]
            return Chunk(track.name, start, mixture, cut)
    return None


def system_estimates(
    separator: Separator,
    chunks: Sequence[Chunk],
    seed: int,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Found]:
    """Per chunk all estimates of a system; neither the oracle nor the scores are in its seconds.

    Args:
        separator: the system.
        chunks: all of one length.
        seed: of the candidates.
        batch: chunks sampled together.
        progress: called with (steps done, steps in all).
    """
    generator = torch.Generator().manual_seed(seed)
    groups = [chunks[i : i + batch] for i in range(0, len(chunks), batch)]
    for i, group in enumerate(groups):
        report = None
        if progress is not None:
            report = _offset(progress, i, len(groups))
        mixtures = torch.stack([chunk.mixture for chunk in group])
        began = time.perf_counter()
        candidates = separator.candidates(mixtures, generator, report)
        share = (time.perf_counter() - began) / len(group)
        for b, chunk in enumerate(group):
            alone = one_of(candidates, b)
            seconds, found = _estimates(separator, chunk, alone)
            unsure = separator.uncertainty(chunk.mixture[None], alone)[0]
            yield Found(share + seconds, found, unsure)


def _offset(progress: Callable[[int, int], None], i: int, n: int) -> Callable[[int, int], None]:
    return lambda step, total: progress(i * total + step, n * total)


def one_of(candidates: Candidates, b: int) -> Candidates:
    """The candidates of chunk `b` alone, still with a leading dimension."""
    at, drawn = slice(b, b + 1), candidates.separations
    return Candidates(
        {name: x[at] for name, x in candidates.audio.items()},
        drawn._replace(
            codes={name: x[at] for name, x in drawn.codes.items()},
            log_prior={name: x[at] for name, x in drawn.log_prior.items()},
            log_likelihood=drawn.log_likelihood[at],
            log_weights=None if drawn.log_weights is None else drawn.log_weights[at],
            log_evidence=None if drawn.log_evidence is None else drawn.log_evidence[at],
        ),
    )


def _estimates(
    separator: Separator, chunk: Chunk, candidates: Candidates
) -> tuple[float, list[Estimate]]:
    """Seconds of pick and refinement, and the oracle, the selected and the single estimates."""
    mixture, alpha = chunk.mixture[None], separator.alpha
    began = time.perf_counter()
    picked = separator.pick(mixture, candidates, alpha)
    weights = separator.average(mixture, candidates, alpha)
    refined = separator.refinement(mixture, candidates.audio, weights, alpha)
    seconds = time.perf_counter() - began
    raw = {name: x[0] for name, x in candidates.audio.items()}  # [N, T]
    masked = _refine_each(separator, chunk.mixture, raw)
    return seconds, [
        Estimate("oracle", False, _best(chunk.sources, raw)),
        Estimate("oracle", True, _best(chunk.sources, masked)),
        Estimate("selected", False, {name: x[picked[name][0]] for name, x in raw.items()}),
        Estimate("selected", True, {name: x[0] for name, x in refined.items()}),
        Estimate("single", False, {name: x[0] for name, x in raw.items()}),
        Estimate("single", True, {name: x[0] for name, x in masked.items()}),
    ]


def _refine_each(
    separator: Separator, mixture: Tensor, raw: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The mixture [T] masked with every candidate pair of {source: [N, T]} by itself."""
    pairs = {name: x.unsqueeze(1) for name, x in raw.items()}  # [N, 1, T]
    count = len(next(iter(pairs.values())))
    return separator.refinement(
        mixture.expand(count, -1), pairs, mixture.new_ones(count, 1), separator.alpha
    )


def _best(truth: Mapping[str, Tensor], estimates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per source, the one of [N, T] with the highest SDR: a choice that needs the truth."""
    best = {}
    for name, x in estimates.items():
        scores = metrics.sdr(truth[name], x).nan_to_num(nan=-math.inf)
        best[name] = x[int(scores.argmax())]
    return best


@torch.no_grad()
def codec_round_trip(codec: VQVAE, chunk: Chunk) -> dict[str, Tensor]:
    """The truth encoded and decoded: the ceiling of every raw estimate."""
    device = codec.codebook.device
    return {
        name: codec.decode(codec.encode(x[None].to(device)))[0].float().cpu()
        for name, x in chunk.sources.items()
    }


def values(
    chunk: Chunk, stems: Mapping[str, Tensor], with_museval: bool = False
) -> dict[str, dict[str, float | None]]:
    """{source: {metric: dB}}; None where there is no finite score."""
    found = {}
    reference = museval_sdr(chunk.sources, stems) if with_museval else {}
    for name, truth in chunk.sources.items():
        estimate = stems[name]
        scores = {
            "sdr_bsseval": metrics.framewise_sdr(truth, estimate),
            "sdr": metrics.sdr(truth, estimate),
            "si_sdr": metrics.si_sdr(truth, estimate),
            "si_sdri": metrics.si_sdri(truth, estimate, chunk.mixture),
        }
        assert tuple(scores) == METRICS
        if with_museval:
            scores[MUSEVAL] = reference[name]
        found[name] = {
            metric: score.item() if score.isfinite() else None for metric, score in scores.items()
        }
    return found


def museval_sdr(truth: Mapping[str, Tensor], stems: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return museval's own SDR, which `sdr_bsseval` must equal; a call takes seconds.

    A score that museval refuses (a silent estimate) is NaN.
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
    """Raise ValueError where museval cannot be imported."""
    tools = [name for name in ("ffmpeg", "ffprobe") if not shutil.which(name)]
    if tools:
        raise ValueError(
            f"--museval needs {' and '.join(tools)} on the PATH: museval's import does"
        )
    if not importlib.util.find_spec("museval"):
        raise ValueError("--museval needs the package museval: pip install museval")


def entry(
    index: int, chunk: Chunk, method: str, found: Estimate, with_museval: bool = False
) -> dict[str, Any]:
    """One item of the JSON's `chunks`; an estimate that is not finite is an error, not a gap."""
    if not all(x.isfinite().all() for x in found.stems.values()):
        raise ValueError(
            f"{method} ({found.estimate}) gave NaN or infinite samples for {chunk.track} "
            f"at sample {chunk.start}"
        )
    return {
        "chunk": index,
        "track": chunk.track,
        "start": chunk.start,
        "method": method,
        "estimate": found.estimate,
        "refined": found.refined,
        "values": values(chunk, found.stems, with_museval),
    }


def silence_rule(reference_rule: bool) -> tuple[str, Silent]:
    """The description of a rule and the rule."""
    if reference_rule:
        return (
            "norm / length < 1.5e-5 (of the reference report)",
            audio_io.reference_is_silent,
        )
    return "RMS < -60 dBFS", audio_io.is_silent


def with_alpha(chunks: Sequence[Chunk], alpha: Mapping[str, float]) -> None:
    """Raise ValueError unless every mixture is the sum of alpha_i x_i."""
    for chunk in chunks:
        total = torch.stack([alpha[name] * x for name, x in chunk.sources.items()]).sum(0)
        error = (total - chunk.mixture).abs().max().item()
        if error > 1e-3:
            raise ValueError(
                f"the mixture of {chunk.track} is not the sum of its sources (off by {error:.3g} "
                "of full scale): prepare the data with scripts.prepare_slakh"
            )


__all__ = [
    "Chunk",
    "Estimate",
    "Found",
    "check_museval",
    "choose_chunks",
    "codec_round_trip",
    "entry",
    "museval_sdr",
    "silence_rule",
    "system_estimates",
    "values",
    "with_alpha",
]
