"""The codec: encoding, decoding and the table of code sums, against plain paths.

    python -m benchmarks.bench_codec --candidates 16 64 --threads 4 --json
    python -m benchmarks.bench_codec --methods encode --positions 3445   # ten seconds of audio

encode      one chunk to the codes of the top level, the only one that separation reads. Plain:
            every level's encoder and bottleneck, as upstream does. `all_levels_ms` is the
            package's own time for all levels: the gain without skipping levels.
decode      N candidates' codes to audio. Plain: the modules one after the other, one by one.
code_sums   the table of the codes of all pairs' means. Plain: brute force in float64 for a few
            rows (`plain_rows`), whose time is scaled to all.

max_difference: for encode, the larger of the difference of the latents and the difference of the
squared distances where the codes differ; for decode, the difference of the samples, relative to the
largest sample; for code_sums, the number of entries that differ (in the rows that both computed).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import Flags, compare, finish, prepare, row
from benchmarks._plain import plain_latents, plain_waveforms
from jukebox_core.presets import PRESETS
from jukebox_core.vqvae.model import VQVAE
from lqvae.sums import code_sums
from scripts._cli import program

METHODS = ("encode", "decode", "code_sums")
_TIE = 1e-9  # of the rule for code sums, relative to the codebook's scale


@dataclass(frozen=True)
class Args(Flags):
    """Flags of benchmarks.bench_codec."""

    rows: int = 4
    """Rows of the table of code sums that the brute force makes."""


@program
def main(args: Args) -> None:
    """Measure and print."""
    methods = prepare(args, METHODS)
    codec = random_codec(args)
    rows = []
    with torch.inference_mode():
        if "encode" in methods:
            rows.append(bench_encode(args, codec))
        if "decode" in methods:
            rows += [bench_decode(args, codec, count) for count in args.candidates]
        if "code_sums" in methods:
            rows.append(bench_code_sums(args, codec.codebook))
    finish(args, rows)


def random_codec(args: Args) -> VQVAE:
    """A codec with random weights, its codes at the place and scale of its latents."""
    codec = VQVAE(PRESETS[args.preset].vqvae).eval()
    with torch.inference_mode():
        for level in codec.levels:
            latents = codec.latents(noise(codec, 1, 64), level).transpose(1, 2).flatten(0, 1)
            book = codec.bottleneck(level).codebook
            book.normal_().mul_(latents.std(0) + 1e-3).add_(latents.mean(0))
    return codec


def noise(codec: VQVAE, batch: int, positions: int) -> Tensor:
    """Waveforms [B, T] of the top level's hop times `positions` samples."""
    return 0.1 * torch.randn(batch, positions * codec.config.hop)


def bench_encode(args: Args, codec: VQVAE) -> dict[str, Any]:
    """The top level alone against all levels."""
    audio = noise(codec, 1, args.positions)
    timed = compare(
        lambda: codec.encode(audio), lambda: plain_encode(codec, audio), repeats=args.repeats
    )
    everything = compare(
        lambda: [codec.encode(audio, level) for level in codec.levels],
        lambda: codec.encode(audio),
        repeats=args.repeats,
    )
    latents, distances, codes = timed.plain_result[codec.top]
    ours, plain = (distances.gather(1, c.view(-1, 1)) for c in (timed.result, codes))
    pairs = ((codec.latents(audio), latents), (ours, plain))
    difference = max((a - b).abs().max().item() for a, b in pairs)
    levels_ms = 1000 * everything.seconds
    return row(
        args,
        "encode",
        1,
        args.positions,
        timed,
        difference,
        codes_differ=int((timed.result.view(-1) != codes).sum()),
        all_levels_ms=levels_ms,
        note=f"all {len(codec.levels)} levels by the package's own path {levels_ms:.1f} ms, "
        f"{everything.seconds / timed.seconds:.1f} times the top level's",
    )


def plain_encode(codec: VQVAE, audio: Tensor) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Latents [B, D, T], squared distances [B * T, K] and nearest codes [B * T] of every level."""
    levels = {}
    for level in codec.levels:
        x = plain_latents(codec, audio, level)
        flat, book = x.transpose(1, 2).flatten(0, 1), codec.bottleneck(level).codebook
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ book.T + book.square().sum(1)
        levels[level] = x, distances, distances.argmin(1)
    return levels


def bench_decode(args: Args, codec: VQVAE, count: int) -> dict[str, Any]:
    """All candidates in one call against one by one."""
    codes = torch.randint(codec.config.l_bins, (count, args.positions))
    timed = compare(
        lambda: codec.decode(codes), lambda: plain_decode(codec, codes), repeats=args.repeats
    )
    largest = timed.plain_result.abs().max()
    difference = ((timed.result - timed.plain_result).abs().max() / largest).item()
    return row(args, "decode", count, args.positions, timed, difference)


def plain_decode(codec: VQVAE, codes: Tensor) -> Tensor:
    """Waveforms [N, T * hop] of codes [N, T] of the top level, one by one."""
    latents = (codec.codebook[candidate].T.unsqueeze(0) for candidate in codes)  # [1, D, T]
    return torch.cat([plain_waveforms(codec, x, codec.top) for x in latents])


def bench_code_sums(args: Args, book: Tensor) -> dict[str, Any]:
    """The whole table, against some rows of it by brute force."""
    size = len(book)
    picked = torch.linspace(0, size - 1, min(args.rows, size)).long()
    timed = compare(
        lambda: code_sums(book),
        lambda: plain_code_sums(book, picked),
        repeats=args.repeats,
        plain_repeats=1,
        plain_part=len(picked) / size,
        warm_up=False,
    )
    differ = (timed.result[picked] != timed.plain_result).sum().item()
    return row(args, "code_sums", 1, size, timed, differ, plain_rows=len(picked))


def plain_code_sums(book: Tensor, rows: Tensor) -> Tensor:
    """Rows [R, K] of the table: every sum's distance to every code, the lowest index of the least.

    Where another code is not nearer, the mean of two codes is as far from both: what is nearer by
    less than rounding is a tie, here as in `lqvae.sums`.
    """
    book = book.double()
    tie = _TIE * book.square().sum(1).max()
    table = []
    for i in rows:
        sums = 0.5 * book[i] + 0.5 * book  # [K, D]
        for part in sums.split(64):
            distances = (part.unsqueeze(1) - book).square().sum(-1)  # [64, K]
            near = distances <= distances.amin(1, keepdim=True) + tie
            table.append(near.int().argmax(1))
    return torch.cat(table).view(len(rows), -1)


if __name__ == "__main__":
    sys.exit(main())
