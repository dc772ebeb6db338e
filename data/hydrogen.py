"""Read drum kits of one-shot samples in the format of the drum machine Hydrogen.

A kit is a folder, or a tar archive `.h2drumkit` of one, with sample files and `drumkit.xml`, which
lists instruments and the velocity layers of each. Kits are untrusted input: a description with a
document type is refused, files are read only from inside the kit, and archives are not extracted.

Format: https://github.com/hydrogen-music/hydrogen/wiki/Drumkit-format and Hydrogen's drumkit.xsd.
"""

from __future__ import annotations

import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from jukebox_core.checks import one_line, require

DESCRIPTION = "drumkit.xml"
ARCHIVE = ".h2drumkit"
_FIRST_NOTE = 36  # of the first instrument, where the kit does not give notes
_MOST_BYTES = 2 << 30  # of an archive's files: they are held in memory
_MOST_XML_BYTES = 16 << 20


class Layer(NamedTuple):
    """A sample file for velocities from `low` to `high` (0 to 1)."""

    file: str
    low: float
    high: float
    gain: float  # product of the gains of layer, component and instrument
    pitch: float  # semitones


@dataclass(frozen=True, eq=False)
class Instrument:
    """A drum: `components` sound together, each with one of its velocity layers."""

    name: str
    note: int  # MIDI note
    mute_group: int | None  # a sound ends those of other instruments of its group
    follows_velocity: bool  # whether the velocity scales the sample
    components: tuple[tuple[Layer, ...], ...]


class Kit:
    """The instruments and files of a kit.

    Layers whose file is missing are left out, as are muted instruments.

    Args:
        path: A folder with drumkit.xml, or a .h2drumkit archive.

    Raises:
        FileNotFoundError: There is no such kit.
        ValueError: Its description or archive cannot be used, or names a file outside the kit.
    """

    def __init__(self, path: Path):
        if not path.exists():
            raise FileNotFoundError(f"there is no drum kit {path}")
        self.path = path
        try:
            self._files: _Folder | _Archive = _Archive(path) if path.is_file() else _Folder(path)
            if not self._files.has(DESCRIPTION):
                raise ValueError(f"it has no file {DESCRIPTION!r}")
            root = _parsed(self._files.read(DESCRIPTION))
            self.instruments = _instruments(root, self._files.has)
        except ValueError as error:
            raise ValueError(f"drum kit {path} cannot be used: {one_line(error)}") from error

    @property
    def files(self) -> list[str]:
        """Names of the sample files, each once, in the order of the description."""
        layers = (
            layer
            for instrument in self.instruments
            for component in instrument.components
            for layer in component
        )
        return list(dict.fromkeys(layer.file for layer in layers))

    @property
    def size(self) -> int:
        """Bytes of the sample files."""
        return sum(len(self.read(name)) for name in self.files)

    def read(self, name: str) -> bytes:
        """Return the content of one of the `files`, or of the description."""
        return self._files.read(name)


def find_kits(folder: Path) -> list[Path]:
    """Return the kits in a folder and its subfolders: folders with drumkit.xml, and archives."""
    folders = {path.parent for path in folder.rglob(DESCRIPTION) if path.is_file()}
    archives = {path for path in folder.rglob(f"*{ARCHIVE}") if path.is_file()}
    return sorted(folders | archives)


class _Folder:
    """The files of a kit's folder."""

    def __init__(self, path: Path):
        self._root = path.resolve()

    def has(self, name: str) -> bool:
        """Return whether there is such a file; refuse a name that leads out of the kit."""
        file = (self._root / name).resolve()  # follows links
        if not file.is_relative_to(self._root):
            raise ValueError(f"its file {name!r} lies outside the kit")
        return file.is_file()

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self._root / name).read_bytes()


class _Archive:
    """The files of a kit's archive, which is read into memory."""

    def __init__(self, path: Path):
        self._files: dict[str, bytes] = {}
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    stored = archive.extractfile(member) if member.isfile() else None
                    if stored is None:
                        continue
                    if member.size + sum(map(len, self._files.values())) > _MOST_BYTES:
                        raise ValueError(f"its files are larger than {_MOST_BYTES >> 30} GiB")
                    self._files[posixpath.normpath(member.name)] = stored.read()
        except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"it is not a whole tar archive ({one_line(error)})") from error
        found = [name for name in self._files if posixpath.basename(name) == DESCRIPTION]
        first = min(found, key=lambda name: (name.count("/"), name), default="")
        self._root = posixpath.dirname(first)

    def has(self, name: str) -> bool:
        """Return whether there is such a file; refuse a name that leads out of the kit."""
        if posixpath.normpath(name).split("/")[0] in ("", ".."):
            raise ValueError(f"its file {name!r} lies outside the kit")
        return self._place(name) in self._files

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return self._files[self._place(name)]

    def _place(self, name: str) -> str:
        return posixpath.join(self._root, posixpath.normpath(name))


def _parsed(content: bytes) -> ElementTree.Element:
    """Return the description's root, without namespaces. Entities need a document type: refused."""
    if len(content) > _MOST_XML_BYTES:
        raise ValueError(f"{DESCRIPTION} is larger than {_MOST_XML_BYTES >> 20} MiB")

    def refuse(*_: object) -> None:
        raise ValueError(f"{DESCRIPTION} has a document type (<!DOCTYPE>); remove it")

    checker = expat.ParserCreate()
    checker.StartDoctypeDeclHandler = refuse
    try:
        checker.Parse(content, True)
        root = ElementTree.fromstring(content)  # noqa: S314 - without a document type
    except (expat.ExpatError, ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"{DESCRIPTION} is not XML ({one_line(error)})") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _instruments(root: ElementTree.Element, has: Callable[[str], bool]) -> list[Instrument]:
    """Return the instruments that have samples and are not muted."""
    listed = root.findall("instrumentList/instrument")
    if root.tag != "drumkit_info" or not listed:
        raise ValueError(f"{DESCRIPTION} has no instruments (drumkit_info/instrumentList)")
    notes = [element.findtext("midiOutNote") for element in listed]
    in_order = None in notes or len(set(notes)) < len(notes)  # old kits give every one the same
    volumes = {
        component.findtext("id"): _number(component, "volume", 1.0, at_least=0, at_most=100)
        for component in root.iter("drumkitComponent")
    }
    found = []
    for index, element in enumerate(listed):
        group = round(_number(element, "muteGroup", -1.0))
        own = _number(element, "midiOutNote", 0.0, at_least=0, at_most=127)
        instrument = Instrument(
            name=element.findtext("name") or "",
            note=_FIRST_NOTE + index if in_order else round(own),
            mute_group=group if group >= 0 else None,
            follows_velocity=_text(element, "applyVelocity") != "false",
            components=_components(element, volumes, has),
        )
        if instrument.components and _text(element, "isMuted") != "true":
            found.append(instrument)
    if not found:
        raise ValueError(f"{DESCRIPTION} has no instruments with samples")
    return found


def _components(
    instrument: ElementTree.Element,
    volumes: dict[str | None, float],
    has: Callable[[str], bool],
) -> tuple[tuple[Layer, ...], ...]:
    """Return the layers of each component; before Hydrogen 0.9.7 an instrument had no components.

    The oldest kits have one file and no layers.
    """
    level = _gain(instrument, "gain") * _gain(instrument, "volume")
    pitch = _number(instrument, "pitchOffset", 0.0, at_least=-48, at_most=48)
    parts = instrument.findall("instrumentComponent")
    components = []
    for element in parts or [instrument]:
        gain = level
        if parts:
            volume = volumes.get(element.findtext("component_id"), 1.0)
            gain *= _gain(element, "gain") * volume
        layers = element.findall("layer") or [element]
        component = tuple(
            Layer(
                file=name,
                low=_number(layer, "min", 0.0),
                high=_number(layer, "max", 1.0),
                gain=gain if layer is element else gain * _gain(layer, "gain"),
                pitch=pitch + _number(layer, "pitch", 0.0, at_least=-48, at_most=48),
            )
            for layer in layers
            if (name := layer.findtext("filename")) and has(name)
        )
        if component:
            components.append(component)
    return tuple(components)


def _gain(element: ElementTree.Element, name: str) -> float:
    return _number(element, name, 1.0, at_least=0, at_most=100)


def _number(element: ElementTree.Element, name: str, default: float, **bounds: Any) -> float:
    """Return the number in a child element; an absent or empty one has the default."""
    text = _text(element, name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{DESCRIPTION} has {name} {text!r}, expected a number") from None
    require(f"{name} in {DESCRIPTION}", value, **bounds)
    return value


def _text(element: ElementTree.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()
