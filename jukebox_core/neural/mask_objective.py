"""Training objective of the mask network: the distortion of the masked mixtures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jukebox_core.evaluation.mask_objective import distortion
from jukebox_core.neural.mask import MaskNetwork
from jukebox_core.separation.samples import Candidates
from jukebox_core.vqvae.objective import ObjectiveOutput


class MaskNetworkObjective(nn.Module):
    """Mean over crops and sources of -SDR in dB, of the spectra, as for the mask estimator.

    A batch holds the true sources of every crop, then its candidates (`CandidateItems`).
    """

    def __init__(self, network: MaskNetwork, candidates: int):
        """Wrap the network, for crops with so many candidates."""
        super().__init__()
        self.network = network
        self.candidates = candidates

    def forward(self, audio: Tensor, generator: torch.Generator | None = None) -> ObjectiveOutput:
        """Loss of waveforms [S (1 + N) B, T], collated from items [S (1 + N), T]."""
        mixture, stems, candidates = self.parts(audio)
        evidence = self._evidence(mixture, candidates)
        masks = self.network(*evidence)  # [B, S, F, frames]
        spectrum = evidence[0]
        target = self.network.spectrum(stems)  # [S, B, F, frames]
        sdr = -distortion(spectrum, target, masks.transpose(0, 1) * spectrum)  # [S]
        names = self.network.sources
        metrics = {f"sdr_{name}": x.detach() for name, x in zip(names, sdr, strict=True)}
        return ObjectiveOutput(-sdr.mean(), metrics)

    def parts(self, audio: Tensor) -> tuple[Tensor, Tensor, Candidates]:
        """The mixtures [B, T], the stems alpha_i x_i [S, B, T], the candidates.

        Raises:
            ValueError: the rows are no multiple of an item's.
        """
        alpha, rows = self.network.alpha, len(self.network.alpha) * (1 + self.candidates)
        if len(audio) % rows:
            raise ValueError(f"{len(audio)} rows are no multiple of the {rows} of an item")
        items = audio.float().unflatten(0, (rows, -1))  # [rows, B, T]
        sources, drawn = items[: len(alpha)], items[len(alpha) :]
        gains = audio.new_tensor(list(alpha.values()), dtype=torch.float32)
        stems = gains[:, None, None] * sources
        each = drawn.unflatten(0, (len(alpha), -1)).transpose(1, 2)  # [S, B, N, T]
        candidates = Candidates(dict(zip(alpha, each, strict=True)), alpha)
        return stems.sum(0), stems, candidates

    @torch.no_grad()
    def measure(self, audio: Tensor) -> None:
        """Standardise the network's features by a batch."""
        mixture, _, candidates = self.parts(audio)
        self.network.standardise(*self._evidence(mixture, candidates))

    @torch.no_grad()
    def _evidence(self, mixture: Tensor, candidates: Candidates) -> tuple[Tensor, ...]:
        """The network's arguments, by candidates of equal weight; powers overflow float16."""
        weights = mixture.new_full((len(mixture), self.candidates), 1 / self.candidates)
        with torch.autocast(mixture.device.type, enabled=False):
            return self.network.evidence(mixture, candidates, weights)
