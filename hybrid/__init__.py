"""Hybrid: the LQ-VAE's training objective with LASS's counted likelihood."""

from hybrid.likelihood import PooledLikelihood
from hybrid.pretrained import PRETRAINED, SHIPPED, SONG, models_of
from hybrid.separator import (
    METHOD,
    NEURAL,
    NEURAL_ONLY,
    load_neural_separator,
    load_separator,
    load_song_separator,
    neural_method,
)
from hybrid.smoothing import GaussianBase
from lqvae.objective import LinearisationObjective as Objective

__all__ = [
    "METHOD",
    "NEURAL",
    "NEURAL_ONLY",
    "PRETRAINED",
    "SHIPPED",
    "SONG",
    "GaussianBase",
    "Objective",
    "PooledLikelihood",
    "load_neural_separator",
    "load_separator",
    "load_song_separator",
    "models_of",
    "neural_method",
]
