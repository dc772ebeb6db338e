"""Training objective of the neural likelihood: bits per code of the sources, given the mixture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jukebox_core.neural.model import NeuralLikelihood
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ObjectiveOutput


class NeuralLikelihoodObjective(nn.Module):
    """Mean over sources of -log2 q_i(z_i | mixture); z_i are the codes of the true source.

    The codec is frozen and no part of this module.
    """

    def __init__(self, codec: VQVAE, model: NeuralLikelihood):
        """Wrap `model`.

        Args:
            codec: in eval mode on the same device.
            model: to train; its sources are in the order of the batches' rows.

        Raises:
            ValueError: codec and model have different numbers of codes.
        """
        super().__init__()
        if codec.config.l_bins != model.config.l_bins:
            raise ValueError(
                f"the codec has {codec.config.l_bins} codes, the model {model.config.l_bins}"
            )
        self.model = model
        self._codec = (codec,)  # in a tuple: not registered, so not trained and not stored

    def forward(self, audio: Tensor, generator: torch.Generator | None = None) -> ObjectiveOutput:
        """Loss of waveforms [S * B, T] in the order of the sources (`collate`).

        Raises:
            ValueError: the rows are no multiple of the sources.
        """
        mixture, latents, codes = self.targets(audio)
        log_q = self.model(mixture, latents)
        bits = {
            name: F.nll_loss(log_q[name].flatten(0, 1), codes[name].flatten()) / math.log(2)
            for name in self.model.alpha
        }
        metrics = {f"bits_{name}": x.detach() for name, x in bits.items()}
        return ObjectiveOutput(torch.stack(list(bits.values())).mean(), metrics)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The model's."""
        return self.model.hidden_matrices()

    @torch.no_grad()
    def measure(self, audio: Tensor) -> None:
        """Standardise the model's features and set its code frequencies by sources [S * B, T]."""
        mixture, latents, codes = self.targets(audio)
        self.model.standardise(mixture, latents)
        self.model.set_frequencies(codes)

    @torch.no_grad()
    def targets(self, audio: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Mixtures [B, T], their latents [B, D, T'], and {source: codes [B, T']}.

        Args:
            audio: sources [S * B, T].

        Raises:
            ValueError: the rows are no multiple of the sources.
        """
        alpha = self.model.alpha
        if len(audio) % len(alpha):
            raise ValueError(f"{len(audio)} crops are not of {len(alpha)} sources each")
        (codec,) = self._codec
        # The codes must be those of inference: no autocast here.
        with torch.autocast(audio.device.type, enabled=False):
            stems = audio.float().unflatten(0, (len(alpha), -1))  # [S, B, T]
            gains = stems.new_tensor(list(alpha.values()))
            mixture = torch.einsum("s,sbt->bt", gains, stems)
            codes = codec.encode(stems.flatten(0, 1)).unflatten(0, stems.shape[:2])
            return mixture, codec.latents(mixture), dict(zip(alpha, codes, strict=True))
