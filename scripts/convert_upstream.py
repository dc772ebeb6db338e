r"""Convert upstream checkpoints and tables to the native format, and back.

    python -m scripts.convert_upstream --kind codec --input vqvae.pth.tar --output CODEC
    python -m scripts.convert_upstream --kind prior --input bass.pth.tar --output PRIOR \
        --vqvae CODEC --sources bass
    python -m scripts.convert_upstream --kind counts --input sum_dist_9000.npz \
        --output counts.safetensors --vqvae CODEC --sources bass drums
    python -m scripts.convert_upstream --kind sums --input codebook_sum_precalc.pt \
        --output sums.safetensors --vqvae CODEC

With --back, INPUT is native and OUTPUT has upstream's format. --vqvae records the codec of a prior
or table: scripts.separate needs it, in a models folder as the README describes.

Priors may embed codes by a table or by codebook vectors. The latter format needs all
levels' codebooks; --back takes the lower ones from --vqvae, else from the converted run. Pickles
cannot run code.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.upstream.checkpoints import (
    export_codec,
    export_prior,
    import_codec,
    import_prior,
    read_checkpoint,
)
from jukebox_core.upstream.tables import check_new, read_sums, write_sums
from jukebox_core.vqvae.model import VQVAE
from lass.counts import load_counts, save_counts, sources_of
from lass.upstream import read_upstream_counts, write_upstream_counts
from lqvae.sums import ALPHA, load_sums, save_sums
from scripts._cli import program


@dataclass(frozen=True)
class Args:
    """Flags of scripts.convert_upstream."""

    kind: Literal["codec", "prior", "counts", "sums"]
    """Kind of file."""
    input: Path
    """Upstream file; with --back, native run folder or file."""
    output: Path
    """Run folder (codec, prior) or file (counts, sums) to write; with --back, upstream file."""
    back: bool = False
    """Convert from the native to upstream's format."""
    vqvae: Path | None = None
    """Native run folder of the codec of a prior or table."""
    sources: tuple[str, ...] = ()
    """The prior's source, or the two sources of the counts, in their order."""
    alpha: tuple[float, float] = ALPHA
    """Weights of the sources in the mixture (kind sums)."""
    hps: Path | None = None
    """JSON file with hyper-parameters that the checkpoint lacks."""


@program
def main(args: Args) -> None:
    """Convert one file; write nothing if it is invalid."""
    check_new(args.output)
    convert = {"codec": _codec, "prior": _prior, "counts": _counts, "sums": _sums}
    print(f"{args.output}: {convert[args.kind](args)}")


def _codec(args: Args) -> str:
    if args.back:
        export_codec(args.input, args.output)
        return "upstream codec checkpoint"
    config = import_codec(args.input, args.output, _hps(args.hps))
    return f"codec of {config.levels} levels, {config.l_bins} codes, hop {config.hop}"


def _prior(args: Args) -> str:
    if args.back:
        export_prior(args.input, args.output, args.vqvae)
        return "upstream prior checkpoint"
    hps = _hps(args.hps)
    if len(args.sources) > 1:
        raise ValueError(f"a prior has one source, --sources names {len(args.sources)}")
    extra = {"source": args.sources[0]} if args.sources else {}
    if args.vqvae is not None:
        _check_codebook(args, load_codec(args.vqvae), hps)
        extra["vqvae_fingerprint"] = fingerprint(args.vqvae)
    config = import_prior(args.input, args.output, hps, extra)
    note = "" if args.vqvae else "; without --vqvae scripts.separate cannot use it"
    return f"prior of {config.depth} layers, context {config.n_ctx}, {config.embedding}{note}"


def _counts(args: Args) -> str:
    if args.back:
        counts, metadata = load_counts(args.input)
        if len(names := sources_of(args.input)) > 2:
            raise ValueError(
                f"{args.input} counts {len(names)} sources ({', '.join(names)}), upstream's format "
                "has two"
            )
        write_upstream_counts(args.output, counts, metadata)
    else:
        counts, metadata = read_upstream_counts(args.input)
        if len(args.sources) not in (0, 2):
            raise ValueError(f"counts have two sources, --sources names {len(args.sources)}")
        metadata |= _identity(args, counts.n_codes)
        if args.sources:
            metadata["sources"] = " ".join(args.sources)
        save_counts(args.output, counts, metadata)
    return f"{len(counts.counts)} triples of {counts.n_codes} codes"


def _sums(args: Args) -> str:
    if args.back:
        table = load_sums(args.input)
        write_sums(args.output, table)
    else:
        table = read_sums(args.input)
        identity = _identity(args, len(table)).get("codec", "")
        save_sums(args.output, table, identity, args.alpha)
    return f"{len(table)} x {len(table)} sums"


def _identity(args: Args, n_codes: int) -> dict[str, str]:
    """Metadata that names the codec of a table, given --vqvae."""
    if args.vqvae is None:
        return {}
    codec = load_codec(args.vqvae)
    if codec.config.l_bins != n_codes:
        raise ValueError(
            f"{args.input} is over {n_codes} codes, the codec {args.vqvae} has "
            f"{codec.config.l_bins}: it belongs to another codec"
        )
    return {"codec": fingerprint(args.vqvae)}


def _check_codebook(args: Args, codec: VQVAE, hps: dict[str, Any] | None) -> None:
    """Refuse a prior with other codebook vectors than the codec's."""
    tensors = read_checkpoint(args.input, hps).tensors
    name = f"bottleneck.level_blocks.{codec.top}.k"
    if name in tensors and not torch.equal(tensors[name].float(), codec.codebook):
        raise ValueError(f"{args.input} was trained on another codec than {args.vqvae}")


def _hps(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        hps = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(hps, dict):
        raise ValueError(f"{path} holds {type(hps).__name__}, expected an object of names")
    return hps


if __name__ == "__main__":
    sys.exit(main())
