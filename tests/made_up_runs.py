"""A run's folder with made-up scores and audio, for the tests of pages."""

import numpy as np
import torch

from jukebox_core import audio as audio_io
from jukebox_core.evaluation.results import make_rows
from jukebox_core.files import write_json
from scripts._results import SYSTEMS

SOURCES = ("bass", "drums")
SHOWN = [("oracle", False), ("oracle", True), ("selected", False), ("selected", True)]
RATE = 22_050


def values(level):
    return {
        source: {
            "sdr_bsseval": level + 0.11,
            "sdr": level + 0.3 * i,
            "si_sdr": level - 1,
            "si_sdri": level - 2,
        }
        for i, source in enumerate(SOURCES)
    }


def write_runs(folder, examples=1):
    """Fill a run's folder with made-up scores: the hybrid is 2 dB better than the LQ-VAE.

    Every signal of every example is other noise.
    """
    chunks = []
    for chunk in range(6):
        ease = 0.7 * chunk
        for method, level in {"lqvae": 3.0, "lass": 4.98, "hybrid": 5.0 + 0.05 * chunk}.items():
            shift = (-1) ** chunk * 0.5 if method == "lass" else 0.0
            for estimate, refined in SHOWN:
                found = values(level + ease + refined + shift)
                chunks.append(item(chunk, method, estimate, refined, found))
        chunks.append(item(chunk, "mixture", "selected", False, values(ease)))
        chunks.append(item(chunk, "irm", "oracle", False, values(12 + ease)))
    chunks[0]["values"]["bass"]["sdr"] = None
    generator = torch.Generator().manual_seed(0)
    shown = [example(folder, chunk, generator) for chunk in range(examples)]
    results = {
        "meta": {
            "data": {"chunks": 6, "songs": 6, "folder": "made-up & <odd>", "sample_rate": RATE},
            "command": "python -m scripts.evaluate --models 'a <b>'",
            "examples": shown,
            "definitions": {"sdr": "SDR over the whole chunk"},
            "notes": ["a note"],
        },
        "rows": make_rows(chunks, SOURCES),
        "chunks": chunks,
        "seconds_per_chunk": {"lqvae": 3.21, "lass": 1.5, "hybrid": 1.25},
    }
    write_json(folder / "results.json", results)
    for run in ("vqvae", "prior_bass"):
        path = folder / "models" / "reconstruction" / run / "metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text(
            "step,epoch,split,metric,value\n1,0.1,train,loss,3\n2,0.2,train,loss,2\n"
            "2,0.2,validation,loss,2.5\n"
        )
    return folder


def example(folder, chunk, generator):
    """An entry of the results' examples, with its files."""
    files = {"mixture": f"results_audio/{chunk:02d}_mixture.flac"}
    for group in ("truth", "lqvae", "lass", "hybrid", "hybrid_oracle", "supervised"):
        files[group] = {s: f"results_audio/{chunk:02d}_{group}_{s}.flac" for s in SOURCES}
    groups = [group for group in files.values() if isinstance(group, dict)]
    for name in [files["mixture"], *(path for group in groups for path in group.values())]:
        audio_io.save(folder / name, 0.1 * torch.randn(20_000, generator=generator), RATE)
    unsure = {m: f"results_audio/{chunk:02d}_{m}_uncertainty.npz" for m in SYSTEMS}
    for method, shown in (("lqvae", 0.0), ("hybrid", 0.5)):  # LASS's file is missing
        stored = np.full((65, 626), shown, dtype=np.float16)
        np.savez(folder / unsure[method], uncertainty=stored, hertz=RATE / 128, seconds=32 / RATE)
    place = {"chunk": chunk, "track": f"Track{chunk + 1:05d}", "start": 22_050}
    return {**place, "files": files, "uncertainty": unsure}


def item(chunk, method, estimate, refined, found):
    place = {"chunk": chunk, "track": f"Track{chunk + 1:05d}", "start": 0}
    return {**place, "method": method, "estimate": estimate, "refined": refined, "values": found}
