"""The neural likelihood as a factor of the posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jukebox_core.neural.model import NeuralLikelihood
from jukebox_core.separation.likelihood import check_exponent
from jukebox_core.vqvae.model import VQVAE

EXPONENT = 1.0


class ScaledNeuralLikelihood:
    """Log-factors exponent (log q_i(z | mixture) - log p_i(z)).

    By Bayes' rule q_i(z | mixture) / p_i(z) is proportional to the likelihood of the mixture, if
    p_i(z) are the frequencies of the codes that the network learned from: the scaled likelihood of
    hybrid speech recognition (Bourlard and Morgan 1994). Neighbouring steps
    use overlapping audio, so that their factors are not independent; an exponent below 1 can
    compensate for that.
    """

    def __init__(
        self,
        model: NeuralLikelihood,
        codec: VQVAE,
        sources: Sequence[str],
        exponent: float = EXPONENT,
    ):
        """Use a trained network.

        Args:
            model: in eval mode, on the codec's device.
            codec: whose codes the network gives.
            sources: that are separated.
            exponent: of the likelihood.

        Raises:
            ValueError: the network lacks a source, or does not fit the codec.
        """
        check_exponent("neural_exponent", exponent)
        missing = [name for name in sources if name not in model.sources]
        if missing:
            raise ValueError(
                f"the neural likelihood is of {', '.join(model.sources)}, not of "
                f"{' or '.join(missing)}: train it on data of {' and '.join(sources)}"
            )
        own = (model.config.l_bins, model.config.emb_width, model.config.hop)
        codecs = (codec.config.l_bins, codec.config.emb_width, codec.config.hop)
        if own != codecs:
            raise ValueError(
                f"the neural likelihood has codes, width of latents and hop {own}, the codec "
                f"{codecs}: train it on this codec"
            )
        self.n_codes = model.config.l_bins
        self.alpha = {name: model.alpha[name] for name in sources}
        self.exponent = exponent
        self._model, self._codec = model, codec

    @torch.no_grad()
    def log_factors(self, mixtures: Tensor) -> dict[str, Tensor]:
        """{source: [B, T, K]} of mixtures [B, T * hop], on the model's device."""
        audio = mixtures.to(self._codec.codebook.device)
        log_q = self._model(audio, self._codec.latents(audio))
        return {
            name: self.exponent * (log_q[name] - self._model.log_frequencies(name))
            for name in self.alpha
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The exponent."""
        return {"neural_exponent": self.exponent}
