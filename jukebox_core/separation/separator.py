"""The one user-facing object: a codec, priors and likelihoods that separate any audio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jukebox_core import audio as audio_io
from jukebox_core.audio.decoding import BLOCK
from jukebox_core.checks import require, require_seed
from jukebox_core.machine import free_bytes, is_out_of_memory, release
from jukebox_core.prior.joint import JointPriors, Prior, as_joint
from jukebox_core.separation.likelihood import Likelihood, SourceLikelihood
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.memory import TooLarge, decoded_bytes, windows_that_fit
from jukebox_core.separation.samples import (
    Candidates,
    Progress,
    Sampler,
    join_groups,
    join_shifts,
)
from jukebox_core.separation.sampling_task import skip_numbers
from jukebox_core.separation.selection import (
    PosteriorMean,
    Selection,
    Weighting,
)
from jukebox_core.separation.settings import DEFAULTS
from jukebox_core.separation.stream import Piece, Run, Steps, cut, part_of
from jukebox_core.separation.uncertainty import Uncertainty
from jukebox_core.separation.windows import CrossFade, Layout, batches
from jukebox_core.vqvae.model import VQVAE

_DECODE_SAMPLES = 1 << 21  # samples decoded at a time
_HIGHEST_RATE = 10_000_000  # Hz; the mask's STFT grows with the rate


class Sizes(NamedTuple):
    """The numbers that control windows and sampling; see `Separator`."""

    candidates: int
    window: int
    shifts: int

    def check(self, n_ctx: int, hop: int, sources: int = 2) -> None:
        """Refuse numbers that do not fit the models, each other or the free memory.

        Args:
            n_ctx: the priors' context, in codes.
            hop: samples per code.
            sources: number of sources.

        Raises:
            ValueError: they do not fit the models or each other.
            TooLarge: the candidates of one window need more memory than is free.
        """
        require("candidates", self.candidates, whole=True, at_least=1)
        require("window", self.window, whole=True, at_least=1)
        if self.window > n_ctx:
            raise ValueError(
                f"window is {self.window}, which exceeds the priors' context of {n_ctx} codes"
            )
        require("shifts", self.shifts, whole=True, at_least=1)
        if self.shifts > hop or self.candidates % self.shifts:
            raise ValueError(
                f"shifts is {self.shifts}, expected 1 to {hop} (samples of a code) and a divisor "
                f"of the {self.candidates} candidates"
            )
        # Decoded in parts and joined.
        needed = 2 * decoded_bytes(self.candidates, self.window * hop, sources)
        free = free_bytes(torch.device("cpu"))
        if needed > free:
            raise TooLarge(
                f"candidates is {self.candidates}: decoded, the candidates of one window of "
                f"{self.window} codes take {needed / 2**30:,.1f} GiB, but only "
                f"{free / 2**30:,.1f} GiB are free; use fewer candidates or a shorter window"
            )


class Separator:
    """Separates mixtures; the methods differ only in the parts.

    Example:
        >>> separator = hybrid.load_separator("runs/demo/models")
        >>> stems = separator(mixture, rate=44_100, seed=0)  # {"bass": [C, T], "drums": [C, T]}
    """

    def __init__(
        self,
        codec: VQVAE,
        priors: Mapping[str, Prior] | JointPriors,
        likelihood: Likelihood | None,
        *,
        source_likelihood: SourceLikelihood | None = None,
        alpha: Mapping[str, float] | None = None,
        sampler: Sampler | None = None,
        candidates: int = 64,
        window: int = 1024,
        overlap: int = 64,
        selection: Selection | None = None,
        weights: Weighting | None = None,
        mask: RatioMask | None = None,
        shifts: int = 1,
    ):
        """Compose a separator; parts that are left out are the default ones of `Settings`.

        Args:
            codec: in evaluation mode.
            priors: {source: prior}, in the order of the likelihood's pairs, or both as one.
            likelihood: scores of code pairs given the mixture's code; None: no pair likelihood.
            source_likelihood: scores of each source's codes given the mixture's waveform.
            alpha: {source: gain in the mixture}; default 1/S each.
            sampler: draws the joint candidates.
            candidates: N, drawn per window.
            window: codes per window.
            overlap: codes that neighbouring windows share, cross-faded.
            selection: takes the candidates of the raw decode.
            weights: weights the candidates for the mask.
            mask: masks the mixture; without calibration by default.
            shifts: S positions within a code that a window is encoded at; N / S candidates are
                drawn for each and moved back. The codes of the mixture are a noisy observation of
                it, and S observations differ in their noise.

        Raises:
            ValueError: the parts do not fit together.
        """
        joint = as_joint(priors)
        self.codec = codec
        self.priors = dict(priors) if isinstance(priors, Mapping) else priors
        self.likelihood = likelihood
        self.source_likelihood = source_likelihood
        self.sources = tuple(joint.names)
        self.n_ctx = joint.n_ctx
        self.alpha = dict(alpha) if alpha else {name: 1 / len(self.sources) for name in joint.names}
        if set(self.alpha) != set(self.sources):
            raise ValueError(f"alpha names {sorted(self.alpha)}, the priors {sorted(self.sources)}")
        likelihoods = {"likelihood": likelihood, "source likelihood": source_likelihood}
        codes = {"codec": codec.config.l_bins, "priors": joint.n_codes}
        codes |= {name: part.n_codes for name, part in likelihoods.items() if part is not None}
        if len(set(codes.values())) != 1:
            raise ValueError(f"the parts have different numbers of codes: {codes}")
        for name, gain in self.alpha.items():
            require(f"alpha of {name}", gain, above=0)
        for part in (source_likelihood, mask):
            trained = None if part is None else part.alpha
            if trained is not None and dict(trained) != self.alpha:
                raise ValueError(
                    f"the {type(part).__name__} was trained on mixtures with gains "
                    f"{dict(trained)}, the separator mixes with {self.alpha}: train it on data "
                    f"with these gains"
                )
        Sizes(candidates, window, shifts).check(self.n_ctx, codec.config.hop, len(self.sources))
        require("overlap", overlap, whole=True, at_least=0)
        self.sampler = sampler or DEFAULTS.make_sampler()
        self.n_candidates = candidates
        self.shifts = shifts
        self.window = window
        self.overlap = overlap
        self.selection = selection or DEFAULTS.make_selection()
        self.weights = weights or DEFAULTS.make_weights()
        self.mask = mask or DEFAULTS.make_mask()

    @property
    def settings(self) -> dict[str, Any]:
        """The values that it was made with, ready for JSON."""
        return {
            "sources": list(self.sources),
            "likelihood": self._likelihood_settings(),
            "sampler": self.sampler.settings,
            "candidates": self.n_candidates,
            "shifts": self.shifts,
            "selection": repr(self.selection),
            "weights": repr(self.weights),
            "mask": self.mask.settings,
            "window": self.window,
            "overlap": self.overlap,
        }

    def _likelihood_settings(self) -> dict[str, Any]:
        parts = (self.likelihood, self.source_likelihood)
        return {name: x for part in parts if part is not None for name, x in part.settings.items()}

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        return self.codec.codebook.device

    @property
    def sample_rate(self) -> int:
        """Sample rate of the models, in Hz."""
        return self.codec.config.sample_rate

    def fitting_batch(self, processes: int = 1) -> int:
        """Windows to sample together if `processes` on this machine do the same."""
        samples = self.window * self.codec.config.hop
        joint = as_joint(self.priors)
        return windows_that_fit(
            joint,
            self.n_candidates,
            self.window,
            samples,
            self.device,
            processes,
            self.shifts,
            self.source_likelihood is not None,
        )

    @torch.no_grad()
    def candidates(
        self,
        mixtures: Tensor,
        generator: torch.Generator,
        progress: Progress | None = None,
        *,
        parts: int = 1,
    ) -> Candidates:
        """Draw and decode N joint candidates of mixtures [B, T], T a multiple of the hop.

        The result is on the CPU.

        Args:
            mixtures: at the models' rate.
            generator: of the sampling.
            progress: called by the sampler.
            parts: groups that the candidates are drawn in, one after the other, to save memory;
                each group takes its own random numbers, so the candidates depend on it.
        """
        offsets = [round(s * self.codec.config.hop / self.shifts) for s in range(self.shifts)]
        moved = torch.stack([_delayed(mixtures, offset) for offset in offsets], 1)  # [B, S, T]
        codes, factors = self._evidence(moved.to(self.device))
        each = self.n_candidates // self.shifts
        sizes = [len(part) for part in torch.arange(each).chunk(parts)]
        groups = []
        for i, size in enumerate(sizes):
            report = part_of(progress, i, len(sizes))
            groups.append(
                self.sampler(self.priors, self.likelihood, codes, size, generator, report, factors)
            )
        samples = join_groups(groups)
        audio = {
            name: torch.cat([self._decode(own) for own in c.split(self.shifts)])
            for name, c in samples.codes.items()
        }  # [B * S, N / S, T]
        audio = {name: _advanced(x, offsets) for name, x in audio.items()}
        return Candidates(audio, self.alpha, join_shifts(samples, self.shifts))

    def skip(self, generator: torch.Generator, mixtures: int, samples: int) -> None:
        """Leave out the random numbers of so many mixtures of T samples.

        The mixtures after them then get the same `candidates` as if all had been drawn.
        """
        steps, each = samples // self.codec.config.hop, self.n_candidates // self.shifts
        numbers = self.sampler.numbers(each)
        skip_numbers(generator, mixtures * self.shifts, steps, numbers, len(self.sources))

    def _evidence(self, moved: Tensor) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Mixture codes [B * S, T] and log-factors of windows at all shifts [B, S, T * hop].

        Window by window: the sums of a convolution depend on the batch in the last digit, which can
        be another code.
        """
        codes = torch.cat([self.codec.encode(window) for window in moved])
        if self.source_likelihood is None:
            return codes, None
        each = [self.source_likelihood.log_factors(window) for window in moved]
        return codes, {name: torch.cat([own[name] for own in each]) for name in each[0]}

    def uncertainty(self, mixtures: Tensor, candidates: Candidates) -> Tensor:
        """Uncertainty about mixtures [B, T], [B, F, frames]; see `RatioMask.uncertainty`.

        The candidates count by their posterior weights. Bins and frames belong to the mask's
        spectrogram at the models' rate.
        """
        return self.mask.uncertainty(mixtures, candidates, PosteriorMean()(mixtures, candidates))

    def __call__(
        self,
        mixture: Tensor,
        rate: int,
        *,
        seed: int = 0,
        refine: bool = True,
        batch: int | Literal["auto"] = "auto",
        progress: Progress | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> dict[str, Tensor]:
        """Stems {source: like the mixture}, as they stand in it: refined, they sum to it.

        Args:
            mixture: [T] or [C, T], any rate, length and channel count.
            rate: its sample rate, in Hz.
            seed: random seed for sampling.
            refine: mask the true mixture, every channel by itself, with the mean power of all
                candidates; otherwise the raw decode of one candidate, the same on all channels.
            batch: windows sampled together; `auto`: as many as help and fit in memory.
            progress: called with (steps done, total steps).
            uncertainty: collects the uncertainty; the stems are the same.

        Raises:
            ValueError: the mixture is empty, not finite, or of another shape.
        """
        if mixture.ndim not in (1, 2) or mixture.numel() == 0:
            raise ValueError(f"mixture is {tuple(mixture.shape)}, expected [T] or [C, T]")
        if not mixture.isfinite().all():
            raise ValueError("the mixture holds NaN or infinite samples")
        channels = mixture.reshape(-1, mixture.shape[-1])  # [C, T]
        stream = self.stream(
            channels.split(BLOCK, 1),
            rate,
            len(channels),
            seed=seed,
            refine=refine,
            batch=batch,
            length=channels.shape[1],
            progress=progress,
            uncertainty=uncertainty,
        )
        stems = {name: torch.empty(channels.shape) for name in self.sources}
        done = 0
        for block in stream:
            for name, part in block.items():
                stems[name][:, done : done + part.shape[1]] = part
            done += part.shape[1]
        return {name: stem.reshape(mixture.shape) for name, stem in stems.items()}

    def stream(
        self,
        blocks: Iterable[Tensor],
        rate: int,
        channels: int,
        *,
        seed: int = 0,
        refine: bool = True,
        batch: int | Literal["auto"] = "auto",
        length: int | None = None,
        progress: Progress | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Separate a mixture of any length that comes in blocks, in memory for a few windows.

        Where memory runs out, fewer windows are sampled together, and at last a window's candidates
        in groups where the sampler's candidates are independent draws. How many windows are
        sampled together has no part in the random numbers.

        Args:
            blocks: [C, t] each, any t.
            rate: their sample rate, in Hz.
            channels: C.
            seed: random seed for sampling.
            refine: as in `__call__`.
            batch: windows sampled together; `auto`: as many as help and fit in memory.
            length: total number of samples, if known; used for the progress only.
            progress: called with (steps done, total steps).
            uncertainty: as in `__call__`.

        Returns:
            An iterator over {source: [C, t']}; joined, they are as long as the blocks joined.

        Raises:
            ValueError: a number that cannot be; while iterating, blocks that are empty in all, not
                finite or of another shape.
            TooLarge: one window does not fit the memory.
        """
        require("rate", rate, whole=True, at_least=1, at_most=_HIGHEST_RATE)
        require("channels", channels, whole=True, at_least=1)
        require_seed("seed", seed)
        if batch != "auto":
            require("batch", batch, whole=True, at_least=1, hint="or auto")
        hop = self.codec.config.hop
        layout = Layout(self.window * hop, self.overlap * hop, hop)
        run = Run(
            rate,
            refine,
            torch.Generator().manual_seed(seed),
            Steps(progress, hop, layout, -(-length * self.sample_rate // rate) if length else None),
            self.fitting_batch() if batch == "auto" else batch,
            uncertainty,
        )
        return self._stream(cut(blocks, rate, self.sample_rate, channels, layout), channels, run)

    def _stream(
        self, pieces: Iterator[Piece], channels: int, run: Run
    ) -> Iterator[dict[str, Tensor]]:
        """The joined stems, as soon as they are final."""
        scale = run.rate / self.sample_rate
        fades = {name: CrossFade((channels,)) for name in self.sources}
        group: list[Piece] = []

        def flush() -> dict[str, Tensor]:
            for name, parts in self._group(group, run).items():
                for (window, *_), part in zip(group, parts, strict=True):
                    ramps = round(window.fade_in * scale), round(window.fade_out * scale)
                    fades[name].add(part, round(window.start * scale), *ramps)
            return {name: fade.take(group[-1].settled) for name, fade in fades.items()}

        for piece in pieces:
            group.append(piece)
            if len(group) >= run.batch:
                yield flush()
                group.clear()
        if group:
            yield flush()

    def _group(self, group: list[Piece], run: Run) -> dict[str, list[Tensor]]:
        """Stems {source: [C, T'] per window}; done again in smaller parts where memory runs out."""
        state = run.generator.get_state()
        try:
            return self._windows(group, run)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
        # The handler is left, so that its traceback no longer keeps the tensors alive.
        release(self.device)
        run.generator.set_state(state)
        if len(group) > 1:
            run.batch = (len(group) + 1) // 2
        elif self.sampler.independent and run.parts < self.n_candidates // self.shifts:
            run.parts = min(2 * run.parts, self.n_candidates // self.shifts)
        else:
            raise TooLarge(
                f"{self.n_candidates} candidates of one window of {self.window} codes do not fit "
                f"the memory of {self.device}: lower the number of candidates ({reason})"
            )
        stems: dict[str, list[Tensor]] = {name: [] for name in self.sources}
        for part in batches(group, run.batch):
            for name, found in self._group(part, run).items():
                stems[name] += found
        return stems

    @torch.no_grad()
    def _windows(self, group: list[Piece], run: Run) -> dict[str, list[Tensor]]:
        """Stems of windows that are sampled together."""
        pieces = torch.stack([piece.mono for piece in group])
        report = run.steps.during(len(group))
        candidates = self.candidates(pieces, run.generator, report, parts=run.parts)
        make = self._refined if run.refine else self._raw
        stems: dict[str, list[Tensor]] = {name: [] for name in self.sources}
        maps = []
        # Window by window: the last digit of a power depends on its place in the batch.
        for b, piece in enumerate(group):
            window = pieces[b : b + 1], candidates.chunk(b)
            for name, stem in make(*window, piece.channels, run.rate).items():
                stems[name].append(stem)
            if run.uncertainty is not None:
                maps.append(self.uncertainty(*window)[0])
        if run.uncertainty is not None:  # last: where memory runs out, all is done again
            for piece, values in zip(group, maps, strict=True):
                run.uncertainty.add(piece.window, values, self.mask, self.sample_rate)
        run.steps.finished(len(group))
        return stems

    def _refined(
        self, piece: Tensor, candidates: Candidates, channels: Tensor, rate: int
    ) -> dict[str, Tensor]:
        """A window's masks from its candidates (B = 1), applied to its channels [C, T']."""
        weights = self.weights(piece, candidates)
        masks = self.mask.estimate(piece, candidates, weights)
        own = {name: mask[0] for name, mask in masks.items()}
        return self.mask.apply(channels, own, rate / self.sample_rate)

    def _raw(
        self, piece: Tensor, candidates: Candidates, channels: Tensor, rate: int
    ) -> dict[str, Tensor]:
        """A window's selected decodes, at the rate of its channels [C, T'], the same on all."""
        selected = self.selection(piece, candidates)
        stems = {}
        for name, audio in candidates.audio.items():
            decoded = self.alpha[name] * audio[0, selected[name][0]]
            at_rate = audio_io.resample(decoded, self.sample_rate, rate, length=channels.shape[-1])
            stems[name] = at_rate.expand_as(channels)
        return stems

    def _decode(self, codes: Tensor) -> Tensor:
        """Audio [B, N, T * hop] of codes [B, N, T], some at a time."""
        flat = codes.flatten(0, 1)
        size = max(1, _DECODE_SAMPLES // (flat.shape[1] * self.codec.config.hop))
        return torch.cat([self.codec.decode(c).float().cpu() for c in flat.split(size)]).unflatten(
            0, codes.shape[:2]
        )


def _delayed(audio: Tensor, samples: int) -> Tensor:
    """[B, T] moved later by `samples`: zeros come in, the end drops out."""
    return F.pad(audio, (samples, 0))[:, : audio.shape[1]]


def _advanced(audio: Tensor, offsets: list[int]) -> Tensor:
    """[B * S, n, T] moved earlier again, [B, S * n, T]; what dropped out is silent."""
    parts = audio.unflatten(0, (-1, len(offsets))).unbind(1)  # S of [B, n, T]
    length = audio.shape[2]
    moved = [F.pad(x[..., k:], (0, k))[..., :length] for x, k in zip(parts, offsets, strict=True)]
    return torch.cat(moved, 1)
