"""Hybrid: the LQ-VAE's training objective with LASS's counted likelihood."""

from hybrid.likelihood import PooledLikelihood
from hybrid.separator import METHOD, load_separator
from hybrid.smoothing import GaussianBase
from lqvae.objective import LinearisationObjective as Objective

__all__ = ["METHOD", "GaussianBase", "Objective", "PooledLikelihood", "load_separator"]
