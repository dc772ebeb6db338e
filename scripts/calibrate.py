r"""Measure how a codec changes the spectrum of every source, to correct the masks of a separation.

    python -m scripts.calibrate --vqvae runs/models/linearisation/vqvae --data prepared \
        --output runs/models/linearisation/calibration.safetensors

It encodes and decodes crops of single sources of the training songs (see
`jukebox_core.separation.calibration`). Separation uses the file if it is beside the codec's folder,
unless `--calibration False`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from jukebox_core.checkpoints import fingerprint, load_codec
from jukebox_core.checks import require_fields
from jukebox_core.datasets.crops import CropDataset
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.files import check_replaceable
from jukebox_core.machine import pick_device, set_threads
from jukebox_core.separation.calibration import CalibrationMeter, save_calibration
from jukebox_core.tables import table_of
from scripts._cli import program

BATCH = 4


@dataclass(frozen=True)
class Args:
    """Flags of scripts.calibrate."""

    vqvae: Path
    """Run folder of the codec."""
    data: Path
    """Prepared data set."""
    output: Path
    """File to write: calibration.safetensors, beside the codec's folder."""
    crops: int = 64
    """Number of crops."""
    codes: int = 1024
    """Codes per crop."""
    n_fft: int = 4096
    """STFT size; masks of another size look it up by frequency."""
    seed: int = 0
    """Random seed of the crops."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads; without it PyTorch's default."""

    def __post_init__(self) -> None:
        require_fields(self, "crops", whole=True, at_least=1, at_most=1_000_000)
        require_fields(self, "codes", whole=True, at_least=1)
        CalibrationMeter(self.n_fft)


@program
def main(args: Args) -> None:
    """Measure and write."""
    set_threads(args.threads)
    check_replaceable(args.output, table_of("calibration"), "a calibration")
    codec = load_codec(args.vqvae, pick_device(args.device))
    manifest = load_manifest(args.data, codec.config.sample_rate)
    crop = args.codes * codec.config.hop
    items = CropDataset(manifest.split("train"), "sources", crop, manifest.alpha, args.seed)
    meter = CalibrationMeter(args.n_fft)
    for first in range(0, args.crops, BATCH):
        places = torch.stack([items[i] for i in range(first, min(first + BATCH, args.crops))])
        for row, name in enumerate(manifest.sources):
            true = places[:, row]
            with torch.no_grad():
                decoded = codec.decode(codec.encode(true.to(codec.codebook.device))).cpu()
            meter.add(name, true, decoded)
    calibration = meter.result()
    save_calibration(args.output, calibration, fingerprint(args.vqvae), manifest.sample_rate)
    print(f"{args.output}: {', '.join(manifest.sources)}, {args.crops} crops of {crop} samples")


if __name__ == "__main__":
    sys.exit(main())
