"""Production effects on mono audio: a random chain of studio effects.

    production = Production.draw(np.random.default_rng(seed))
    processed = production(audio, sample_rate)

An effect is a frozen dataclass; calling it processes audio `[T]` at any sample rate and returns
`[T]`. `Production` is a chain of effects that keeps the RMS, so that levels are set elsewhere. Most
draws are mild, some are strong; the range of each number is in the effect's `draw`.

scipy filters and convolves, soxr resamples. We use no effects library: audiomentations (MIT) draws
from Python's global random state and has no compressor, and its reverb needs recorded impulse
responses; pedalboard is under the GPL.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import scipy  # imports scipy.signal, which takes long, when it is used
import soxr

from jukebox_core.audio.transposition import ratio
from jukebox_core.checks import require_fields

EffectName = Literal["detuning", "compression", "eq", "saturation", "width", "reverb"]


class Effect(Protocol):
    """A change of audio."""

    probability: ClassVar[float]
    """Share of the drawn productions that have the effect."""

    def __call__(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Process audio `[T]`; returns `[T]` float64."""
        ...


@dataclass(frozen=True)
class Detuning:
    """Another tuning at the same tempo.

    The resampled audio is cut into pieces of half a second, each placed where it was before (SOLA,
    Roucos and Wilgus 1985: within 13 ms, where it fits the end of the last piece best). Resampling
    without that would let the stems of a song drift apart.
    """

    cents: float
    """Hundredths of a semitone, up or down."""

    probability: ClassVar[float] = 0.4

    def __post_init__(self) -> None:
        require_fields(self, "cents", at_least=-1200, at_most=1200)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Detuning:
        """Up to 50 cents either way, half of the draws within 12.5."""
        return cls(_signed(rng, 50))

    def __call__(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Process audio `[T]`."""
        factor = ratio(self.cents / 100)
        hop, fade, reach = (math.ceil(seconds * sample_rate) for seconds in (0.5, 0.03, 0.0125))
        margin = math.ceil(factor * (reach + fade) + (hop + fade) * abs(factor - 1)) + 4
        padded = np.pad(np.asarray(audio, np.float64), margin, mode="reflect")
        faster = soxr.resample(padded, factor, 1.0, quality="HQ")
        rising = np.arange(1, fade + 1) / (fade + 1)
        result = np.zeros(len(audio))
        place = 0
        for start in range(0, len(audio), hop):
            # the middle of the piece is where it was in the padded audio
            planned = round((start + hop / 2 + margin) / factor - hop / 2)
            if start == 0:
                place = planned
            else:
                ending = faster[place + hop : place + hop + fade]
                place = (
                    planned
                    - reach
                    + _best_fit(faster[planned - reach : planned + reach + fade], ending)
                )
            piece = faster[place : place + min(hop + fade, len(audio) - start)]
            overlap = min(fade, len(piece)) if start else 0
            end = start + overlap
            result[start:end] += rising[:overlap] * (piece[:overlap] - result[start:end])
            result[end : start + len(piece)] = piece[overlap:]
        return result


def _best_fit(audio: np.ndarray, piece: np.ndarray) -> int:
    """Return the place in audio where it differs least from a piece, in the sum of squares."""
    energy = np.convolve(np.square(audio), np.ones(len(piece)), "valid")
    return int(np.argmin(energy - 2 * np.correlate(audio, piece, "valid")))


@dataclass(frozen=True)
class Compressor:
    """A feed-forward compressor (Giannoulis et al. 2012).

    Blocks of 3 ms have a level; the gain reduction that the static curve demands is smoothed with
    the attack while it grows and with the release while it falls, and interpolated between blocks.
    """

    threshold_db: float
    """Relative to the RMS of the audio."""
    ratio: float
    """Decibels above the threshold per decibel that remains; 1 does nothing."""
    attack: float
    """Time constant in seconds."""
    release: float
    """Time constant in seconds."""
    knee_db: float = 6.0
    """Width of the transition, centred at the threshold."""

    probability: ClassVar[float] = 0.6

    def __post_init__(self) -> None:
        require_fields(self, "threshold_db")
        require_fields(self, "ratio", at_least=1)
        require_fields(self, "attack", "release", "knee_db", at_least=0)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Compressor:
        """Threshold -12 to 6 dB, ratio 1.5 to 10, attack 1 to 50 ms, release 40 to 400 ms."""
        return cls(
            threshold_db=rng.uniform(-12, 6),
            ratio=_mild(rng, 1.5, 10),
            attack=_logarithmic(rng, 0.001, 0.05),
            release=_logarithmic(rng, 0.04, 0.4),
        )

    def __call__(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Process audio `[T]`."""
        audio = np.asarray(audio, np.float64)
        power = float(audio @ audio) / len(audio)
        if power == 0:
            return audio
        block = max(1, round(0.003 * sample_rate))
        starts = np.arange(0, len(audio), block)
        ends = np.minimum(starts + block, len(audio))
        powers = np.add.reduceat(np.square(audio), starts) / (ends - starts)
        levels = 10 * np.log10(powers / power + 1e-12)
        reduction = self._smooth(self.reduction(levels), block / sample_rate)
        gains = 10 ** (-reduction / 20)
        return audio * np.interp(np.arange(len(audio)), (starts + ends - 1) / 2, gains)

    def reduction(self, levels: np.ndarray) -> np.ndarray:
        """Return the static curve: decibels to take away at levels relative to the RMS."""
        over = levels - self.threshold_db
        inside = np.square(np.clip(over + self.knee_db / 2, 0, self.knee_db))
        bent = np.where(
            over > self.knee_db / 2, over, inside / (2 * self.knee_db) if self.knee_db else 0.0
        )
        return (1 - 1 / self.ratio) * bent

    def _smooth(self, targets: np.ndarray, seconds: float) -> np.ndarray:
        attack, release = (
            math.exp(-seconds / constant) if constant else 0.0
            for constant in (self.attack, self.release)
        )
        smoothed = []
        value = float(targets[0])
        for target in targets.tolist():
            value = target + (attack if target > value else release) * (value - target)
            smoothed.append(value)
        return np.array(smoothed)


@dataclass(frozen=True)
class Equaliser:
    """Shelves, a peak (Bristow-Johnson, Audio EQ Cookbook; shelves of slope 1) and a tilt.

    A band whose frequency is above 0.45 of the sample rate is left out.
    """

    low_hz: float = 100.0
    low_db: float = 0.0
    peak_hz: float = 1000.0
    peak_db: float = 0.0
    peak_q: float = 1.0
    high_hz: float = 5000.0
    high_db: float = 0.0
    tilt_db: float = 0.0
    """Slope of the whole spectrum in decibels per octave."""

    probability: ClassVar[float] = 0.8

    def __post_init__(self) -> None:
        require_fields(self, "low_hz", "peak_hz", "peak_q", "high_hz", above=0)
        require_fields(self, "low_db", "peak_db", "high_db", at_least=-60, at_most=60)
        require_fields(self, "tilt_db", at_least=-6, at_most=6)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Equaliser:
        """Shelves up to 9 dB (50 to 300 Hz, 2 to 8 kHz), peak up to 12 dB, tilt -4 to 1 dB/octave.

        The peak lies between 100 Hz and 5 kHz, with a Q of 0.5 to 3. Most tilts make the stem
        darker, since soundfonts are brighter than the stems of Slakh2100: half of these drums have
        90 % of their energy below 200 Hz.
        """
        return cls(
            low_hz=_logarithmic(rng, 50, 300),
            low_db=_signed(rng, 9),
            peak_hz=_logarithmic(rng, 100, 5000),
            peak_db=_signed(rng, 12),
            peak_q=_logarithmic(rng, 0.5, 3),
            high_hz=_logarithmic(rng, 2000, 8000),
            high_db=_signed(rng, 9),
            tilt_db=rng.uniform(-4, 1),
        )

    def __call__(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Process audio `[T]`."""
        audio = np.asarray(audio, np.float64)
        sections = self.sections(sample_rate)
        return scipy.signal.sosfilt(sections, audio) if len(sections) else audio

    def sections(self, sample_rate: int) -> np.ndarray:
        """Return the second-order sections `[N, 6]`, none for bands without effect."""
        bands = [
            (_shelf, self.low_hz, self.low_db, 1),
            (_peak, self.peak_hz, self.peak_db, self.peak_q),
            (_shelf, self.high_hz, self.high_db, -1),
        ]
        sections = [
            section(2 * math.pi * hertz / sample_rate, gain, shape)
            for section, hertz, gain, shape in bands
            if gain and hertz <= 0.45 * sample_rate
        ]
        return np.array(sections + _tilt(self.tilt_db, sample_rate)).reshape(-1, 6)


def _peak(angle: float, gain_db: float, q: float) -> list[float]:
    root, alpha, cosine = 10 ** (gain_db / 40), math.sin(angle) / (2 * q), math.cos(angle)
    numerator = [1 + alpha * root, -2 * cosine, 1 - alpha * root]
    denominator = [1 + alpha / root, -2 * cosine, 1 - alpha / root]
    return [value / denominator[0] for value in numerator + denominator]


def _shelf(angle: float, gain_db: float, sign: float) -> list[float]:
    """Return the section of a low shelf (sign 1) or a high shelf (-1)."""
    root, cosine = 10 ** (gain_db / 40), sign * math.cos(angle)
    width = math.sqrt(2 * root) * math.sin(angle)
    more, less = root + 1, root - 1
    numerator = [
        root * (more - less * cosine + width),
        root * (less - more * cosine) * 2 * sign,
        root * (more - less * cosine - width),
    ]
    denominator = [
        more + less * cosine + width,
        -2 * sign * (less + more * cosine),
        more + less * cosine - width,
    ]
    return [value / denominator[0] for value in numerator + denominator]


def _tilt(slope_db: float, sample_rate: int) -> list[list[float]]:
    """Return first-order sections, one per two octaves, that together have the slope.

    Each has a zero below and a pole above its frequency (or the reverse), so far apart that its
    step, spread over two octaves, is the slope (Smith and Smith 2016, spectral tilt filters).
    """
    sections = []
    hertz = 40.0
    while slope_db and hertz <= 0.24 * sample_rate:
        spread = 2 ** (slope_db / (20 * math.log10(2)))  # half of the distance of pole and zero
        zero, pole = (
            math.tan(math.pi * value / sample_rate) for value in (hertz / spread, hertz * spread)
        )
        section = [1 + zero, zero - 1, 0, 1 + pole, pole - 1, 0]
        sections.append([value / (1 + pole) for value in section])
        hertz *= 4
    return sections


@dataclass(frozen=True)
class Saturation:
    """A soft clipper, `tanh(g x) / g`, with `x` relative to its peak."""

    drive_db: float
    """The gain `g` in decibels."""

    probability: ClassVar[float] = 0.4

    def __post_init__(self) -> None:
        require_fields(self, "drive_db", at_least=-120, at_most=120)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Saturation:
        """Drive -6 dB (the peak loses 0.7 dB) to 15 dB, half of the draws below -0.75 dB."""
        return cls(_mild(rng, -6, 15))

    def __call__(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Process audio `[T]`."""
        audio = np.asarray(audio, np.float64)
        peak = float(np.abs(audio).max())
        if peak == 0:
            return audio
        gain = 10 ** (self.drive_db / 20) / peak
        return np.tanh(gain * audio) / gain


@dataclass(frozen=True)
class Width:
    """A stereo widener (Haas), folded to mono.

    Left is the source; right is cross-faded from the source to its delayed copy. Their mean has the
    notches of a comb filter.
    """

    delay: float
    """Seconds."""
    amount: float
    """Share of the delayed copy in the right channel; the notches have the gain `1 - amount`."""

    probability: ClassVar[float] = 0.3

    def __post_init__(self) -> None:
        require_fields(self, "delay", at_least=0, at_most=1)
        require_fields(self, "amount", at_least=0, below=1)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Width:
        """Delay 0.3 to 20 ms, amount 0.1 to 0.9."""
        return cls(_logarithmic(rng, 0.0003, 0.02), _mild(rng, 0.1, 0.9))

    def __call__(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Process audio `[T]`."""
        audio = np.asarray(audio, np.float64)
        delay = round(self.delay * sample_rate)
        delayed = np.concatenate([np.zeros(delay), audio])[: len(audio)]
        return audio + self.amount / 2 * (delayed - audio)


@dataclass(frozen=True)
class Reverb:
    """A room or a plate: noise that decays exponentially, added to the dry sound.

    A low density leaves single echoes, as in a small room (velvet noise, Karjalainen and
    Jarvelainen 2007); a high one is as smooth as a plate.
    """

    decay: float
    """Seconds until the response has fallen by 60 dB; it is cut there."""
    predelay: float
    """Seconds before the first echo."""
    damping_hz: float
    """Cut-off of a one-pole low-pass."""
    density: float
    """Mean number of echoes per second."""
    wet_db: float
    """Energy of the response relative to the dry sound."""
    seed: int
    """Of the noise."""

    probability: ClassVar[float] = 0.4

    def __post_init__(self) -> None:
        require_fields(self, "decay", above=0, at_most=10)
        require_fields(self, "predelay", at_least=0, at_most=1)
        require_fields(self, "damping_hz", "density", above=0)
        require_fields(self, "wet_db", at_least=-120, at_most=60)
        require_fields(self, "seed", whole=True, at_least=0)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Reverb:
        """Decay 0.1 to 1.2 s, predelay up to 20 ms, damping 2 to 10 kHz, level -26 to -4 dB.

        The density is 1,000 to 20,000 echoes per second.
        """
        return cls(
            decay=_logarithmic(rng, 0.1, 1.2),
            predelay=rng.uniform(0, 0.02),
            damping_hz=_logarithmic(rng, 2000, 10_000),
            density=_logarithmic(rng, 1000, 20_000),
            wet_db=_mild(rng, -26, -4),
            seed=int(rng.integers(2**32)),
        )

    def __call__(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Process audio `[T]`; what sounds on after its end is cut."""
        audio = np.asarray(audio, np.float64)
        wet = scipy.signal.oaconvolve(audio, self.response(sample_rate))[: len(audio)]
        return audio + wet

    def response(self, sample_rate: int) -> np.ndarray:
        """Return the impulse response of the echoes, without the dry sound."""
        rng = np.random.default_rng(self.seed)
        length = max(1, round(self.decay * sample_rate))
        echoes = rng.standard_normal(length) * (rng.random(length) < self.density / sample_rate)
        echoes[0] = 1.0  # never silence
        echoes *= 10 ** (-3 * np.arange(length) / length)
        pole = math.exp(-2 * math.pi * self.damping_hz / sample_rate)
        damped = scipy.signal.lfilter([1 - pole], [1, -pole], echoes)
        damped *= 10 ** (self.wet_db / 20) / np.linalg.norm(damped)
        return np.concatenate([np.zeros(round(self.predelay * sample_rate)), damped])


EFFECTS: dict[str, Any] = {
    "detuning": Detuning,
    "compression": Compressor,
    "eq": Equaliser,
    "saturation": Saturation,
    "width": Width,
    "reverb": Reverb,
}
"""The effects by name, in the order of the chain."""


@dataclass(frozen=True)
class Production:
    """A chain of effects, each present or not. It keeps the RMS, and silence."""

    detuning: Detuning | None = None
    compression: Compressor | None = None
    eq: Equaliser | None = None
    saturation: Saturation | None = None
    width: Width | None = None
    reverb: Reverb | None = None

    @classmethod
    def draw(
        cls, rng: np.random.Generator, effects: Collection[str] = tuple(EFFECTS)
    ) -> Production:
        """Draw every effect with its own probability.

        Args:
            rng: Source of the random numbers; how many are taken does not depend on `effects`.
            effects: Names of effects to keep; the others are drawn and left out, so that the rest
                is the same with and without them.

        Raises:
            ValueError: There is no such effect.
        """
        if unknown := set(effects) - set(EFFECTS):
            names = ", ".join(EFFECTS)
            raise ValueError(f"{min(unknown)!r} is no effect, expected some of {names}")
        drawn = {}
        for name, kind in EFFECTS.items():
            present = rng.random() < kind.probability
            effect = kind.draw(rng)
            if present and name in effects:
                drawn[name] = effect
        return cls(**drawn)

    @property
    def chain(self) -> dict[str, Effect]:
        """The effects that are present, in order."""
        return {name: effect for name in EFFECTS if (effect := getattr(self, name)) is not None}

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Return the parameters of the effects that are present."""
        return {name: asdict(getattr(self, name)) for name in self.chain}

    def __call__(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Process audio.

        Args:
            audio: `[T]`, T >= 1, of any level.
            sample_rate: Its rate in Hz.

        Returns:
            `[T]` of the same type and RMS; without effects, or silent, the same audio.

        Raises:
            ValueError: The audio has more dimensions, or no samples.
        """
        if audio.ndim != 1 or len(audio) == 0:
            raise ValueError(f"audio has the shape {audio.shape}, expected [T] with samples")
        processed = np.asarray(audio, np.float64)
        before = np.linalg.norm(processed)
        if not self.chain or before == 0:
            return audio
        for effect in self.chain.values():
            processed = effect(processed, sample_rate)
        after = np.linalg.norm(processed)
        return (processed * (before / after)).astype(audio.dtype) if after > 0 else audio


def _signed(rng: np.random.Generator, most: float) -> float:
    """Draw a number between -most and most, half of the draws within a quarter of it."""
    share = rng.uniform(-1, 1)
    return most * share * abs(share)


def _mild(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between low and high, half of the draws in the lowest quarter."""
    return low + (high - low) * rng.random() ** 2


def _logarithmic(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between low and high, uniformly on a logarithmic scale."""
    return low * (high / low) ** rng.random()
