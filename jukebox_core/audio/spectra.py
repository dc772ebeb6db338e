"""Spectrograms: the STFT of the masks, the magnitudes of the losses."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def stft(audio: Tensor, n_fft: int, hop: int) -> Tensor:
    """Hann STFT of [..., T], complex [..., F, frames]; zeros outside, so any length works."""
    flat = audio.reshape(-1, audio.shape[-1])
    window = torch.hann_window(n_fft, device=audio.device)
    spectrum = torch.stft(flat, n_fft, hop, window=window, pad_mode="constant", return_complex=True)
    return spectrum.reshape(*audio.shape[:-1], *spectrum.shape[-2:])


def istft(spectrum: Tensor, n_fft: int, hop: int, length: int) -> Tensor:
    """The inverse of `stft`, [..., length]."""
    window = torch.hann_window(n_fft, device=spectrum.device)
    leading = spectrum.shape[:-2]
    flat = spectrum.reshape(-1, *spectrum.shape[-2:])
    audio = torch.istft(flat, n_fft, hop, window=window, length=length)
    return audio.reshape(*leading, length)


def squared_magnitude(spectrum: Tensor) -> Tensor:
    """|X|^2, real, of complex spectra of any shape; on a CPU faster than `abs().square()`."""
    return torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)


class _Magnitude(torch.autograd.Function):
    """|X| as the root of `squared_magnitude`, whose own gradient at zero is infinite; here zero."""

    @staticmethod
    def forward(ctx: Any, spectrum: Tensor) -> Tensor:
        ctx.save_for_backward(spectrum)
        return squared_magnitude(spectrum).sqrt_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (spectrum,) = ctx.saved_tensors
        squared = squared_magnitude(spectrum)
        scale = torch.where(squared > 0, gradient * squared.rsqrt(), 0.0)
        return torch.view_as_complex(torch.view_as_real(spectrum) * scale.unsqueeze(-1))


@lru_cache(maxsize=32)
def _hann(length: int, device: torch.device) -> Tensor:
    return torch.hann_window(length, device=device)


def magnitudes(audio: Tensor, stft: tuple[int, int, int]) -> Tensor:
    """Magnitude spectrogram [B, F, frames] of [B, T]; stft is (n_fft, hop, window).

    Periodic Hann window, centred frames, reflection padding, not normalised.
    """
    n_fft, hop, window = stft
    spectrum = torch.stft(
        audio.float(),
        n_fft,
        hop,
        window,
        window=_hann(window, audio.device),
        return_complex=True,
    )
    return _Magnitude.apply(spectrum)
