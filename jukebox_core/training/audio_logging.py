"""Audio logging: clips and spectrograms of a codec's reconstructions, in the run folder.

RUN/media/step_00000500/NAME.LABEL.wav
RUN/media/step_00000500/NAME.png        spectrograms of all labels, one below the other

Only the files of the last few steps stay.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jukebox_core import audio as sound
from jukebox_core.audio import pictures
from jukebox_core.checks import one_line
from jukebox_core.files import atomic_path, remove_owned
from jukebox_core.training.tracking import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jukebox_core.vqvae.model import VQVAE


MEDIA = "media"


class Clips(NamedTuple):
    """Waveforms {label: [T]} to compare: the arguments of `Tracker.log_audio`."""

    name: str
    audio: Mapping[str, Tensor]
    rate: int


@torch.no_grad()
def reconstructions(codec: VQVAE, batch: Tensor, names: Sequence[str]) -> list[Clips]:
    """The first item of a batch and its reconstruction.

    Args:
        codec: in eval mode.
        batch: [R * B, T], ordered by row (see `batches.collate`).
        names: names of the R rows.
    """
    originals = batch[:: len(batch) // len(names)]
    decoded = codec.decode(codec.encode(originals))
    return [
        Clips(name, {"original": before, "reconstruction": after}, codec.config.sample_rate)
        for name, before, after in zip(names, originals, decoded, strict=True)
    ]


def spectrograms(audio: Mapping[str, Tensor], rate: int) -> Figure:
    """Draw the spectrograms of waveforms {label: [T]}, one below the other, with axes."""
    from matplotlib.figure import Figure

    highest = rate / 2
    figure = Figure(figsize=(8.0, 2.2 * len(audio)), layout="constrained")
    panels = figure.subplots(len(audio), sharex=True, squeeze=False)[:, 0]
    for panel, (label, waveform) in zip(panels, audio.items(), strict=True):
        samples = waveform.detach().float().cpu().nan_to_num()
        image = panel.imshow(
            pictures.levels([samples[None]], len(samples), rate, highest).numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, len(samples) / rate, math.log10(pictures.LOWEST), math.log10(highest)),
            vmin=pictures.LOUDNESS[0],
            vmax=pictures.LOUDNESS[1],
            cmap="magma",
        )
        ticks = [hertz for hertz in (100, 1000, 10_000) if hertz < highest]
        panel.set_yticks([math.log10(hertz) for hertz in ticks], [f"{hertz:,}" for hertz in ticks])
        panel.set(title=label, ylabel="Hz")
    panels[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=list(panels), label="dB below a sine of amplitude 1")
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """Render a figure, [H, W, 4] bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


class AudioTracker(Tracker):
    """Writes clips and spectrograms of the last `keep` logged steps into the run folder.

    If the disk is full or the audio is not finite, it warns and training continues.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        """Write nothing yet.

        Raises:
            ValueError: `keep` is negative.
        """
        if keep < 0:
            raise ValueError(f"keep is {keep}, expected 0 or more")
        self._folder = Path(folder) / MEDIA
        self._keep = keep

    def start(self, step: int, steps: int) -> None:
        """Delete files of later steps, which training will write again."""
        for folder in self._steps():
            if folder.name > _name(step):
                _remove(folder)

    def log_audio(self, step: int, name: str, audio: Mapping[str, Tensor], rate: int) -> None:
        """Write the waveforms (16 bits) and their spectrograms; delete the oldest step."""
        if not self._keep:
            return
        folder = self._folder / _name(step)
        try:
            for label, waveform in audio.items():
                path = folder / f"{name}.{label}.wav"
                sound.save(path, waveform.float(), rate, subtype="PCM_16")
            with atomic_path(folder / f"{name}.png") as temporary:
                spectrograms(audio, rate).savefig(temporary, dpi=100)
            for old in self._steps()[: -self._keep]:
                _remove(old)
        except (OSError, ValueError) as error:
            reason = one_line(error)
            print(f"warning: no audio of step {step} ({reason})", file=sys.stderr, flush=True)

    def _steps(self) -> list[Path]:
        """The folders of all steps, in order."""
        return sorted(
            p for p in self._folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", p.name)
        )


def _name(step: int) -> str:
    return f"step_{step:08}"


def _remove(folder: Path) -> None:
    """Remove a step's folder if it holds only pictures and the waveforms that they show."""
    pictures = {path.name for path in folder.glob("*.png")}
    sounds = {path.name for path in folder.glob("*.wav")}
    shown = {name for name in sounds if f"{name.rsplit('.', 2)[0]}.png" in pictures}
    remove_owned(folder, dict.fromkeys(pictures | shown))
