"""The sounds of songs: soundfonts and drum kits, found by path or by Debian package.

A song draws one soundfont for its bass, one for its drums and one for all other instruments, or a
kit of samples for its drums. Each draw has its own random stream: other parts do not change it.
"""

from __future__ import annotations

import functools
import multiprocessing
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pretty_midi

from data.drumkit import Drumkit
from data.hydrogen import ARCHIVE, DESCRIPTION, find_kits
from data.layout import inst_class
from data.midi import HELD_OUT_BASS, HELD_OUT_KITS
from data.render import EMBEDDED_SOUNDFONT, KIT_BANK, Renderer, check_header
from jukebox_core.files import sha256

SOUNDFONT_PACKAGES = {
    "fluidr3mono-gm-soundfont": "usr/share/sounds/sf3/FluidR3Mono_GM.sf3",
    "fluid-soundfont-gm": "usr/share/sounds/sf2/FluidR3_GM.sf2",
    "musescore-general-soundfont-small": "usr/share/sounds/sf3/MuseScore_General_Lite.sf3",
    "avldrums.lv2-soundfont": "usr/share/sounds/sf2/*_4_LV2.sf2",
    "timgm6mb-soundfont": "usr/share/sounds/sf2/TimGM6mb.sf2",
}
"""Soundfonts of Debian packages; a pattern may stand for several."""

DRUMKIT_PACKAGE = ("hydrogen-drumkits", "usr/share/hydrogen/data/drumkits")
"""A Debian package of drum kits, and its folder."""

INSTALLED = "installed"
EMBEDDED = "embedded"
_ROOT = Path("/")
_BASSES = range(32, 40)
_SAMPLED_SHARE = 0.5  # of the songs have drums of a sample kit, if there are any


def find_soundfonts(wanted: Sequence[str | Path]) -> tuple[str, ...]:
    """Return the paths of soundfonts.

    Args:
        wanted: Paths, names of `SOUNDFONT_PACKAGES`, `embedded` for the one inside pretty_midi, or
            `installed` for this one and those of all packages that are installed.

    Raises:
        FileNotFoundError: A package is not installed; for `installed`, none is.
        ValueError: `wanted` is empty.
    """
    if not wanted:
        names = ", ".join((INSTALLED, EMBEDDED, *SOUNDFONT_PACKAGES))
        raise ValueError(f"soundfont is empty, expected paths or some of {names}")
    found: list[Path] = []
    for name in map(str, wanted):
        if name == INSTALLED:
            fonts = [font for package in SOUNDFONT_PACKAGES for font in _package_files(package)]
            if not fonts:
                raise _not_installed("soundfont", *SOUNDFONT_PACKAGES)
            found += [EMBEDDED_SOUNDFONT, *(font for font in fonts if not _is_embedded(font))]
        elif name == EMBEDDED:
            found.append(EMBEDDED_SOUNDFONT)
        elif name in SOUNDFONT_PACKAGES:
            fonts = _package_files(name)
            if not fonts:
                raise _not_installed("soundfont", name)
            found += fonts
        else:
            found.append(Path(name))
    return tuple(dict.fromkeys(map(str, found)))


def find_drumkits(wanted: Sequence[str | Path]) -> tuple[str, ...]:
    """Return the paths of drum kits.

    Args:
        wanted: Kits, folders to search for kits, or `installed` for Debian's package of kits.

    Raises:
        FileNotFoundError: There is no such kit or folder; the package is not installed.
        ValueError: A folder has no kits, or `wanted` is empty.
    """
    if not wanted:
        raise ValueError(f"drumkit is empty, expected folders, kits or {INSTALLED}")
    found: list[Path] = []
    for name in map(str, wanted):
        package, inside = DRUMKIT_PACKAGE
        path = _ROOT / inside if name == INSTALLED else Path(name)
        if not path.exists():
            if name == INSTALLED:
                raise _not_installed("drumkit", package)
            raise FileNotFoundError(f"there is no drumkit or folder {path}")
        kits = find_kits(path) if path.is_dir() else [path]
        if not kits:
            raise ValueError(f"drumkit {path} has no kits: no {DESCRIPTION} and no *{ARCHIVE}")
        found += kits
    return tuple(dict.fromkeys(map(str, found)))


def _package_files(package: str) -> list[Path]:
    return sorted(_ROOT.glob(SOUNDFONT_PACKAGES[package]))


def _not_installed(kind: str, *packages: str) -> FileNotFoundError:
    listed = ", ".join(packages)
    return FileNotFoundError(
        f"{kind}: no file of the Debian package{'s' * (len(packages) > 1)} {listed} is installed: "
        f"apt install {packages[0]}"
    )


@functools.cache
def _is_embedded(soundfont: Path) -> bool:
    """Return whether a soundfont is the embedded one, or its edition in Debian: by its own name."""
    with open(soundfont, "rb") as file:
        return b"TimGM6mb" in file.read(256)


class Sound(NamedTuple):
    """What plays a stem."""

    name: str
    play: Callable[[Sequence[pretty_midi.Instrument], int], np.ndarray]


class SongSounds(NamedTuple):
    """The sounds of a song, by family: bass, drums, others."""

    sample_rate: int
    by_family: dict[str, Sound]

    def __call__(self, instruments: Sequence[pretty_midi.Instrument], samples: int) -> np.ndarray:
        """Play a stem's instruments together: `[samples]` float32."""
        return self.by_family[_family(instruments)].play(instruments, samples)

    def name(self, instruments: Sequence[pretty_midi.Instrument]) -> str:
        """Return the name of what plays a stem."""
        return self.by_family[_family(instruments)].name


@dataclass(frozen=True)
class Sources:
    """The soundfonts and drum kits that songs draw from.

    Args:
        sample_rate: Of the audio.
        soundfonts: Paths; none is the embedded soundfont.
        drumkits: Paths of sample kits, which half of the songs have instead of a soundfont's.
        any_program: Basses and kits are drawn from all of the soundfont, whatever the notes ask
            for. The held-out ones of the embedded soundfont stay held out.
    """

    sample_rate: int
    soundfonts: tuple[str, ...] = ()
    drumkits: tuple[str, ...] = ()
    any_program: bool = False

    @property
    def fonts(self) -> list[Renderer]:
        """The soundfonts, loaded."""
        return [_renderer(self.sample_rate, font) for font in self.soundfonts or (None,)]

    @property
    def memory(self) -> int:
        """Bytes of memory that all of them take when they are loaded."""
        fonts = sum(_soundfont_bytes(Path(font)) for font in self.soundfonts)
        kits = sum(_drumkit(self.sample_rate, kit).kit.size for kit in self.drumkits)
        return fonts + 2 * kits

    @property
    def record(self) -> dict[str, Any]:
        """The digests of all files; None for a setting that is not used.

        One soundfont is its digest, as in the records of earlier versions.
        """
        fonts = [[Path(font).name, sha256(font)] for font in self.soundfonts]
        kits = [[Path(kit).name, _drumkit(self.sample_rate, kit).digest] for kit in self.drumkits]
        return {
            "soundfont": fonts[0][1] if len(fonts) == 1 else fonts or None,
            "drumkit": kits or None,
            "programs": "all" if self.any_program else None,
        }

    def check(self) -> None:
        """Load everything once.

        Soundfonts are tried in another process, which a damaged one may crash.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A soundfont or kit is damaged, or a kit has no kick or no snare.
            ModuleNotFoundError: The synthesiser is not installed.
        """
        for font in self.soundfonts:
            check_header(Path(font))
        _renderer(self.sample_rate, None)  # its error names the missing package
        for path in self.drumkits:
            kit = _drumkit(self.sample_rate, path)
            if not kit.notes >= {36, 38}:
                raise ValueError(f"drumkit {path} has no kick or no snare (notes 36 and 38)")
            _ = kit.digest
        if not self.soundfonts:
            return
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            for font in self.soundfonts:
                try:
                    pool.submit(_check_soundfont, self.sample_rate, font).result()
                except BrokenProcessPool as error:
                    raise ValueError(
                        f"soundfont {font} is damaged: it crashes the synthesiser; use another"
                    ) from error

    def draw(
        self, groups: Sequence[Sequence[pretty_midi.Instrument]], seed: Sequence[int]
    ) -> SongSounds:
        """Draw the sounds of a song's stems; with `any_program`, change the programs to them.

        Args:
            groups: The instruments of each stem.
            seed: Integers >= 0. The same seed is the same draw.
        """
        families: dict[str, list[pretty_midi.Instrument]] = {}
        for group in groups:
            families.setdefault(_family(group), []).extend(group)
        sounds = {}
        for family, instruments in families.items():
            rng = np.random.default_rng([*seed, zlib.crc32(f"sound of {family}".encode())])
            sounds[family] = self._draw(family, instruments, rng)
        return SongSounds(self.sample_rate, sounds)

    def _draw(
        self, family: str, instruments: list[pretty_midi.Instrument], rng: np.random.Generator
    ) -> Sound:
        if family == "drums" and self.drumkits and rng.random() < _SAMPLED_SHARE:
            kit = _drumkit(self.sample_rate, self.drumkits[rng.integers(len(self.drumkits))])
            return Sound(kit.kit.path.name, kit)
        if self.any_program and family != "others":
            fonts = [font for font in self.fonts if _choices(font, family)] or [self._embedded]
            font = fonts[rng.integers(len(fonts))]
            choices = _choices(font, family)
            bank, program = choices[rng.integers(len(choices))]
            for instrument in instruments:
                instrument.program = program
            name = f"{font.soundfont.name} {bank}:{program} {font.presets[bank, program]}"
            return Sound(name, functools.partial(font, bank=bank))
        if family == "drums":  # the first kit replaces one that a soundfont lacks
            wanted = {(KIT_BANK, 0)}
        else:
            wanted = {(0, int(instrument.program)) for instrument in instruments}
        fonts = (
            [font for font in self.fonts if wanted <= font.presets.keys()]
            or [font for font in self.fonts if (0, 0) in font.presets and family != "drums"]
            or [self._embedded]
        )
        font = fonts[rng.integers(len(fonts))]
        return Sound(font.soundfont.name, font)

    @property
    def _embedded(self) -> Renderer:
        return _renderer(self.sample_rate, None)


def _choices(font: Renderer, family: str) -> list[tuple[int, int]]:
    """Return the (bank, program) of all drum kits or basses of a soundfont, in order."""
    if family == "drums":
        found = [(KIT_BANK, kit) for kit in font.kits]
    else:
        found = [(bank, x) for bank, x in font.presets if bank < KIT_BANK and x in _BASSES]
    held_out: tuple[int, ...] = ()
    if _is_embedded(font.soundfont):
        held_out = HELD_OUT_KITS if family == "drums" else HELD_OUT_BASS
    return [(bank, program) for bank, program in found if program not in held_out]


def _family(instruments: Sequence[pretty_midi.Instrument]) -> str:
    first = instruments[0]
    name = inst_class(first.program, first.is_drum)
    return {"Drums": "drums", "Bass": "bass"}.get(name, "others")


def _soundfont_bytes(soundfont: Path) -> int:
    """Estimate a loaded soundfont: float32 samples, of 16 bits in sf2 and of Vorbis in sf3."""
    return soundfont.stat().st_size * (15 if soundfont.suffix.lower() == ".sf3" else 2)


def _check_soundfont(sample_rate: int, soundfont: str) -> None:
    Renderer(sample_rate, Path(soundfont)).check()


@functools.cache  # loading takes time
def _renderer(sample_rate: int, soundfont: str | None) -> Renderer:
    return Renderer(sample_rate, None if soundfont is None else Path(soundfont))


@functools.cache
def _drumkit(sample_rate: int, path: str) -> Drumkit:
    return Drumkit(Path(path), sample_rate)
