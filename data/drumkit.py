"""Play MIDI drums with the one-shot samples of a kit in Hydrogen's format."""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pretty_midi
import soundfile
import soxr

from data.hydrogen import DESCRIPTION, Instrument, Kit, Layer
from jukebox_core.checks import one_line

_FADE_SECONDS = 0.01  # of a sound that another one of its mute group ends


class _Kind(NamedTuple):
    """A kind of drum: its notes in General MIDI, its names, and notes that may replace it."""

    notes: tuple[int, ...]
    names: str  # a regular expression
    instead: tuple[int, ...] = ()


_KINDS = (  # a name is of the first kind that fits
    _Kind((), r"\b(roll|flam|swish|choke|semi)"),  # not what a note of General MIDI means
    _Kind((56,), r"cow ?bell"),
    _Kind((54,), r"tamb"),
    _Kind((70, 69, 82), r"shaker|maraca|cabasa"),
    _Kind((39,), r"clap", (38, 40, 37)),
    _Kind((44,), r"(?=.*(hat|hh))(?=.*\b(pedal|foot|pd\b))", (42, 46)),
    _Kind((46,), r"(?=.*(hat|hh))(?=.*\bop)|\bohh?\b", (42, 44)),
    _Kind((42,), r"hi-?hat|\bhats?\b|hh\b", (44, 46)),
    _Kind((36, 35), r"kick|bass ?drum|\bbd"),
    _Kind((37,), r"stick|^rim", (38, 40, 39)),
    _Kind((38, 40), r"snare|\bsd|\bsn\b", (39, 37)),
    _Kind((41, 43), r"(?=.*\btom)(?=.*(low|\blo\b|floor))", (45, 47, 48, 50)),
    _Kind((50, 48), r"(?=.*\btom)(?=.*\bhi)", (47, 45, 43, 41)),
    _Kind((45, 47), r"\btom", (43, 41, 48, 50)),
    _Kind((53,), r"\bbell", (51, 59, 49, 57)),
    _Kind((51, 59), r"ride", (53, 49, 57)),
    _Kind((55,), r"splash", (49, 57, 52, 51)),
    _Kind((52,), r"china|chinese", (49, 57, 55, 51)),
    _Kind((49, 57), r"crash|cymbal", (52, 55, 51, 59)),
)
_KIND_OF = {note: kind for kind in _KINDS for note in kind.notes}
_HATS = (42, 44, 46)


@dataclass
class _Voice:
    """A note that sounds from sample `start`, and fades out from sample `end`."""

    start: int
    velocity: float
    instrument: Instrument
    end: int | None = None


class Drumkit:
    """Plays notes with the samples of a Hydrogen drum kit.

    A sample plays to its end, at the gain of the kit times the velocity. A sound of a mute group
    ends the others of its group; hi-hats without a group are one. Panning, envelopes and filters
    of the kit are not applied.

    A note plays the instrument that `notes_of` gives it.

    Args:
        path: A folder with drumkit.xml, or a .h2drumkit archive.
        sample_rate: Of the audio it makes.

    Raises:
        FileNotFoundError: There is no such kit.
        ValueError: Its description or archive cannot be used.
    """

    def __init__(self, path: Path, sample_rate: int = 44100):
        self.kit = Kit(path)
        self.sample_rate = sample_rate
        self._by_note = notes_of(self.kit.instruments)
        self._groups: dict[Instrument, int | str] = {
            instrument: "hats" if instrument.mute_group is None else instrument.mute_group
            for note, instrument in self._by_note.items()
            if instrument.mute_group is not None or note in _HATS
        }
        self._samples: dict[tuple[str, float], np.ndarray] = {}

    @property
    def notes(self) -> frozenset[int]:
        """MIDI notes that sound."""
        return frozenset(self._by_note)

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the kit's content, after a check that every sample can be played.

        Raises:
            ValueError: A sample is damaged.
        """
        total = hashlib.sha256(self.kit.read(DESCRIPTION))
        for name in self.kit.files:
            self._decoded(name)
            total.update(hashlib.sha256(self.kit.read(name)).digest())
        return total.hexdigest()

    def __call__(self, instruments: Sequence[pretty_midi.Instrument], samples: int) -> np.ndarray:
        """Play the notes of the instruments together.

        Args:
            instruments: With notes in seconds; controllers and the ends of notes have no effect.
            samples: Length of the audio; what sounds on after it is cut.

        Returns:
            `[samples]` float32.
        """
        audio = np.zeros(samples, dtype=np.float32)
        for voice in self._voices(instruments, samples):
            velocity = voice.velocity if voice.instrument.follows_velocity else 1.0
            for layers in voice.instrument.components:
                layer = _layer_at(voice.velocity, layers)
                wave = self._sample(layer)[: samples - voice.start]
                wave = wave * np.float32(velocity * layer.gain)
                if voice.end is not None:
                    wave = self._faded(wave, voice.end - voice.start)
                audio[voice.start : voice.start + len(wave)] += wave
        return audio

    def _voices(self, instruments: Sequence[pretty_midi.Instrument], samples: int) -> list[_Voice]:
        """Return the notes that sound, in order, each with the end that its group gives it."""
        notes = sorted(
            (max(0, round(note.start * self.sample_rate)), note.pitch, note.velocity)
            for instrument in instruments
            for note in instrument.notes
        )
        voices = []
        ringing: dict[int | str, list[_Voice]] = {}
        for start, pitch, velocity in notes:
            instrument = self._by_note.get(pitch)
            if instrument is None or start >= samples:
                continue
            voice = _Voice(start, velocity / 127, instrument)
            voices.append(voice)
            if instrument in self._groups:
                group = ringing.setdefault(self._groups[instrument], [])
                for other in group:
                    if other.instrument is not instrument and other.start < start:
                        other.end = start
                group[:] = [*(other for other in group if other.end is None), voice]
        return voices

    def _faded(self, wave: np.ndarray, at: int) -> np.ndarray:
        """Fade a wave out from sample `at`, in place; it is cut where it has become silent."""
        length = max(1, round(_FADE_SECONDS * self.sample_rate))
        tail = wave[at : at + length]
        tail *= np.linspace(1, 0, length, endpoint=False, dtype=np.float32)[: len(tail)]
        return wave[: at + length]

    def _sample(self, layer: Layer) -> np.ndarray:
        """Return a layer's sample `[T]` float32, mono, at this rate and the layer's pitch."""
        key = layer.file, layer.pitch
        if key not in self._samples:
            wave, rate = self._decoded(layer.file)
            played = rate * 2 ** (layer.pitch / 12)  # a higher pitch is a faster playback
            if played != self.sample_rate:
                wave = soxr.resample(wave, played, self.sample_rate, quality="VHQ")
            self._samples[key] = wave
        return self._samples[key]

    def _decoded(self, name: str) -> tuple[np.ndarray, int]:
        """Return a sample file `[T]` float32, the mean of its channels, and its rate."""
        try:
            content = io.BytesIO(self.kit.read(name))
            wave, rate = soundfile.read(content, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            raise ValueError(
                f"drum kit {self.kit.path} cannot be used: its file {name!r} is not audio "
                f"({one_line(error)})"
            ) from error
        if not np.isfinite(wave).all():
            raise ValueError(
                f"drum kit {self.kit.path} cannot be used: its file {name!r} has samples that are "
                "NaN or infinite"
            )
        return wave.mean(axis=1), rate


def notes_of(instruments: Sequence[Instrument]) -> dict[int, Instrument]:
    """Return the instrument that plays each MIDI note; other notes are silent.

    Kits order their drums differently, so the name decides: an instrument keeps its note unless
    General MIDI has another kind of drum there, else it gets the first free note of its kind. One
    with an unknown name keeps its note if that is free, but is no kick, snare, tom, hi-hat or
    cymbal in a kit whose kick has a known name. A kick, snare, tom, hi-hat or cymbal that
    the kit lacks is replaced by another of its kind, then by the most similar kind that it has.
    """
    placed: dict[int, Instrument] = {}
    unknown, elsewhere = [], []
    for instrument in instruments:
        kind = _kind_named(instrument.name)
        if kind is None:
            unknown.append(instrument)
        elif instrument.note in kind.notes:
            placed.setdefault(instrument.note, instrument)
        else:
            elsewhere.append((kind, instrument))
    for kind, instrument in elsewhere:
        free = [note for note in kind.notes if note not in placed]
        if free:
            placed[free[0]] = instrument
    has_kick = 36 in placed or 35 in placed
    for instrument in unknown:
        if not (has_kick and instrument.note in _KIND_OF):
            placed.setdefault(instrument.note, instrument)
    replaced = {}
    for note in _KIND_OF.keys() - placed.keys():
        kind = _KIND_OF[note]
        if there := [other for other in kind.notes + kind.instead if other in placed]:
            replaced[note] = placed[there[0]]
    return placed | replaced


def _kind_named(name: str) -> _Kind | None:
    spelled = name.lower().replace("_", " ")
    return next((kind for kind in _KINDS if re.search(kind.names, spelled)), None)


def _layer_at(velocity: float, layers: Sequence[Layer]) -> Layer:
    """Return the first layer that holds a velocity, or the nearest: kits leave small gaps."""
    return min(layers, key=lambda layer: max(layer.low - velocity, velocity - layer.high, 0.0))
