"""A separation method with the neural likelihood in addition to its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from jukebox_core.checkpoints import WEIGHTS, alpha_of, fingerprint, load_meta
from jukebox_core.neural.likelihood import EXPONENT, ScaledNeuralLikelihood
from jukebox_core.neural.mask import KIND, load_mask_network, network_mask
from jukebox_core.neural.model import load_neural_likelihood
from jukebox_core.prior.joint import JointPriors
from jukebox_core.prior.unigram import UnigramPriors
from jukebox_core.separation.likelihood import Likelihood
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.method import Likelihoods, Method, Parts
from jukebox_core.separation.settings import Settings

RUN = "neural_likelihood"
"""Run folder of the network in the family's folder."""


def mask_folder(models: Path, method: str) -> Path:
    """The run folder of a method's mask network."""
    return Path(models) / "mask_network" / method


def has_mask_network(models: Path, method: str) -> bool:
    """Whether there is a trained mask network for a method."""
    return (mask_folder(models, method) / WEIGHTS).is_file()


class NeuralMethod(Method):
    """The models of another method, whose posterior is multiplied by the neural likelihood.

    The other method's pair likelihood couples the sources; without one they are independent given
    the mixture's waveform.
    """

    def __init__(
        self,
        base: Method | None = None,
        family: str = "linearisation",
        pretrained: Path | None = None,
    ):
        """Extend a method.

        Args:
            base: the method; None: no pair likelihood.
            family: of the models, if there is no base.
            pretrained: folder of models that ship with the package, if there is no base.
        """
        self.base = base
        self.family = family if base is None else base.family
        self.pretrained = pretrained if base is None else base.pretrained
        self.name = "neural" if base is None else f"{base.name}-neural"
        own = () if base is None else base.settings
        self.settings = (*own, "neural_exponent", "prior", "mask_network")

    def defaults(self, settings: Settings) -> Settings:
        """The base's, and the neural likelihood's."""
        base = Settings() if self.base is None else self.base.defaults(settings)
        return replace(base, neural_exponent=EXPONENT, prior="autoregressive")

    def unused(self, settings: Settings) -> dict[str, str]:
        """As for the base."""
        return {} if self.base is None else self.base.unused(settings)

    def tables(self, settings: Settings, sources: int = 2) -> tuple[str, ...]:
        """The base's."""
        return () if self.base is None else self.base.tables(settings, sources)

    def check_tables(self, family: Path, settings: Settings) -> None:
        """Check the base's."""
        if self.base is not None:
            self.base.check_tables(family, settings)

    def priors(self, family: Path, settings: Settings) -> dict[str, Path | None]:
        """The sources' own; none are needed for code frequencies without a pair likelihood."""
        if self.base is not None or settings.prior != "unigram":
            return super().priors(family, settings)
        return dict.fromkeys(sorted(alpha_of(family / RUN, load_meta(family / RUN))))

    def runs(self) -> tuple[str, ...]:
        """The network."""
        return (RUN,)

    def runs_beside(self, models: Path, settings: Settings) -> dict[str, Path]:
        """The mask network, if it is used."""
        folder = mask_folder(models, self.name)
        absent = settings.mask_network is None and not has_mask_network(models, self.name)
        return {} if absent or settings.mask_network is False else {KIND: folder}

    def mask(self, models: Path, settings: Settings, device: torch.device) -> RatioMask:
        """The mask network of this method, or the ratio mask.

        Raises:
            FileNotFoundError: the network is to be used, but missing.
            ValueError: it was trained on candidates of another codec.
        """
        ratio = super().mask(models, settings, device)
        folder = self.runs_beside(models, settings).get(KIND)
        if folder is None:
            return ratio
        codec = fingerprint(self.folder(models) / "vqvae")
        return network_mask(ratio, load_mask_network(folder, device, codec))

    def _complete(
        self, settings: Settings, models: str | Path | None, refine: bool | None
    ) -> tuple[Settings, dict[str, str]]:
        full, unused = super()._complete(settings, models, refine)
        if full.mask_network or (models is not None and self.runs_beside(Path(models), full)):
            idle = ("mask_power", "mask_n_fft", "compression", "calibration")
            unused |= {
                name: "the masks are the mask network's (mask_network False: a ratio mask)"
                for name in idle
            }
        return full, unused

    def likelihood(self, parts: Parts, settings: Settings) -> Likelihood | None:
        """The base's pair likelihood."""
        return None if self.base is None else self.base.likelihood(parts, settings)

    def likelihoods(
        self, parts: Parts, priors: JointPriors | None, settings: Settings
    ) -> Likelihoods:
        """The base's pair likelihood, the neural likelihood, and the priors of the settings."""
        device = parts.codec.codebook.device
        network = load_neural_likelihood(parts.family / RUN, device, parts.codec_fingerprint)
        exponent = settings.neural_exponent or EXPONENT
        source = ScaledNeuralLikelihood(network, parts.codec, parts.sources, exponent)
        if settings.prior == "unigram":
            frequencies = {name: network.log_frequencies(name) for name in parts.sources}
            priors = UnigramPriors(frequencies)
        assert priors is not None
        return Likelihoods(priors, self.likelihood(parts, settings), source)
