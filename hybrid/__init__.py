"""Hybrid: the LQ-VAE's training objective, LASS's counted likelihood."""

from lass.likelihood import CountLikelihood, build_likelihood
from lqvae.objective import LinearisationObjective as Objective

__all__ = ["CountLikelihood", "Objective", "build_likelihood"]
