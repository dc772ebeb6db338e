"""A separation method: which trained parts it needs, and how they become a `Separator`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from jukebox_core.checkpoints import (
    WEIGHTS,
    check_source,
    fingerprint,
    load_codec,
    load_meta,
    load_prior,
    run_part,
)
from jukebox_core.checks import require_choice
from jukebox_core.files import sha256
from jukebox_core.machine import pick_device
from jukebox_core.prior.joint import JointPriors, Precision, accelerate
from jukebox_core.separation.likelihood import Likelihood, SourceLikelihood
from jukebox_core.separation.loading import (
    calibration_of,
    family_folder,
    prior_folders,
    sizes_of,
)
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.samplers import OPTIONS
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import DEFAULTS, QUALITIES, QualityName, Settings, load_tuned
from jukebox_core.vqvae.model import VQVAE

_LIKELIHOOD = (
    "sigma",
    "exponent",
    "smoothing",
    "smoothing_base",
    "symmetric",
    "gaussian",
    "neural_exponent",
    "prior",
    "mask_network",
)

_MASKS = ("weights", "mask_power", "mask_n_fft", "compression", "mask_network", "calibration")


class Parts(NamedTuple):
    """Parts that likelihoods are made of: the family's folder, the codec, the sources in order."""

    family: Path
    codec: VQVAE
    codec_fingerprint: str
    sources: tuple[str, ...]


class Likelihoods(NamedTuple):
    """What a posterior is made of: priors, pair likelihood, source likelihood (None: without)."""

    priors: JointPriors
    pair: Likelihood | None
    source: SourceLikelihood | None = None


class Method(ABC):
    """A separation method. A new one is a subclass: a family of models and a likelihood.

    name: of the method. family: folder of its models. settings: the settings of its likelihood;
    all methods use all other settings. pretrained: folder of models that ship with the package.
    """

    name: str
    family: str
    settings: tuple[str, ...] = ()
    pretrained: Path | None = None

    @abstractmethod
    def likelihood(self, parts: Parts, settings: Settings) -> Likelihood | None:
        """The pair likelihood with resolved settings.

        Raises:
            FileNotFoundError: a table is missing.
            ValueError: a table is damaged or belongs to another codec.
        """

    def likelihoods(
        self, parts: Parts, priors: JointPriors | None, settings: Settings
    ) -> Likelihoods:
        """All factors of the posterior, with the trained priors, if any; raises as `likelihood`."""
        assert priors is not None
        return Likelihoods(priors, self.likelihood(parts, settings))

    def defaults(self, settings: Settings) -> Settings:
        """Defaults of the likelihood's settings, which may depend on the other settings."""
        return Settings()

    def tables(self, settings: Settings, sources: int = 2) -> tuple[str, ...]:
        """Files of the family's folder that the likelihood of so many sources reads."""
        return ()

    def mask(self, models: Path, settings: Settings, device: torch.device) -> RatioMask:
        """The mask with resolved settings; raises as `likelihood`."""
        family = self.folder(models)
        return settings.make_mask(calibration_of(family, settings.calibration))

    def priors(self, family: Path, settings: Settings) -> dict[str, Path | None]:
        """{source: run folder of its prior}, by name; None: one without a run.

        Raises:
            FileNotFoundError: there are fewer than two.
            ValueError: what names the sources is damaged.
        """
        return {**prior_folders(family)}

    def runs(self) -> tuple[str, ...]:
        """Run folders of the family that the likelihood reads."""
        return ()

    def runs_beside(self, models: Path, settings: Settings) -> dict[str, Path]:
        """{name: run folder outside the family's that the resolved settings use}."""
        return {}

    def check_tables(self, family: Path, settings: Settings) -> None:
        """Check the tables without reading them whole; raises as `likelihood`."""
        for table in self.tables(settings, len(self.priors(family, settings))):
            if not (family / table).is_file():
                raise FileNotFoundError(f"{family / table} is missing")

    def fingerprints(self, family: Path, settings: Settings) -> dict[str, str]:
        """{part: digest} of what the method reads in its family's folder."""
        priors = self.priors(family, settings)
        runs = [family / "vqvae", *filter(None, priors.values())]
        runs += [family / run for run in self.runs()]
        digests = {run.name: fingerprint(run) for run in runs}
        tables = self.tables(settings, len(priors))
        return digests | {table: sha256(family / table) for table in tables}

    def unused(self, settings: Settings) -> dict[str, str]:
        """{setting of the likelihood: why it has no effect beside the others}."""
        return {}

    def resolve(
        self,
        settings: Settings,
        models: str | Path | None = None,
        *,
        refine: bool | None = None,
        strict: bool = True,
    ) -> Settings:
        """Complete settings: an explicit value, else the tuned one, else the default.

        Settings that have no effect, and those that depend on the models, stay without a value.

        Args:
            settings: explicit values.
            models: folder with tuned settings; None: use none.
            refine: whether the stems are masks (True), raw decodes (False), or both (None).
            strict: refuse explicit values that have no effect; otherwise leave them out.

        Raises:
            ValueError: an explicit value has no effect, or the file of tuned settings is damaged.
        """
        full, unused = self._complete(settings, models, refine)
        for name, value in settings.explicit().items():
            if strict and name in unused:
                raise ValueError(_no_effect(name, value, [unused[name]]))
        return full.without(*unused)

    def _complete(
        self, settings: Settings, models: str | Path | None, refine: bool | None
    ) -> tuple[Settings, dict[str, str]]:
        """Settings with all values, and {setting: why it has no effect}."""
        chosen = settings.over(
            Settings() if models is None else load_tuned(Path(models), self.name)
        )
        full = chosen.over(self.defaults(chosen).over(DEFAULTS))
        unused = {
            name: f"the method is {self.name}" for name in _LIKELIHOOD if name not in self.settings
        }
        unused |= self.unused(full)
        assert full.sampler is not None
        for name in ("top_k", "top_p"):
            if name not in OPTIONS[full.sampler]:
                unused[name] = f"the sampler is {full.sampler}"
        if full.weights != "posterior-mean":
            unused["compression"] = f"weights is {full.weights}, which takes one candidate"
        if refine is False:
            unused |= dict.fromkeys(_MASKS, "refine is False")
        if refine is True:
            unused["selection"] = "refine is True"
        return full, unused

    def folder(self, models: str | Path) -> Path:
        """The folder of the method's models; FileNotFoundError if it is missing."""
        return family_folder(models, self.family)

    def check(self, models: str | Path, settings: Settings | None = None) -> tuple[str, ...]:
        """Check the parts without reading weights; return the sources.

        Raises:
            FileNotFoundError: the folder or a part of it is missing.
            ValueError: a part is of another kind than its name implies.
        """
        family = self.folder(models)
        full = self.resolve(settings or Settings(), models, strict=False)
        priors = self.priors(family, full)
        trained = {name: folder for name, folder in priors.items() if folder is not None}
        runs = [family / name for name in ("vqvae", *self.runs())]
        for folder in (*runs, *trained.values(), *self.runs_beside(Path(models), full).values()):
            load_meta(folder)
            run_part(folder, WEIGHTS)
        for name, folder in trained.items():
            check_source(folder, load_meta(folder), name)
        self.check_tables(family, full)
        return tuple(priors)

    def load_separator(
        self,
        models: str | Path | None = None,
        settings: Settings | None = None,
        device: str = "auto",
        *,
        candidates: int | None = None,
        window: int | None = None,
        precision: Precision = "auto",
        tuned: bool = True,
        quality: QualityName = "default",
    ) -> Separator:
        """Load the method's models.

        Args:
            models: folder of trained models; default: those that ship with the package.
            settings: values that differ from the tuned ones or the defaults.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
            candidates: joint candidates per window; default: the number of the models' preset.
            window: codes per window; default: the preset's, within the priors' context.
            precision: of the priors, see `accelerate`.
            tuned: use the settings tuned for these models, if there are any.
            quality: candidates and shifts where neither they nor tuned ones are given.

        Raises:
            FileNotFoundError: the folder or a part of it is missing.
            ValueError: parts are damaged or do not belong together, a value is out of range, or no
                models are given and none of the method ship.
        """
        models = self.pretrained if models is None else models
        if models is None:
            raise ValueError(f"no models of {self.name} ship with the package: give their folder")
        family = self.folder(models)
        full = self.resolve(settings or Settings(), models if tuned else None)
        folders = self.priors(family, full)
        require_choice("quality", quality, QUALITIES)
        effort = QUALITIES[quality]
        candidates = effort.candidates if candidates is None else candidates
        sizes = sizes_of(family, folders, candidates, window, full.shifts, effort.shifts)
        place = pick_device(device)
        mask = self.mask(Path(models), full, place)
        codec = load_codec(family / "vqvae", place)
        identity = fingerprint(family / "vqvae")
        priors = {
            name: load_prior(folder, place, codec_fingerprint=identity, source=name)
            for name, folder in folders.items()
            if folder is not None
        }
        parts = Parts(family, codec, identity, tuple(folders))
        joint = accelerate(priors, precision) if priors else None
        factors = self.likelihoods(parts, joint, full)
        return Separator(
            codec,
            factors.priors,
            factors.pair,
            source_likelihood=factors.source,
            sampler=full.make_sampler(),
            overlap=min(64, sizes.window // 4),
            selection=full.make_selection(),
            weights=full.make_weights(),
            mask=mask,
            **sizes._asdict(),
        )


def resolve_each(
    settings: Settings,
    methods: Mapping[Method, str | Path | None],
    *,
    refine: bool | None = None,
) -> dict[str, Settings]:
    """Split settings given for several methods: {name: the explicit values that it uses}.

    Args:
        settings: explicit values.
        methods: {method: folder with its tuned settings}; None: use none.
        refine: as for `Method.resolve`.

    Raises:
        ValueError: a value has no effect on any of the methods, or a file of tuned settings is
            damaged.
    """
    unused = {m.name: m._complete(settings, models, refine)[1] for m, models in methods.items()}
    for name, value in settings.explicit().items():
        if unused and all(name in why for why in unused.values()):
            raise ValueError(_no_effect(name, value, [why[name] for why in unused.values()]))
    return {method: settings.without(*why) for method, why in unused.items()}


def _no_effect(name: str, value: object, reasons: Iterable[str]) -> str:
    why = " and ".join(dict.fromkeys(reasons))
    return f"{name} is {value}, but {why}: it would have no effect"
