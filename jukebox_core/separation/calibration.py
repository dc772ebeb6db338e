"""Per-frequency calibration: expected true power of a source given its decoded power.

A codec of few codes per second loses the upper partials and the hiss of one source and adds noise
of its own where the other is silent; a ratio mask made of decoded spectra gives bins away for that
alone. Per source and frequency, the expected true power is taken as an affine function of the
decoded one, fitted by least squares on round trips of training songs: E[P | P'] = gain P' + floor,
both at least zero. It needs sources, no mixtures, and no truth of what is separated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from jukebox_core.audio.spectra import squared_magnitude, stft
from jukebox_core.checkpoints import digest_of
from jukebox_core.checks import plain
from jukebox_core.separation.mask import check_n_fft
from jukebox_core.tables import read_table, write_table

KIND = "calibration"


class Calibration:
    """Expected power of a source's bin, given its decoded power.

    gain, floor: {source: [F]}, for a Hann STFT of `n_fft` = 2 (F - 1) samples; floors are powers of
    that STFT. Spectra of another size read both by frequency, floors in proportion to the size.

    Raises:
        ValueError: gains and floors differ in sources or sizes, or are negative or not finite.
    """

    def __init__(self, gain: Mapping[str, Tensor], floor: Mapping[str, Tensor]):
        if not gain or gain.keys() != floor.keys():
            raise ValueError(f"gains of {', '.join(gain)}, floors of {', '.join(floor)}")
        sizes = {tuple(x.shape) for x in (*gain.values(), *floor.values())}
        if len(sizes) != 1 or len(size := sizes.pop()) != 1 or size[0] < 2:
            raise ValueError("gains and floors are not vectors of one size")
        self.gain = {name: x.float() for name, x in gain.items()}
        self.floor = {name: x.float() for name, x in floor.items()}
        for kind, values in (("gain", self.gain), ("floor", self.floor)):
            for name, x in values.items():
                if not (x.isfinite().all() and x.min() >= 0):
                    raise ValueError(
                        f"the {kind} of {name} has negative, NaN or infinite values: gains and "
                        "floors of powers must not be negative"
                    )
        self.n_fft = 2 * (size[0] - 1)

    @property
    def sources(self) -> tuple[str, ...]:
        """The calibrated sources."""
        return tuple(self.gain)

    def __call__(self, source: str, powers: Tensor, alpha: float) -> Tensor:
        """Expected powers [..., F, frames] of alpha x, given those of alpha x' decoded.

        Raises:
            ValueError: nothing is known of the source.
        """
        if source not in self.gain:
            raise ValueError(f"the calibration is of {', '.join(self.gain)}, not of {source}")
        bins = powers.shape[-2]
        gain = _resize(self.gain[source], bins)
        floor = _resize(self.floor[source], bins) * ((bins - 1) / (self.n_fft // 2))
        return powers * gain.unsqueeze(-1) + alpha**2 * floor.unsqueeze(-1)

    def __repr__(self) -> str:
        """By content: what was made with it can be told from what was not."""
        kinds = {"gain": self.gain, "floor": self.floor}
        tensors = {f"{kind} {name}": x for kind in kinds for name, x in kinds[kind].items()}
        return f"Calibration({digest_of(tensors)[:16]})"


class CalibrationMeter:
    """Gathers the sums that a calibration is fitted with."""

    def __init__(self, n_fft: int = 4096):
        """Measure with a Hann STFT of n_fft samples; the hop is a quarter of it.

        Raises:
            ValueError: n_fft is not a positive multiple of 8, or is too large.
        """
        check_n_fft("n_fft", n_fft)
        if n_fft % 8:
            raise ValueError(f"n_fft is {n_fft}, expected a positive multiple of 8")
        self.n_fft = n_fft
        self._sums: dict[str, Tensor] = {}  # of 1, X, Y, XY, YY, [5, F]

    def add(self, source: str, true: Tensor, decoded: Tensor) -> None:
        """One or more stretches of a source and what the codec makes of them, [..., T] each."""
        spectra = (stft(audio, self.n_fft, self.n_fft // 4) for audio in (true, decoded))
        x, y = (squared_magnitude(z).double().movedim(-2, 0).flatten(1) for z in spectra)
        found = torch.stack([torch.ones_like(x), x, y, x * y, y * y]).sum(-1)
        self._sums[source] = self._sums.get(source, torch.zeros_like(found)) + found

    def result(self) -> Calibration:
        """The fit; a bin whose line would start below zero has one through the origin."""
        fits = {name: _line(*sums) for name, sums in self._sums.items()}
        return Calibration(
            {name: gain for name, (gain, _) in fits.items()},
            {name: floor for name, (_, floor) in fits.items()},
        )


def _line(n: Tensor, x: Tensor, y: Tensor, xy: Tensor, yy: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares of X by gain Y + floor, both at least zero, from sums [F]."""
    variance = yy / n - (y / n).square()
    covariance = xy / n - x * y / n**2
    known = variance > 1e-12 * yy / n  # a bin whose decoded power never changes tells nothing
    gain = torch.where(known, covariance / variance.clamp_min(1e-300), 0.0).clamp_min(0)
    floor = (x - gain * y) / n
    through = torch.where(yy > 0, xy / yy.clamp_min(1e-300), 0.0)
    return torch.where(floor < 0, through, gain), floor.clamp_min(0)


def _resize(values: Tensor, bins: int) -> Tensor:
    """Values [F] of frequencies 0 to half the rate, read at `bins` of them."""
    if len(values) == bins:
        return values
    return torch.nn.functional.interpolate(
        values[None, None], bins, mode="linear", align_corners=True
    )[0, 0]


def save_calibration(
    path: Path, calibration: Calibration, codec_fingerprint: str, sample_rate: int
) -> None:
    """Write a calibration atomically, marked with the codec it belongs to."""
    tensors = {}
    for name in calibration.sources:
        tensors[f"{name}.gain"] = calibration.gain[name]
        tensors[f"{name}.floor"] = calibration.floor[name]
    metadata = {"kind": KIND, "codec": codec_fingerprint, "sample_rate": str(sample_rate)}
    write_table(path, tensors, metadata)


def load_calibration(
    path: Path, codec_fingerprint: str | None = None, sources: Sequence[str] = ()
) -> Calibration:
    """Read a calibration.

    Args:
        path: written by `save_calibration`.
        codec_fingerprint: of the codec to use it with; None accepts any.
        sources: names that it must have.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind, belongs to another codec, or lacks a source.
    """
    tensors, _ = read_table(path, KIND, codec_fingerprint)
    parts: dict[str, dict[str, Tensor]] = {"gain": {}, "floor": {}}
    for key, values in tensors.items():
        name, _, part = key.rpartition(".")
        if part not in parts:
            raise ValueError(f"{path} has the unknown tensor {plain(key)}")
        parts[part][name] = values
    missing = [name for name in sources if name not in parts["gain"]]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: calibrate again with these sources")
    try:
        return Calibration(parts["gain"], parts["floor"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}; calibrate again") from error
