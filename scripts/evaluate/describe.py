"""The record of an evaluation: definitions of the scores, data, models, machine, command."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jukebox_core.checkpoints import load_meta
from jukebox_core.datasets.manifest import MANIFEST_NAME, Manifest
from jukebox_core.evaluation.chunks import Chunk
from jukebox_core.files import sha256
from jukebox_core.separation.method import Method
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import Settings, load_tuned

DEFINITIONS = {
    "scale": "references are the sources x_i; the mixture is y = sum alpha_i x_i; an estimate of "
    "x_i is a stem divided by alpha_i",
    "mixture": "y itself as the estimate of every source (estimate selected, not refined)",
    "hpss": "librosa's harmonic-percussive separation: percussive part to drums, harmonic part to "
    "the other source (estimate selected, not refined)",
    "nmf": "non-negative matrix factorisation of the mixture's magnitudes, whose components are "
    "shared out by the median filters of hpss (estimate selected, not refined)",
    "supervised": "masks of a recurrent network trained on the same songs, Open-Unmix's layers "
    "(estimate selected, not refined)",
    "codec": "the truth through the codec and back (estimate oracle: it uses the truth)",
    "codec_lass": "the same for LASS's codec, where it is another one",
    "irm": "a ratio mask of power 2, STFT 2048 by 512, made from the truth (estimate oracle)",
    "oracle": "best of the candidates per source by whole-chunk SDR against the truth; raw, and "
    "refined: the best of the masks made from each candidate pair alone",
    "selected": "without the truth; raw: the pick (by default the pair whose sum is nearest to the "
    "mixture in magnitude spectrum); refined: the mask from the average of the candidates' powers "
    "(by default the mean of all), or the mask network's",
    "single": "the first candidate; raw, and refined: the mask made from it alone",
    "sdr_bsseval": "median SDR of complete windows of 44,100 samples (museval, BSSEval v4)",
    "sdr_museval": "the same by museval itself (with --museval)",
    "sdr": "SDR over the whole chunk",
    "si_sdr": "scale-invariant SDR",
    "si_sdri": "si_sdr minus that of the mixture",
    "interval": "95%, percentile bootstrap over chunks, 10,000 resamples",
}


def definitions(by_song: bool) -> dict[str, str]:
    """The definitions of scores and intervals; by_song: the bootstrap resamples songs."""
    if not by_song:
        return DEFINITIONS
    return DEFINITIONS | {
        "interval": "95%, percentile bootstrap over songs, each with all of its chunks, "
        "10,000 resamples"
    }


def describe_model(
    method: Method, models: Path, separator: Separator, full: Settings
) -> dict[str, Any]:
    """The parts of a method with resolved settings, and the settings of its separator."""
    family = method.folder(models)
    priors = method.priors(family, full).values()
    settings = separator.settings
    likelihood = settings.pop("likelihood")
    return {
        "family": method.family,
        "preset": load_meta(family / "vqvae").get("preset"),
        "steps": {
            run.name: load_meta(run).get("step")
            for run in (family / "vqvae", *filter(None, priors))
        },
        "n_codes": separator.codec.config.l_bins,
        **likelihood,
        **settings,
        "tuned": load_tuned(models, method.name).explicit(),
    }


def describe_data(
    folder: Path, split: str, manifest: Manifest, chunks: Sequence[Chunk], left_out: list[str]
) -> dict[str, Any]:
    """The chunks and the data set they are from.

    Args:
        folder: of the data set.
        split: of the songs.
        manifest: of the data set.
        chunks: that are scored.
        left_out: names of songs without a usable chunk.
    """
    content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    songs = len({chunk.track for chunk in chunks})
    settings = content.get("settings", {})
    return {
        "folder": folder.resolve().name,
        "generated": settings.get("generated"),  # None: the manifest does not tell
        "split": split,
        "chunks": len(chunks),
        "songs": songs,
        "songs_in_split": len(manifest.split(split)),
        "several_chunks_per_song": len(chunks) > songs,
        "songs_left_out": left_out,
        "chunk_samples": len(chunks[0].mixture),
        "sample_rate": manifest.sample_rate,
        "settings": settings,
        "manifest_sha256": sha256(folder / MANIFEST_NAME),
    }


def machine(device: torch.device, processes: int) -> dict[str, Any]:
    """The machine that the times were measured on, and the processes that shared the chunks."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    load = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "load_average": load,  # at the end: other work makes the times longer
        "torch": torch.__version__,
        "device": name,
    }
