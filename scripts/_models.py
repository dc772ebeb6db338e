"""The models folder: which trained parts a method is made of, and how they become a Separator.

    MODELS/{reconstruction,linearisation}/vqvae/            the codec's run
    MODELS/{reconstruction,linearisation}/prior_SOURCE/     one prior's run per source
    MODELS/{reconstruction,linearisation}/counts.safetensors
    MODELS/linearisation/sums.safetensors
    MODELS/tuned/METHOD.json                               settings that scripts.tune chose
    MODELS/mask_estimator/                                 a supervised baseline's run

LASS uses the family trained for reconstruction; LQ-VAE and the hybrid share the codec and priors of
the linearisation family and differ by the likelihood alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

import hybrid
import lass
import lqvae
from jukebox_core.checkpoints import (
    WEIGHTS,
    fingerprint,
    load_codec,
    load_codec_config,
    load_meta,
    load_prior,
    load_prior_config,
    run_part,
)
from jukebox_core.checks import require, require_choice
from jukebox_core.presets import PRESETS
from jukebox_core.separation.acceleration import Precision, accelerate
from jukebox_core.separation.calibration import load_calibration
from jukebox_core.separation.choices import make_average, make_pick
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.protocols import Likelihood, Sampler
from jukebox_core.separation.samplers import make_sampler
from jukebox_core.separation.separator import Separator, Sizes
from jukebox_core.vqvae.model import VQVAE
from lass.counts import CountsFile
from lass.likelihood import BACKOFF
from lass.smoothing import BACKOFFS
from lqvae.likelihood import SIGMA
from lqvae.sums import load_sums
from scripts._settings import BackoffName, Settings, resolve

Method = Literal["lqvae", "lass", "hybrid"]
METHODS: tuple[Method, ...] = ("lqvae", "lass", "hybrid")
SHIFTS = 4
"""Positions within a code that windows are encoded at by default."""
FAMILY = {"lqvae": "linearisation", "hybrid": "linearisation", "lass": "reconstruction"}


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: the device asked for is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason})") from error
    return chosen


def prior_folders(family: Path, sources: tuple[str, ...] | None = None) -> dict[str, Path]:
    """{source: run folder} of the two priors of a family, in alphabetical or the given order.

    Raises:
        FileNotFoundError: there are not exactly two, or a named one is missing.
    """
    found = {p.name.removeprefix("prior_"): p for p in sorted(family.glob("prior_*")) if p.is_dir()}
    wanted = sources or tuple(found)
    missing = [name for name in wanted if name not in found]
    if missing or len(wanted) != 2:
        have = ", ".join(found) or "none"
        need = " and ".join(f"prior_{name}" for name in missing) or "two prior_SOURCE folders"
        raise FileNotFoundError(
            f"{family} lacks {need} (priors found: {have}); train them with scripts.train_prior"
        )
    return {name: found[name] for name in wanted}


def sampler_of(chosen: Mapping[str, Any]) -> Sampler:
    """The sampler of resolved settings.

    Raises:
        ValueError: an option that the sampler does not have, or that has no meaning.
    """
    options = {name: chosen[name] for name in ("temperature", "top_k", "top_p")}
    given = {name: value for name, value in options.items() if value is not None}
    return make_sampler(chosen["sampler"], **given)


def refinement_of(chosen: Mapping[str, Any], family: Path) -> RatioMask:
    """The mask of resolved settings, calibrated for the family's codec where that was measured.

    Raises:
        FileNotFoundError: a calibration is wanted that is not there.
        ValueError: the calibration is damaged or another codec's, or a parameter makes no mask.
    """
    path = family / "calibration.safetensors"
    wanted = path.is_file() if chosen["calibration"] is None else chosen["calibration"]
    n_fft = chosen["mask_n_fft"]
    return RatioMask(
        chosen["mask_power"],
        n_fft,
        n_fft // 4,
        1.0 if chosen["compression"] is None else chosen["compression"],
        load_calibration(path, fingerprint(family / "vqvae")) if wanted else None,
    )


def check_parts(method: Method, models: Path, settings: Settings | None = None) -> tuple[str, ...]:
    """The sources that a method separates; weights are not read.

    Raises:
        FileNotFoundError: the folder or a part of it is missing.
        ValueError: a part is of another kind than its name says, or the method has no such
            back-off.
    """
    chosen = resolve(settings or Settings(), models, method, strict=False)
    family = _family(method, models)
    priors = prior_folders(family)
    for folder in (family / "vqvae", *priors.values()):
        load_meta(folder)
        run_part(folder, WEIGHTS)
    if method != "lqvae":
        CountsFile(family / "counts.safetensors")
    if method == "lqvae" or chosen["kernel"]:
        load_sums(family / "sums.safetensors")
    return tuple(priors)


def _family(method: Method, models: Path) -> Path:
    family = Path(models) / FAMILY[method]
    if not family.is_dir():
        inside = Path(models) / "models"
        hint = f"; did you mean {inside}?" if (inside / FAMILY[method]).is_dir() else ""
        raise FileNotFoundError(
            f"{family} is missing; {method} needs the parts trained there{hint}"
        )
    return family


def build_likelihood(
    method: Method,
    family: Path,
    codec: VQVAE,
    codec_fingerprint: str,
    sources: tuple[str, ...],
    *,
    sigma: float | None = None,
    weight: float | None = None,
    backoff: float | None = None,
    back_off_to: BackoffName | None = None,
    symmetric: bool | None = None,
    kernel: bool | None = None,
) -> Likelihood:
    """The likelihood of a method, from the tables in its family's folder.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a table is damaged or another codec's.
    """
    if method == "lqvae":
        return lqvae.build_likelihood(
            family / "sums.safetensors",
            codec.codebook,
            sigma=SIGMA if sigma is None else sigma,
            codec_fingerprint=codec_fingerprint,
        )
    backoff = BACKOFF if backoff is None else backoff
    back_off_to = back_off_to or "marginals"
    counted: dict[str, Any] = {
        "weight": weight,
        "backoff": backoff,
        "symmetric": symmetric,
        "device": codec.codebook.device,
        "codec_fingerprint": codec_fingerprint,
        "sources": sources,
    }
    counts = family / "counts.safetensors"
    if method == "lass":
        return lass.build_likelihood(counts, towards=BACKOFFS[back_off_to], **counted)
    kernel = kernel is not False
    counted |= {"back_off_to": back_off_to, "pooled": kernel}
    if kernel or (backoff and back_off_to == "kernel"):
        counted |= {
            "sums": family / "sums.safetensors",
            "codebook": codec.codebook,
            "sigma": SIGMA if sigma is None else sigma,
        }
    return hybrid.build_likelihood(counts, **counted)


def build_separator(
    method: Method,
    models: Path,
    *,
    candidates: int | None = None,
    device: str = "cpu",
    precision: Precision = "auto",
    window: int | None = None,
    context: int | Literal["max"] = 0,
    tuned: bool = True,
    **settings: Any,
) -> Separator:
    """Load the parts of a method and compose them.

    Args:
        method: `lqvae`, `lass` or `hybrid`.
        models: the models folder.
        candidates: joint candidates per window; default that of the preset trained with.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: of the priors, see `accelerate`.
        window: codes per window; default that of the preset, within the priors' context.
        context: codes chosen before a window that the priors see, see `Separator`.
        tuned: look at what was tuned for the models; otherwise what is left out is built in.
        settings: fields of `scripts._settings.Settings`; what is left out (or None) is what was
            tuned for the models (MODELS/tuned/METHOD.json), or else built in.

    Raises:
        FileNotFoundError: the folder or a part of it is missing.
        ValueError: parts are damaged or do not belong together, or options do not.
    """
    require_choice("method", method, METHODS)
    chosen = resolve(Settings(**settings), models, method, tuned=tuned, context=context)
    sampler = sampler_of(chosen)
    family = _family(method, models)
    folders = prior_folders(family)
    sizes = sizes_of(method, models, candidates, window, context, chosen["shifts"])
    on = pick_device(device)
    codec = load_codec(family / "vqvae", on)
    identity = fingerprint(family / "vqvae")
    refinement = refinement_of(chosen, family)
    priors = {
        name: load_prior(folder, on, codec_fingerprint=identity) for name, folder in folders.items()
    }
    likelihood = build_likelihood(
        method,
        family,
        codec,
        identity,
        tuple(priors),
        **{
            name: chosen[name]
            for name in ("sigma", "weight", "backoff", "back_off_to", "symmetric", "kernel")
        },
    )
    return Separator(
        codec,
        accelerate(priors, precision),
        likelihood,
        sampler=sampler,
        overlap=min(64, sizes.window // 4),
        pick=make_pick(chosen["pick"]),
        average=make_average(chosen["average"]),
        refinement=refinement,
        **sizes._asdict(),
    )


def sizes_of(
    method: Method,
    models: Path,
    candidates: int | None = None,
    window: int | None = None,
    context: int | Literal["max"] = 0,
    shifts: int | None = None,
) -> Sizes:
    """Check the numbers of a separation without reading weights; None as in `build_separator`.

    Raises:
        FileNotFoundError: the folder or a part of it is missing.
        ValueError: they do not fit the models, each other or the free memory.
    """
    family = _family(method, models)
    priors = prior_folders(family)
    codec = load_codec_config(family / "vqvae")
    n_ctx = min(load_prior_config(folder).n_ctx for folder in priors.values())
    meta = load_meta(family / "vqvae")
    preset = PRESETS.get(str(meta.get("preset")), PRESETS["paper"])
    if candidates is None:
        candidates = preset.candidates
    if window is None:
        window = min(preset.window, n_ctx)
    if shifts is None:
        require("candidates", candidates, whole=True, at_least=1)
        shifts = 1 if context != 0 else math.gcd(candidates, SHIFTS)
    sizes = Sizes(candidates, window, context, shifts)
    sizes.check(n_ctx, codec.hop)
    return sizes
