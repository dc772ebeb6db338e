"""The models folder: the trained parts that methods are made of.

MODELS/{reconstruction,linearisation}/vqvae/            the codec's run
MODELS/{reconstruction,linearisation}/prior_SOURCE/     one prior's run per source
MODELS/{reconstruction,linearisation}/counts.safetensors       of more than two sources also
                                                       counts_2, ...: see `partial_sums`
MODELS/{reconstruction,linearisation}/calibration.safetensors
MODELS/{reconstruction,linearisation}/neural_likelihood/      the run of the neural likelihood
MODELS/linearisation/sums.safetensors                  and sums_2, ... in the same way
MODELS/tuned/METHOD.json                               tuned settings
MODELS/mask_estimator/                                 the run of the supervised baseline
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from jukebox_core.checkpoints import fingerprint, load_config, load_meta
from jukebox_core.checks import require
from jukebox_core.config import PriorConfig, VQVAEConfig
from jukebox_core.presets import PRESETS
from jukebox_core.prior.unigram import ANY_LENGTH
from jukebox_core.separation.calibration import Calibration, load_calibration
from jukebox_core.separation.separator import Sizes


def family_folder(models: str | Path, family: str) -> Path:
    """The folder of a family of models.

    Raises:
        FileNotFoundError: it is missing.
    """
    folder = Path(models) / family
    if not folder.is_dir():
        inside = Path(models) / "models"
        hint = f"; did you mean {inside}?" if (inside / family).is_dir() else ""
        if not hint and (
            others := [meta.parts[-3] for meta in Path(models).glob("*/vqvae/meta.json")]
        ):
            hint = f"; these models are for methods of the family {', '.join(sorted(others))}"
        raise FileNotFoundError(f"{folder} is missing: the method needs the parts in it{hint}")
    return folder


def prior_folders(family: Path, sources: tuple[str, ...] | None = None) -> dict[str, Path]:
    """{source: run folder} of the priors of a family, in alphabetical or the given order.

    Raises:
        FileNotFoundError: there are fewer than two, or a named one is missing.
    """
    runs = {p.name.removeprefix("prior_"): p for p in sorted(family.glob("prior_*")) if p.is_dir()}
    names = sources or tuple(runs)
    missing = [name for name in names if name not in runs]
    if missing or len(names) < 2:
        present = ", ".join(runs) or "none"
        need = (
            " and ".join(f"prior_{name}" for name in missing)
            or "a prior_SOURCE folder per source, two or more"
        )
        raise FileNotFoundError(f"{family} lacks {need} (priors in it: {present}): train them")
    return {name: runs[name] for name in names}


def calibration_of(family: Path, use: bool | None = None) -> Calibration | None:
    """The calibration of a family's codec; None if it is not used. `use` None: if it is there.

    Raises:
        FileNotFoundError: it is to be used, but missing.
        ValueError: it is damaged, or belongs to another codec.
    """
    path = family / "calibration.safetensors"
    if use is False or (use is None and not path.is_file()):
        return None
    return load_calibration(path, fingerprint(family / "vqvae"))


def sizes_of(
    family: Path,
    priors: Mapping[str, Path | None],
    candidates: int | None = None,
    window: int | None = None,
    shifts: int | None = None,
    most_shifts: int = 4,
) -> Sizes:
    """Complete and check the numbers of a separation without reading weights.

    Args:
        family: folder of the codec.
        priors: {source: run folder of its prior}; None: one without memory, of any context.
        candidates: joint candidates per window; default: the number of the models' preset.
        window: codes per window; default: the preset's, within the priors' context.
        shifts: default: the greatest common divisor of the candidates and `most_shifts`.
        most_shifts: see `shifts`.

    Raises:
        FileNotFoundError: the folder or a part of it is missing.
        ValueError: they do not fit the models, each other or the free memory.
    """
    codec = load_config(family / "vqvae", "vqvae", VQVAEConfig)[0]
    contexts = [load_config(run, "prior", PriorConfig)[0].n_ctx for run in priors.values() if run]
    n_ctx = min(contexts, default=ANY_LENGTH)
    preset = PRESETS.get(str(load_meta(family / "vqvae").get("preset")), PRESETS["paper"])
    if candidates is None:
        candidates = preset.candidates
    if window is None:
        window = min(preset.window, n_ctx)
    if shifts is None:
        require("candidates", candidates, whole=True, at_least=1)
        shifts = math.gcd(candidates, most_shifts)
    sizes = Sizes(candidates, window, shifts)
    sizes.check(n_ctx, codec.hop, len(priors))
    return sizes
