"""Training objective of the prior: bits per code of one source's top-level codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ObjectiveOutput


class PriorObjective(nn.Module):
    """Mean -log2 p(code | earlier codes). The codec is frozen and no part of this module.

    Batches are waveforms [B, T], which the codec encodes, or codes, int64 [B, T].
    """

    def __init__(self, codec: VQVAE | None, prior: AutoregressivePrior):
        """Wrap `prior`.

        Args:
            codec: in eval mode on the same device; only waveforms need it.
            prior: to train.

        Raises:
            ValueError: codec and prior have different numbers of codes.
        """
        super().__init__()
        if codec is not None and codec.config.l_bins != prior.n_codes:
            raise ValueError(
                f"the codec has {codec.config.l_bins} codes, the prior {prior.n_codes}"
            )
        self.prior = prior
        self._codec = (codec,)  # in a tuple: not registered, so not trained and not stored

    def forward(self, batch: Tensor, generator: torch.Generator | None = None) -> ObjectiveOutput:
        """Loss of waveforms or codes [B, T]; it draws nothing from `generator`."""
        bits = self.prior.bits_per_code(self.codes(batch))
        return ObjectiveOutput(bits, {"bits_per_code": bits.detach()})

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The prior's."""
        return self.prior.hidden_matrices()

    @torch.no_grad()
    def codes(self, batch: Tensor) -> Tensor:
        """Codes [B, T'] of a batch; codes pass unchanged.

        Raises:
            ValueError: waveforms, and there is no codec.
        """
        if not batch.is_floating_point():
            return batch
        codec = self._codec[0]
        if codec is None:
            raise ValueError(f"a {batch.dtype} batch needs the codec, which was not given")
        # The codes must be those of inference: no autocast here.
        with torch.autocast(batch.device.type, enabled=False):
            return codec.encode(batch.float())
