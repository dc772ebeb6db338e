"""Render MIDI to audio with the General MIDI soundfont of pretty_midi.

The same notes are the same bytes in every run: the synthesiser has no noise and no reverb, and
starts every rendering from the same state.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import scipy.fft

EMBEDDED_SOUNDFONT = Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")
"""The soundfont inside pretty_midi."""

KIT_BANK = 128
"""The bank of a soundfont that holds its drum kits."""

_AVL_KITS = ("Black_Pearl_4_LV2.sf2", "Red_Zeppelin_4_LV2.sf2")
_AVL_NOTES = {35: 36, 48: 47, 50: 47}  # no second kick and high toms: other sounds are there

_BLOCK_SECONDS = 0.4
_BYTES_PER_FRAME = 8  # two float32 channels
_CONTROL, _BEND, _NOTE_OFF, _NOTE_ON = range(4)  # the order of events at one sample


class Renderer:
    """A synthesiser with a soundfont.

    Args:
        sample_rate: Of the audio it makes.
        soundfont: An sf2 or sf3 file; None is the one inside pretty_midi (TimGM6mb).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a soundfont, or is truncated.
    """

    def __init__(self, sample_rate: int = 44100, soundfont: Path | None = None):
        try:
            import tinysoundfont
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "tinysoundfont, which renders the audio, is not installed: "
                "pip install --no-deps tinysoundfont"
            ) from error
        self.sample_rate = sample_rate
        self.soundfont = soundfont or EMBEDDED_SOUNDFONT
        check_header(self.soundfont)
        self._scratch = bytearray()  # reused: new memory takes as long as a quiet stem
        self._synth: Any = tinysoundfont.Synth(samplerate=sample_rate)
        try:
            self._font = self._synth.sfload(str(self.soundfont))
        except Exception as error:  # the type depends on its version
            raise ValueError(
                f"{self.soundfont} is not an sf2 or sf3 soundfont ({error})"
            ) from error

    @functools.cached_property
    def presets(self) -> dict[tuple[int, int], str]:
        """The names of the soundfont's presets by bank and program.

        The AVL drum kits have theirs in bank 0, where other soundfonts have a piano.
        """
        names = {
            (bank, program): self._synth.sfpreset_name(self._font, bank, program)
            for bank in range(KIT_BANK + 1)
            for program in range(128)
        }
        present = {preset: name for preset, name in names.items() if name is not None}
        if self.soundfont.name in _AVL_KITS:
            return {(KIT_BANK, program): name for (_, program), name in present.items()}
        return present

    @functools.cached_property
    def kits(self) -> list[int]:
        """Programs of the drum kits that have a kick, a snare and a hi-hat: no marching kits."""
        programs = [program for bank, program in self.presets if bank == KIT_BANK]
        return [
            program
            for program in programs
            if all(self._plays(program, pitch) for pitch in (36, 38, 42))
        ]

    def _plays(self, kit: int, pitch: int) -> bool:
        drum = pretty_midi.Instrument(kit, is_drum=True)
        drum.notes = [pretty_midi.Note(100, pitch, 0.0, 0.1)]
        return float(np.abs(self([drum], round(0.1 * self.sample_rate))).max()) > 1e-3

    def check(self) -> None:
        """Play a note of every preset; the synthesiser crashes on some damaged soundfonts."""
        for bank, program in self.presets:
            preset = pretty_midi.Instrument(program, is_drum=bank == KIT_BANK)
            pitches = range(27, 88) if preset.is_drum else (36, 60, 84)
            preset.notes = [pretty_midi.Note(100, pitch, 0.0, 0.01) for pitch in pitches]
            self([preset], round(0.02 * self.sample_rate), bank)

    def __call__(
        self, instruments: Sequence[pretty_midi.Instrument], samples: int, bank: int = 0
    ) -> np.ndarray:
        """Play the instruments together.

        Args:
            instruments: With notes, controllers and pitch bends in seconds.
            samples: Length of the audio; what sounds on after it is cut.
            bank: Where the presets of instruments other than drums are.

        Returns:
            `[samples]` float32, the mean of left and right.
        """
        audio = np.zeros(samples, dtype=np.float32)
        for instrument in instruments:  # one at a time: no limit of sixteen channels
            audio += self._play(instrument, samples, KIT_BANK if instrument.is_drum else bank)
        return audio

    def _play(self, instrument: pretty_midi.Instrument, samples: int, bank: int) -> np.ndarray:
        synth = self._synth
        self._select(bank, instrument.program)
        if len(self._scratch) < samples * _BYTES_PER_FRAME:
            self._scratch = bytearray(samples * _BYTES_PER_FRAME)
        buffer = memoryview(self._scratch)[: samples * _BYTES_PER_FRAME]
        done = 0
        notes = _AVL_NOTES if self.soundfont.name in _AVL_KITS else {}
        for at, kind, first, second in _events(instrument, self.sample_rate):
            if at >= samples:
                break
            if at > done:
                window = buffer[done * _BYTES_PER_FRAME : at * _BYTES_PER_FRAME]
                synth.generate_simple(at - done, window)
                done = at
            if kind == _NOTE_ON:
                synth.noteon(0, notes.get(first, first), second)
            elif kind == _NOTE_OFF:
                synth.noteoff(0, notes.get(first, first))
            elif kind == _BEND:
                synth.pitchbend(0, first)
            else:
                synth.control_change(0, first, second)
        if done < samples:
            synth.generate_simple(samples - done, buffer[done * _BYTES_PER_FRAME :])
        self._rest()
        sides = np.frombuffer(buffer, dtype=np.float32)
        return (sides[::2] + sides[1::2]) * np.float32(0.5)

    def _select(self, bank: int, program: int) -> None:
        """Select the preset; the first one replaces a kit or program that the soundfont lacks."""
        if self._synth.sfpreset_name(self._font, bank, int(program)) is None:
            program = 0
        self._synth.program_select(0, self._font, bank, int(program), bank == KIT_BANK)

    def _rest(self) -> None:
        """Reset the synthesiser: no voices, no controllers."""
        self._synth.sounds_off()
        self._synth.generate_simple(self.sample_rate)  # voices end within their quick release
        self._synth.soundfonts[self._font].reset()


def check_header(soundfont: Path) -> None:
    """Refuse a file that is not a soundfont, or is shorter than its header states.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a soundfont, or is truncated.
    """
    if not soundfont.is_file():
        raise FileNotFoundError(f"there is no soundfont {soundfont}")
    with open(soundfont, "rb") as file:
        header = file.read(12)
    if header[:4] != b"RIFF" or header[8:] != b"sfbk":
        raise ValueError(f"{soundfont} is not an sf2 or sf3 soundfont")
    size, expected = soundfont.stat().st_size, 8 + int.from_bytes(header[4:8], "little")
    if size < expected:
        raise ValueError(
            f"{soundfont} is a truncated soundfont: it has {size:,} of {expected:,} bytes; "
            "copy it again"
        )


def _events(
    instrument: pretty_midi.Instrument, sample_rate: int
) -> list[tuple[int, int, int, int]]:
    """Return (sample, kind, first value, second value) in playing order."""

    def at(seconds: float) -> int:
        return max(0, round(seconds * sample_rate))

    events = [(at(c.time), _CONTROL, c.number, c.value) for c in instrument.control_changes]
    events += [(at(bend.time), _BEND, bend.pitch + 8192, 0) for bend in instrument.pitch_bends]
    for note in instrument.notes:
        start = at(note.start)
        events.append((start, _NOTE_ON, note.pitch, note.velocity))
        # its end must not come first
        events.append((max(start + 1, at(note.end)), _NOTE_OFF, note.pitch, 0))
    # controllers keep their order: a parameter's number comes before its value
    return sorted(events, key=lambda event: event if event[1] >= _NOTE_OFF else event[:2])


def block_powers(audio: np.ndarray, sample_rate: int, *, weighted: bool = False) -> np.ndarray:
    """Return the mean square of each 0.4 s of audio `[T]`, `[blocks]`; shorter audio is one block.

    Args:
        audio: `[T]`.
        sample_rate: Its rate.
        weighted: After the K filter of ITU-R BS.1770 (in the frequency domain, block by block).
    """
    length = min(len(audio), round(_BLOCK_SECONDS * sample_rate))
    blocks = audio[: len(audio) // length * length].reshape(-1, length)
    if not weighted:
        return np.einsum("bt,bt->b", blocks, blocks) / length
    spectrum = scipy.fft.rfft(blocks.astype(np.float32, copy=False))
    response = 2 * _k_weighting(scipy.fft.rfftfreq(length, 1 / sample_rate))  # both signs of f
    response[0] = 0  # the high-pass removes constants
    if length % 2 == 0:
        response[-1] /= 2
    return (spectrum.real**2 + spectrum.imag**2) @ (response / length**2)


def _k_weighting(frequencies: np.ndarray) -> np.ndarray:
    """Return the power response of BS.1770's shelf and high-pass filters, defined at 48 kHz."""
    z = np.exp(-2j * np.pi * np.minimum(frequencies, 24000) / 48000)
    shelf = np.polyval([1.19839281085285, -2.69169618940638, 1.53512485958697], z)
    shelf = shelf / np.polyval([0.73248077421585, -1.69065929318241, 1.0], z)
    high_pass = np.polyval([1.0, -2.0, 1.0], z)
    high_pass = high_pass / np.polyval([0.99007225036621, -1.99004745483398, 1.0], z)
    return np.square(np.abs(shelf * high_pass))


def loudness(audio: np.ndarray, sample_rate: int) -> float:
    """Return the integrated loudness in LUFS by ITU-R BS.1770, over blocks without overlap.

    `[T]` audio; -inf where no block passes the gate of -70 LUFS.
    """
    powers = block_powers(audio, sample_rate, weighted=True)
    gate = 10 ** ((-70 + 0.691) / 10)
    powers = powers[powers > gate]
    if len(powers) == 0:
        return -np.inf
    powers = powers[powers > powers.mean() / 10]  # the second gate, 10 LU below
    return float(-0.691 + 10 * np.log10(powers.mean()))
