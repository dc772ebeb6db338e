"""Ablate the methods on test songs: the contribution of each part, with intervals.

    python -m scripts.ablate --models runs/demo/models --data runs/demo/data --output runs/ablation

Every row scores one estimator on the same chunks, sampled with several seeds. A chunk's score is
the mean over seeds; intervals are over chunks (paired for differences), or over songs if there are
several with several chunks. It writes OUTPUT/ablation.json, ablation.md (the tables of
docs/results.md) and plots. A stopped run resumes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from jukebox_core.checkpoints import load_codec, load_config, load_meta, provenance
from jukebox_core.checks import require_fields
from jukebox_core.config import VQVAEConfig
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.baselines import Baseline, first, untrained_baselines
from jukebox_core.evaluation.chunks import Chunk
from jukebox_core.evaluation.estimates import Estimator, codec_round_trip
from jukebox_core.evaluation.figures import is_figure_of, is_png_of_matplotlib
from jukebox_core.evaluation.mask_estimator import MaskEstimator, load_mask_estimator
from jukebox_core.evaluation.scores import sdr
from jukebox_core.files import check_replaceable, json_with, marked, write_json, write_text
from jukebox_core.locks import sole_writer
from jukebox_core.presets import PRESETS
from jukebox_core.separation.settings import Settings
from scripts._cli import program
from scripts._methods import METHODS, MethodName
from scripts._sweep import Draw, Sweep, run_draws
from scripts.ablate.plots import plot_names, write_plots
from scripts.ablate.rows import estimators, rows, seeded
from scripts.ablate.tables import Table, compare, markdown

_ROWS, _TABLES = "ablation.json", "ablation.md"


@dataclass(frozen=True)
class Args:
    """Flags of scripts.ablate."""

    models: Path
    """Folder of trained models, with their tuned settings."""
    data: Path
    """Prepared data set."""
    output: Path
    """Folder to write to."""
    methods: tuple[MethodName, ...] | None = None
    """Only the rows of these methods; default: all that the models have."""
    split: str = "test"
    """Split of the songs."""
    chunks: int = 60
    """Maximum number of chunks, one per song if there are enough songs."""
    chunks_per_song: int | None = None
    """Score up to so many chunks of every song, spread evenly over it; `chunks` then has no
    effect."""
    candidates: int = 16
    """Joint candidates per chunk."""
    seeds: int = 3
    """Number of random seeds that every row is sampled with."""
    parts: bool = True
    """Also ablate the parts of the hybrid, of models of two sources."""
    seed: int = 0
    """Random seed for the choice of chunks."""
    chunk_codes: int = 1024
    """Codes per chunk, at most the models' window."""
    jobs: int = 4
    """Processes, of one thread each."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_fields(self, "chunks", "candidates", "chunk_codes", "jobs", whole=True, at_least=1)
        require_fields(self, "chunks_per_song", whole=True, at_least=1, optional=True)
        require_fields(self, "seeds", whole=True, at_least=1, at_most=1000)


@program
def main(args: Args) -> None:
    """Run every row, write the tables, print them."""
    sources = load_manifest(args.data).sources
    check_outputs(args.output, sources)
    with sole_writer(args.output, inside=True):
        print(ablate(args, sources))


def ablate(args: Args, sources: Sequence[str]) -> str:
    """Score every row, write the tables and plots; return the tables."""
    sweep = Sweep(
        args.models,
        args.data,
        args.split,
        args.chunks,
        args.seed,
        args.chunk_codes,
        chunks_per_song=args.chunks_per_song,
    )
    for method in args.methods or ():
        METHODS[method].check(args.models)
    every = list(rows(args.models, args.candidates, args.parts, args.methods, len(sources)))
    by_name, needed = estimators(args.models), defaultdict[Draw, dict[str, Estimator]](dict)
    for row in every:
        for draw in seeded(row.draw, args.seeds):
            needed[draw][row.estimator] = by_name[row.estimator]
    scores = run_draws(sweep, needed, args.output / "parts", args.jobs)
    chunks = load_chunks(sweep)
    songs = {track.name: track.song for track in load_manifest(args.data).tracks}
    table = Table(every, scores, args.seeds, sources, [songs[chunk.track] for chunk in chunks])
    for name, values in baseline_scores(sweep, chunks):
        table.add(f"baseline: {name}", values)
    lines = [table.line(name) for name in table.rows]
    comparisons = list(compare(lines))
    settings = {
        name: vars(METHODS[name].resolve(Settings(), args.models))
        for name in dict.fromkeys(row.draw.method for row in every)
    }
    write_json(
        args.output / _ROWS,
        {
            "rows": lines,
            "comparisons": comparisons,
            "settings": settings,
            "study": sweep.identity() | {"candidates": args.candidates, "seeds": args.seeds},
            "files": [_TABLES, *plot_names(sources)],
            **provenance(),
        },
    )
    text = markdown(lines, comparisons)
    write_text(args.output / _TABLES, text)
    write_plots(args.output, lines, table.sources)
    return text


def check_outputs(folder: Path, sources: Sequence[str]) -> None:
    """Refuse a folder in which the tables or plots would replace a file of another program.

    Raises:
        FileExistsError: there is such a file, or something that is not a regular file.
        OSError: the folder cannot be written to.
    """
    check_replaceable(folder / _ROWS, is_ablation, "an ablation")
    check_replaceable(folder / _TABLES, marked("| row |", "| seeds ± | s / chunk |"), "a table")
    own = is_figure_of("ablate")
    earlier = _is_of_an_earlier_version(folder / _ROWS)
    for name in plot_names(sources):
        check_replaceable(
            folder / name,
            lambda path: own(path) or (earlier and is_png_of_matplotlib(path)),
            "a plot of an ablation",
        )


is_ablation = json_with("rows.0.row", "comparisons")
"""For `files.check_replaceable`: whether a file is an ablation.json."""


def _is_of_an_earlier_version(path: Path) -> bool:
    """Whether ablation.json lists no files: the plots beside it then have no mark either."""
    return path.is_file() and is_ablation(path) and not json_with("files")(path)


def _supervised(estimator: MaskEstimator, chunk: Chunk) -> dict[str, Tensor]:
    return first(estimator.separate(chunk.mixture[None]))


def load_chunks(sweep: Sweep) -> list[Chunk]:
    """The chunks, of the models' window at most."""
    codec = METHODS["hybrid"].folder(sweep.models) / "vqvae"
    window = PRESETS[str(load_meta(codec)["preset"])].window
    hop = load_config(codec, "vqvae", VQVAEConfig)[0].hop
    return sweep.load(hop * min(sweep.chunk_codes, window))


def baseline_scores(
    sweep: Sweep, chunks: Sequence[Chunk]
) -> Iterator[tuple[str, dict[str, list[float | None]]]]:
    """Score the baselines: (name, {source: SDR of every chunk}).

    Mask estimators in MODELS/mask_estimator_SIZE are scored beside MODELS/mask_estimator.
    """
    folders = {name: sweep.models / METHODS[name].family / "vqvae" for name in ("hybrid", "lass")}
    codecs = {name: load_codec(folder) for name, folder in folders.items() if folder.is_dir()}
    manifest = load_manifest(sweep.data)
    untrained = untrained_baselines(manifest.alpha)
    names = {"mixture": "mixture", "hpss": "HPSS", "nmf": "NMF"}
    baselines: dict[str, Baseline] = {
        shown: untrained[name] for name, shown in names.items() if name in untrained
    }
    for trained in sorted(sweep.models.glob("mask_estimator*/")):
        size = trained.name.removeprefix("mask_estimator").replace("_", " ").strip()
        name = "supervised mask (LSTM" + (f", {size})" if size else ")")
        baselines[name] = partial(_supervised, load_mask_estimator(trained))
    shown = {"hybrid": "codec's round trip of the truth", "lass": "LASS's codec, the same"}
    for name, codec in codecs.items():
        baselines[shown[name]] = partial(codec_round_trip, codec)
    baselines["ideal ratio mask"] = untrained["irm"]
    for name, separate in baselines.items():
        values: dict[str, list[float | None]] = {source: [] for source in manifest.sources}
        for chunk in chunks:
            for source, stem in separate(chunk).items():
                values[source].append(sdr(chunk, source, stem))
        yield name, values
