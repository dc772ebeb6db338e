"""Training objective of the prior: bits per code of one source's top-level codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jukebox_core.checks import require
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ObjectiveOutput


class PriorObjective(nn.Module):
    """Mean -log2 p(code | earlier codes). The codec is frozen and no part of this module.

    Batches are waveforms [B, T], which the codec encodes, or codes, int64 [B, T].
    """

    def __init__(self, codec: VQVAE | None, prior: AutoregressivePrior, code_noise: float = 0.0):
        """Wrap `prior`.

        Args:
            codec: in eval mode on the same device; needed for waveforms alone.
            prior: to train.
            code_noise: share of the earlier codes that are false in training, on average; a
                sequence's own share is uniform between 0 and twice that. At inference the earlier
                codes are a candidate's own, right and wrong ones: a prior that has only seen right
                ones follows its errors (Bengio et al. 2015 say the same of language models).

        Raises:
            ValueError: codec and prior have different numbers of codes, or the noise is no share.
        """
        super().__init__()
        require("code_noise", code_noise, at_least=0, at_most=0.5)
        if codec is not None and codec.config.l_bins != prior.n_codes:
            raise ValueError(
                f"the codec has {codec.config.l_bins} codes, the prior {prior.n_codes}"
            )
        self.prior = prior
        self._noise = code_noise
        self._codec = (codec,)  # in a tuple: not registered, so not trained and not stored

    def forward(self, batch: Tensor, generator: torch.Generator | None = None) -> ObjectiveOutput:
        """Loss of waveforms or codes [B, T]; in training with noise in the earlier codes."""
        codes = self.codes(batch)
        seen = self._noisy(codes, generator) if self.training and self._noise else codes
        bits = self.prior.bits_per_code(codes, seen)
        return ObjectiveOutput(bits, {"bits_per_code": bits.detach()})

    def _noisy(self, codes: Tensor, generator: torch.Generator | None) -> Tensor:
        """Codes [B, T] with some replaced by others of the batch, wherever these stood."""
        batch, steps = codes.shape
        # On the CPU, where the trainer's generator is: the same noise on any device.
        share = 2 * self._noise * torch.rand(batch, 1, generator=generator)
        false = torch.rand(batch, steps, generator=generator) < share
        others = torch.randint(codes.numel(), (batch, steps), generator=generator)
        return codes.where(~false.to(codes.device), codes.flatten()[others.to(codes.device)])

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
