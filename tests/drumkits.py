"""Drum kits in Hydrogen's format, written for tests."""

import tarfile

import numpy as np
import soundfile

RATE = 22_050


def noise(seed, samples=RATE // 2):
    """A sample `[T]` that a 16-bit file holds exactly, and that is never zero."""
    values = np.random.default_rng(seed).integers(1, 2**14, samples)
    return (values / 2**15).astype(np.float32)


def layer(file, low=0.0, high=1.0, **values):
    """A layer's XML."""
    values = {"filename": file, "min": low, "max": high, **values}
    return element("layer", elements(values))


def instrument(name, *layers, component=True, **values):
    """An instrument's XML, with one component or, as in old kits, without any."""
    inner = "".join(layers)
    if component:
        inner = element("instrumentComponent", "<component_id>0</component_id>" + inner)
    return element("instrument", elements({"name": name, **values}) + inner)


def element(name, inner):
    return f"<{name}>{inner}</{name}>"


def elements(values):
    return "".join(element(name, value) for name, value in values.items())


def description(*instruments, head=""):
    """The text of drumkit.xml."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{head}'
        '<drumkit_info xmlns="http://www.hydrogen-music.org/drumkit"><name>kit</name>'
        # what Hydrogen writes, which is no document type
        '<info>&lt;!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.0//EN"></info>'
        f"<instrumentList>{''.join(instruments)}</instrumentList></drumkit_info>"
    )


def write_kit(folder, *instruments, samples=None, rate=RATE, head=""):
    """Write a kit; samples: {file: [T] or [T, C]}."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, wave in (samples or {}).items():
        soundfile.write(folder / name, wave, rate, subtype="PCM_16")
    (folder / "drumkit.xml").write_text(description(*instruments, head=head), encoding="utf-8")
    return folder


def write_basic_kit(folder, seed=0):
    """A kick, a snare and closed and open hi-hats."""
    names = ("Kick", "Snare", "Hat Closed", "Hat Open")
    samples = {f"{name}.wav": noise([seed, index]) for index, name in enumerate(names)}
    notes = (36, 38, 42, 46)
    listed = [
        instrument(name, layer(f"{name}.wav"), midiOutNote=note)
        for name, note in zip(names, notes, strict=True)
    ]
    return write_kit(folder, *listed, samples=samples)


def archive(kit, path, mode="w:gz"):
    """Write a kit's folder as .h2drumkit."""
    with tarfile.open(path, mode) as file:
        file.add(kit, arcname=kit.name)
    return path
