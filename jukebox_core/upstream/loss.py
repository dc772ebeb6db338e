"""Convert the codec's loss from and to upstream's hyper-parameters (`hps`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.upstream.layout import python_value

_WEIGHTS = ("commit", "spectral", "multispectral", "lmix_l1", "lmix_l2", "lmix_linf", "linf_k")
_SINGLE = ("n_fft", "hop_length", "window_size")
_MULTI = tuple(f"multispec_loss_{name}" for name in _SINGLE)
_RELATIVE = "use_nonrelative_specloss"
_ONE_TERM = {"l1": (1.0, 0.0, 0.0), "l2": (0.0, 1.0, 0.0), "linf": (0.0, 0.0, 1.0)}
"""The values of `loss_fn` with one term, as weights of `lmix`."""


def loss_config(hps: Mapping[str, Any]) -> LossConfig | None:
    """The loss that hyper-parameters describe; None if they do not mention a loss.

    Missing values have upstream's defaults, which are the defaults of `LossConfig`.

    Raises:
        ValueError: an unknown `loss_fn`, or lists of STFT sizes of different lengths.
    """
    stored = {name: python_value(value) for name, value in hps.items() if value is not None}
    if not stored.keys() & {"loss_fn", _RELATIVE, *_WEIGHTS, *_SINGLE, *_MULTI}:
        return None
    default = LossConfig()
    values = {name: stored[name] for name in _WEIGHTS if name in stored}
    kind = stored.get("loss_fn", "lmix")
    if kind in _ONE_TERM:
        values |= zip(("lmix_l1", "lmix_l2", "lmix_linf"), _ONE_TERM[kind], strict=True)
    elif kind != "lmix":
        raise ValueError(f"loss_fn is {kind!r}, expected one of {', '.join(_ONE_TERM)}, lmix")
    single = zip(_SINGLE, default.spectral_stft, strict=True)
    defaults = zip(*default.multispectral_stfts, strict=True)
    sizes = [stored.get(name, size) for name, size in zip(_MULTI, defaults, strict=True)]
    if len({len(size) for size in sizes}) > 1:
        lengths = ", ".join(f"{n} has {len(s)}" for n, s in zip(_MULTI, sizes, strict=True))
        raise ValueError(f"the multi-scale STFT lists differ in length, expected equal: {lengths}")
    return LossConfig(
        **values,
        spectral_stft=tuple(stored.get(name, size) for name, size in single),
        multispectral_stfts=tuple(zip(*sizes, strict=True)),
        relative_spectral=not stored.get(_RELATIVE, True),
    )


def bandwidths_of(hps: Mapping[str, Any]) -> Bandwidths | None:
    """The bandwidths in the hyper-parameters; None if the training did not measure them.

    Raises:
        ValueError: one is missing or not positive.
    """
    stored = hps.get("bandwidth")
    if not stored:
        return None
    if not isinstance(stored, Mapping) or not {"l1", "l2", "spec"} <= stored.keys():
        raise ValueError(f"bandwidth is {stored!r}, expected values of l1, l2 and spec")
    return Bandwidths(l1=stored["l1"], l2=stored["l2"], spec=stored["spec"])


def loss_hps(config: LossConfig, bandwidths: Bandwidths | None = None) -> dict[str, Any]:
    """A loss under upstream's names; the linearisation weight has none and is left out."""
    hps: dict[str, Any] = {name: getattr(config, name) for name in _WEIGHTS}
    hps |= zip(_SINGLE, config.spectral_stft, strict=True)
    hps |= zip(_MULTI, zip(*config.multispectral_stfts, strict=True), strict=True)
    hps |= {"loss_fn": "lmix", _RELATIVE: not config.relative_spectral}
    if bandwidths is not None:
        hps["bandwidth"] = {"l1": bandwidths.l1, "l2": bandwidths.l2, "spec": bandwidths.spec}
    return hps
