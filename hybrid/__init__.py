"""Hybrid: the LQ-VAE's training objective with LASS's counted likelihood."""

from hybrid.likelihood import PooledLikelihood
from hybrid.pretrained import PRETRAINED
from hybrid.separator import METHOD, NEURAL, load_neural_separator, load_separator
from hybrid.smoothing import GaussianBase
from lqvae.objective import LinearisationObjective as Objective

__all__ = [
    "METHOD",
    "NEURAL",
    "PRETRAINED",
    "GaussianBase",
    "Objective",
    "PooledLikelihood",
    "load_neural_separator",
    "load_separator",
]
