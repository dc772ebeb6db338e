"""Latent-domain separation of music: the shared codec, priors, sampling and training."""

from jukebox_core.config import PRESETS
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.settings import Settings
from jukebox_core.vqvae.model import VQVAE

__all__ = ["PRESETS", "VQVAE", "AutoregressivePrior", "Separator", "Settings"]
