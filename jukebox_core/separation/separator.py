"""The one user-facing object: a codec, two priors and a likelihood that separate any audio."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core import audio as audio_io
from jukebox_core.separation.protocols import Likelihood, Prior, Sampler
from jukebox_core.separation.refinement import RatioMask
from jukebox_core.separation.sampling import AncestralSampler
from jukebox_core.separation.selection import Candidates, PosteriorMean, Selection, SpectralFit
from jukebox_core.separation.windows import CrossFade, Window, batches, windows
from jukebox_core.vqvae.model import VQVAE

_DECODE_SAMPLES = 1 << 21  # samples decoded at a time


class Separator:
    """Separates mixtures of two sources; the methods differ by the parts given.

    Example:
        >>> separator = build_separator("hybrid", Path("runs/demo/models"))
        >>> stems = separator(mixture, rate=44_100, seed=0)  # {"bass": [C, T], "drums": [C, T]}
    """

    def __init__(
        self,
        codec: VQVAE,
        priors: Mapping[str, Prior],
        likelihood: Likelihood,
        *,
        alpha: Mapping[str, float] | None = None,
        sampler: Sampler | None = None,
        candidates: int = 64,
        window: int = 1024,
        overlap: int = 64,
        pick: Selection | None = None,
        average: Selection | None = None,
        refinement: RatioMask | None = None,
    ):
        """Compose a separator.

        Args:
            codec: in evaluation mode.
            priors: {source: prior}, in the order of the likelihood's pairs.
            likelihood: scores of code pairs given the mixture's code.
            alpha: {source: gain in the mixture}; default 1/S each.
            sampler: draws the joint candidates; default ancestral.
            candidates: N, drawn per window.
            window: codes per window.
            overlap: codes that neighbouring windows share, cross-faded.
            pick: chooses the candidate of the raw decode; default spectral fit.
            average: weights the candidates for the refinement; default posterior mean.
            refinement: the mask; default power 2, STFT 2048/512.

        Raises:
            ValueError: the parts do not fit together.
        """
        self.codec = codec
        self.priors = dict(priors)
        self.likelihood = likelihood
        self.sources = tuple(self.priors)
        if len(self.sources) != 2:
            raise ValueError(f"separation needs two priors, got {len(self.sources)}")
        self.alpha = dict(alpha) if alpha else {name: 1 / len(priors) for name in priors}
        if set(self.alpha) != set(self.sources):
            raise ValueError(f"alpha names {sorted(self.alpha)}, the priors {sorted(priors)}")
        codes = {"codec": codec.config.l_bins, "likelihood": likelihood.n_codes} | {
            f"prior of {name}": prior.n_codes for name, prior in self.priors.items()
        }
        if len(set(codes.values())) != 1:
            raise ValueError(f"the parts have different numbers of codes: {codes}")
        context = min(prior.n_ctx for prior in self.priors.values())
        if window > context:
            raise ValueError(f"a window of {window} codes exceeds the priors' context of {context}")
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}, it must be at least 1")
        self.sampler = sampler or AncestralSampler()
        self.n_candidates = candidates
        self.window = window
        self.overlap = overlap
        self.pick = pick or SpectralFit()
        self.average = average or PosteriorMean()
        self.refinement = refinement or RatioMask()

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.codec.codebook.device

    @property
    def sample_rate(self) -> int:
        """Of the models, in Hz."""
        return self.codec.config.sample_rate

    @torch.no_grad()
    def candidates(
        self,
        mixtures: Tensor,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Candidates:
        """Draw and decode N joint candidates of mixtures [B, T], T a multiple of the hop.

        The result is on the CPU.
        """
        codes = self.codec.encode(mixtures.to(self.device))
        drawn = self.sampler(
            self.priors, self.likelihood, codes, self.n_candidates, generator, progress
        )
        return Candidates({name: self._decode(c) for name, c in drawn.codes.items()}, drawn)

    @torch.no_grad()
    def __call__(
        self,
        mixture: Tensor,
        rate: int,
        *,
        seed: int = 0,
        refine: bool = True,
        batch: int = 4,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Tensor]:
        """Stems {source: like the mixture}, as they stand in it: refined, they sum to it.

        Args:
            mixture: [T] or [C, T], any rate, length and channel count.
            rate: its sample rate, in Hz.
            seed: of the sampling.
            refine: mask the true mixture, every channel by itself, with the mean power of all
                candidates; otherwise the raw decode of one candidate, the same on all channels.
            batch: windows sampled together.
            progress: called with (steps done, steps in all).

        Raises:
            ValueError: the mixture is empty, not finite, or of another shape.
        """
        if mixture.ndim not in (1, 2) or mixture.shape[-1] == 0:
            raise ValueError(f"mixture is {tuple(mixture.shape)}, expected [T] or [C, T]")
        if not mixture.isfinite().all():
            raise ValueError("the mixture holds NaN or infinite samples")
        channels = mixture.float().reshape(-1, mixture.shape[-1]).cpu()  # [C, T]
        mono = audio_io.resample(audio_io.to_mono(channels), rate, self.sample_rate)
        scale = rate / self.sample_rate
        hop = self.codec.config.hop
        layout = windows(len(mono), self.window * hop, self.overlap * hop, hop)
        mono = F.pad(mono, (0, layout[-1].stop - len(mono)))
        generator = torch.Generator().manual_seed(seed)
        joined = {name: CrossFade(tuple(channels.shape)) for name in self.sources}
        steps = (layout[0].stop - layout[0].start) // hop
        groups = list(batches(layout, batch))
        for i, group in enumerate(groups):
            report = _offset(progress, i * steps, len(groups) * steps)
            pieces = torch.stack([mono[w.start : w.stop] for w in group])
            candidates = self.candidates(pieces, generator, report)
            inputs = [_cut(channels, w, scale) for w in group]
            make = self._refined if refine else self._raw
            stems = make(pieces, candidates, inputs, rate)
            for name, parts in stems.items():
                for w, part in zip(group, parts, strict=True):
                    fades = round(w.fade_in * scale), round(w.fade_out * scale)
                    joined[name].add(part, round(w.start * scale), *fades)
        return {name: fade.result().reshape(mixture.shape) for name, fade in joined.items()}

    def _refined(
        self, pieces: Tensor, candidates: Candidates, inputs: list[Tensor], rate: int
    ) -> dict[str, list[Tensor]]:
        """Masks from the candidates [B windows], applied to the windows' channels [C, T']."""
        weights = self.average(pieces, candidates, self.alpha)
        powers = self.refinement.mean_powers(candidates.audio, weights, self.alpha)
        masks = self.refinement.masks(powers)
        stems: dict[str, list[Tensor]] = {name: [] for name in self.sources}
        for b, channels in enumerate(inputs):
            mask = {name: m[b] for name, m in masks.items()}
            applied = self.refinement.apply(channels, mask, rate / self.sample_rate)
            for name, stem in applied.items():
                stems[name].append(stem)
        return stems

    def _raw(
        self, pieces: Tensor, candidates: Candidates, inputs: list[Tensor], rate: int
    ) -> dict[str, list[Tensor]]:
        """The picked candidate's decode, at the windows' rate, the same on all channels."""
        picked = self.pick(pieces, candidates, self.alpha).argmax(1)
        stems: dict[str, list[Tensor]] = {name: [] for name in self.sources}
        for name, audio in candidates.audio.items():
            for b, channels in enumerate(inputs):
                decoded = self.alpha[name] * audio[b, picked[b]]
                at_rate = audio_io.resample(
                    decoded, self.sample_rate, rate, length=channels.shape[-1]
                )
                stems[name].append(at_rate.expand_as(channels))
        return stems

    def _decode(self, codes: Tensor) -> Tensor:
        """Audio [B, N, T * hop] of codes [B, N, T], some at a time."""
        flat = codes.flatten(0, 1)
        size = max(1, _DECODE_SAMPLES // (flat.shape[1] * self.codec.config.hop))
        return torch.cat([self.codec.decode(c).float().cpu() for c in flat.split(size)]).unflatten(
            0, codes.shape[:2]
        )


def _cut(channels: Tensor, window: Window, ratio: float) -> Tensor:
    """The window's part of [C, T] at `ratio` times the model's rate, zeros after the end."""
    start, stop = round(window.start * ratio), round(window.stop * ratio)
    part = channels[:, start:stop]
    return F.pad(part, (0, stop - start - part.shape[-1]))


def _offset(
    progress: Callable[[int, int], None] | None, done: int, total: int
) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda step, _: progress(done + step, total)
