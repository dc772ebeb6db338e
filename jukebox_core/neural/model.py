"""A network that reads a mixture and gives, for every source, probabilities of its codes.

For each code position t it estimates q_i(z | mixture), i a source, from the waveform, two log-mel
spectrograms and the codec's latents of the mixture around t. Sources are conditionally independent
given the mixture; the pair likelihood, if there is one, couples them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jukebox_core.audio.spectra import squared_magnitude
from jukebox_core.checkpoints import alpha_of, check_codec, load_config, load_model
from jukebox_core.config import NeuralLikelihoodConfig

KIND = "neural_likelihood"
FLOOR = 1e-5
"""Added to mel powers before the logarithm: the hiss of silence says nothing."""


class Block(nn.Module):
    """Residual block on [B, T, C]: norm, dilated convolution of 3, GELU, linear."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.norm = nn.LayerNorm(width)
        self.inwards = nn.Linear(3 * width, width)
        self.outwards = nn.Linear(width, width)
        nn.init.zeros_(self.outwards.weight)
        nn.init.zeros_(self.outwards.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution as one product: its three inputs side by side."""
        d, steps = self.dilation, x.shape[1]
        h = F.pad(self.norm(x), (0, 0, d, d))
        h = torch.cat([h[:, :steps], h[:, d : d + steps], h[:, 2 * d :]], -1)
        return x + self.outwards(F.gelu(self.inwards(h)))


class NeuralLikelihood(nn.Module):
    """Log-probabilities of every source's codes, given the mixture.

    Blocks with a step per `coarse` codes see far; blocks with a step per code place the details.
    """

    frequencies: Tensor
    _mels: Tensor
    _long_mels: Tensor

    def __init__(self, config: NeuralLikelihoodConfig, alpha: Mapping[str, float]):
        """Random weights; uniform code frequencies until `set_frequencies`.

        Args:
            config: the architecture.
            alpha: {source: gain in the mixture}, in the order of the heads.
        """
        super().__init__()
        self.config = config
        self.alpha = dict(alpha)
        c = config
        self.register_buffer("_mels", _mel_filters(c, c.n_fft, None), persistent=False)
        self.register_buffer(
            "_long_mels", _mel_filters(c, c.long_n_fft, c.long_hertz), persistent=False
        )
        features = c.mels + c.emb_width
        self.mean = nn.Parameter(torch.zeros(features + c.mels))
        self.scale = nn.Parameter(torch.ones(features + c.mels))
        self.frame = nn.Linear(c.taps * c.hop, c.frame_width, bias=False)
        self.inwards = nn.Linear(features + c.frame_width, c.width)
        self.down = nn.Linear(c.coarse * c.width + c.mels, c.coarse_width)
        self.coarse_blocks = _blocks(c.coarse_width, c.coarse_depth, c.dilation_cycle)
        self.up = nn.Linear(c.coarse_width, c.coarse * c.width)
        self.blocks = _blocks(c.width, c.depth, c.dilation_cycle)
        self.norm = nn.LayerNorm(c.width)
        self.heads = nn.ModuleDict({name: nn.Linear(c.width, c.l_bins) for name in self.sources})
        self.register_buffer("frequencies", torch.full((len(self.sources), c.l_bins), 1 / c.l_bins))

    def forward(self, mixture: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Log-probabilities {source: [B, T, K]}.

        Args:
            mixture: waveforms [B, T * hop].
            latents: the codec's unquantised latents of the mixture, [B, D, T].
        """
        c = self.config
        steps = latents.shape[2]
        with torch.autocast(mixture.device.type, enabled=False):  # powers overflow float16
            fine, long = self._features(mixture.float(), latents)
        split = fine.shape[-1]
        fine = (fine - self.mean[:split]) * self.scale[:split]
        long = (long - self.mean[split:]) * self.scale[split:]
        x = self.inwards(torch.cat([fine, self.frame(self._frames(mixture))], -1))
        padded = F.pad(x, (0, 0, 0, -steps % c.coarse))  # [B, T', width]
        h = self.down(torch.cat([padded.unflatten(1, (-1, c.coarse)).flatten(2), long], -1))
        for block in self.coarse_blocks:
            h = block(h)
        x = x + self.up(h).unflatten(2, (c.coarse, -1)).flatten(1, 2)[:, :steps]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {name: head(x).float().log_softmax(-1) for name, head in self.heads.items()}

    def _features(self, mixture: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Features per code [B, T, mels + D], and per `coarse` codes [B, T', mels]."""
        c = self.config
        short = _log_mel(mixture, c.n_fft, c.hop, self._mels)
        hop = c.coarse * c.hop
        long = _log_mel(
            F.pad(mixture, (0, -mixture.shape[1] % hop)), c.long_n_fft, hop, self._long_mels
        )
        return torch.cat([short, latents.transpose(1, 2).float()], -1), long

    def _frames(self, mixture: Tensor) -> Tensor:
        """Waveform around every code, [B, T, taps * hop]."""
        c = self.config
        around = (c.taps - 1) * c.hop
        return F.pad(mixture, (around // 2, around - around // 2)).unfold(1, c.taps * c.hop, c.hop)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources in the order of the heads."""
        return tuple(self.alpha)

    @torch.no_grad()
    def standardise(self, mixture: Tensor, latents: Tensor) -> None:
        """Start from the mean and deviation of every feature of these mixtures; see `forward`."""
        parts = [x.flatten(0, 1) for x in self._features(mixture, latents)]
        self.mean.copy_(torch.cat([x.mean(0) for x in parts]))
        self.scale.copy_(torch.cat([1 / x.std(0).clamp_min(1e-3) for x in parts]))
        loudness = mixture.square().mean().sqrt().clamp_min(1e-6)
        self.frame.weight.div_(loudness)

    @torch.no_grad()
    def set_frequencies(self, codes: Mapping[str, Tensor]) -> None:
        """Unigram frequencies of every source, counted with one added to every code.

        Args:
            codes: {source: int64, any shape}.
        """
        for row, name in zip(self.frequencies, self.sources, strict=True):
            counts = torch.bincount(codes[name].flatten(), minlength=self.config.l_bins) + 1
            row.copy_(counts / counts.sum())

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Matrices between the features and the heads, for Muon."""
        hidden = (self.inwards, self.down, self.coarse_blocks, self.up, self.blocks)
        return [p for part in hidden for p in part.parameters() if p.ndim == 2]

    def log_frequencies(self, source: str) -> Tensor:
        """Log unigram frequencies of a source's codes, [K]."""
        return self.frequencies[self.sources.index(source)].log()


def _blocks(width: int, depth: int, cycle: int) -> nn.ModuleList:
    return nn.ModuleList(Block(width, 2 ** (index % cycle)) for index in range(depth))


def _mel_filters(config: NeuralLikelihoodConfig, n_fft: int, hertz: float | None) -> Tensor:
    """Mel filters [F, mels]."""
    import librosa  # takes seconds to import

    highest = config.sample_rate / 2
    filters = librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=n_fft,
        n_mels=config.mels,
        fmax=highest if hertz is None else min(hertz, highest),
    )
    return torch.tensor(filters.T.tolist())


def _log_mel(audio: Tensor, n_fft: int, hop: int, filters: Tensor) -> Tensor:
    """Log-mel powers [B, T / hop, mels] of frames centred on the middle of every hop."""
    around = n_fft - hop
    left = around // 2
    padded = F.pad(audio, (left, around - left))  # a negative padding crops
    window = torch.hann_window(n_fft, device=audio.device)
    spectrum = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
    powers = squared_magnitude(spectrum).transpose(1, 2)
    return (powers @ filters / n_fft + FLOOR).log()


def load_neural_likelihood(
    folder: str | Path,
    device: str | torch.device = "cpu",
    codec_fingerprint: str | None = None,
) -> NeuralLikelihood:
    """Load a run's neural likelihood, in eval mode and without gradients.

    Args:
        folder: the run.
        device: where to put it.
        codec_fingerprint: of the codec to use it with; None accepts any.

    Raises:
        FileNotFoundError: The folder or a part of it is missing.
        ValueError: A part is damaged, of another kind, does not fit its configuration, has values
            that are not finite, or the network was trained on the codes of another codec.
    """
    config, meta = load_config(folder, KIND, NeuralLikelihoodConfig)
    check_codec(folder, meta, codec_fingerprint)
    alpha = alpha_of(folder, meta)
    return load_model(lambda: NeuralLikelihood(config, alpha), folder, device)
