"""What a benchmark measured, with which models, trained on what."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jukebox_core.checkpoints import load_meta, provenance
from jukebox_core.datasets.manifest import MANIFEST_NAME, Manifest, load_manifest
from jukebox_core.evaluation.results import difference
from scripts._methods import METHODS, MethodName
from scripts._results import REFERENCE_NOTE, REFERENCE_TABLE, default_line

METRICS = ("sdr_bsseval", "sdr")
"""The metric of the reference report, and the metric of our tables."""
RIVALS = ("mixture", "supervised")
"""Baselines that every method is compared with in pairs."""


class Measured(NamedTuple):
    """A measurement: the name of its file, and the content."""

    name: str
    results: dict[str, Any]


def describe(
    slakh: Path,
    models: Path,
    methods: Sequence[MethodName],
    manifest: Manifest,
    measured: Mapping[str, Measured],
) -> dict[str, Any]:
    """The content of benchmark.json, without the command.

    Args:
        slakh: the folder that was scored.
        models: folder of the models.
        methods: that were scored.
        manifest: of the prepared songs.
        measured: the measurements, `all` among them.
    """
    every = measured["all"].results
    return {
        "data": _data(slakh, manifest, measured),
        "models": {
            "folder": str(models.resolve()),
            "families": {
                family: _trained_on(models / family / "vqvae", manifest)
                for family in dict.fromkeys(METHODS[name].family for name in methods)
            },
        },
        "machine": every["meta"]["machine"],
        "reference": {"note": REFERENCE_NOTE, "scores": REFERENCE_TABLE},
        "measurements": {
            name: {
                "results": file,
                "chunks": results["meta"]["data"]["chunks"],
                "songs": results["meta"]["data"]["songs"],
                "songs_left_out": results["meta"]["data"]["songs_left_out"],
                "candidates": results["meta"]["candidates"],
                "rows": [row for row in results["rows"] if row["metric"] in METRICS],
            }
            for name, (file, results) in measured.items()
        },
        "differences": _differences(every, methods),
        **provenance(),
    }


def _data(slakh: Path, manifest: Manifest, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """The folder, whether its songs were generated, and {track: song} of the scored tracks."""
    songs = {t: s for m in measured.values() for t, s in m.results["meta"]["song_of"].items()}
    content = _read(manifest.root / MANIFEST_NAME)
    return {
        "folder": str(slakh.resolve()),
        "generated": content["settings"].get("generated"),
        "song_of": dict(sorted(songs.items())),
        "songs": len(set(songs.values())),
        "training_songs": len(manifest.split("train")),
        "skipped": content["skipped"],
        "sample_rate": manifest.sample_rate,
    }


def _trained_on(codec: Path, manifest: Manifest) -> dict[str, Any]:
    """The training of a family's codec, as far as its run folder tells; None: it does not tell.

    scored_songs: how many test songs of the manifest are among the training songs.
    """
    meta = load_meta(codec)
    words = shlex.split(meta.get("command") or "")
    data = words[words.index("--data") + 1] if "--data" in words[:-1] else None
    generated, shared = None, None
    with suppress(OSError, ValueError, KeyError, TypeError):
        folder = _found(str(data), codec)
        generated = _read(folder / MANIFEST_NAME)["settings"].get("generated")
        training = {t.checksums["mixture"] for t in load_manifest(folder).split("train")}
        shared = sum(track.checksums["mixture"] in training for track in manifest.split("test"))
    return {
        "preset": meta.get("preset"),
        "steps": meta.get("step"),
        "data": data,
        "songs": (meta.get("data") or {}).get("train_tracks"),
        "generated": generated,
        "scored_songs": shared,
        "git_commit": meta.get("git_commit"),
    }


def _found(data: str, codec: Path) -> Path:
    """The data set of a command that ran in the current folder, or in one above the codec."""
    folders = (folder / data for folder in (Path(), *codec.resolve().parents))
    return next((f for f in folders if (f / MANIFEST_NAME).is_file()), Path(data))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _differences(results: Mapping[str, Any], methods: Sequence[MethodName]) -> list[dict[str, Any]]:
    """What a user gets from each method minus each rival: mean SDR, intervals by song."""
    rows = []
    for method in methods:
        for rival in RIVALS:
            gap = difference(results, default_line(method), default_line(rival))
            if gap.n:
                rows.append({"method": method, "minus": rival, **gap._asdict()})
    return rows
