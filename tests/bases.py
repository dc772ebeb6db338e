"""Base distributions of the smoothing as explicit tables."""

import torch

from jukebox_core.separation.likelihood import FactoredScores, Power


def probabilities(base, mixture_code):
    """q(mixture_code | z1, z2), [K * K]."""
    k = base.n_codes
    first, second, gathered = base.factors(mixture_code)
    power = Power(first, second, torch.ones(k * k), 1.0, 1.0)
    return FactoredScores(k, power, gathered).values.exp()
