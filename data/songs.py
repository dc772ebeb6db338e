"""Which tracks are of one song: by their metadata, or by the audio that they share."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import fft

_MSD_ID = re.compile(r"\bTR[A-Z]{5}[0-9A-F]{11}\b")  # of a track of the Million Song Dataset
_SHARED = 0.2  # correlation: 0.48 for two excerpts of one song, at most 0.04 for different songs


def named_song(metadata: Mapping[str, Any]) -> str | None:
    """The song that a track's metadata name; None if they name none.

    Args:
        metadata: content of metadata.yaml. `song` names the song. Otherwise, Slakh2100's
            `lmd_midi_dir` contains the song's id in the Million Song Dataset, which several MIDI
            files may share, and `UUID` identifies the MIDI file. Generated songs are all different.
    """
    if "generator" in metadata:
        return None
    if isinstance(song := metadata.get("song"), str | int):
        return str(song) or None
    if match := _MSD_ID.search(str(metadata.get("lmd_midi_dir", ""))):
        return match[0]
    return str(metadata.get("UUID") or "") or None


def shared_audio(sounds: Sequence[np.ndarray]) -> list[int]:
    """Group recordings that share a passage: for each the number of the first one of its group.

    Two recordings share audio if the normalised cross-correlation of their first differences, which
    gives high frequencies more weight, exceeds 0.2 at any delay; groups are transitive. Takes some
    10 ms per pair of recordings of 12 s, and 4 MB for each.

    Args:
        sounds: `[T]` each.
    """
    first = list(range(len(sounds)))
    if len(sounds) < 2:
        return first
    size = fft.next_fast_len(2 * max(map(len, sounds)), real=True)  # no delay wraps around
    spectra = []
    for sound in sounds:
        steps = np.diff(sound.astype(np.float32))
        norm = np.linalg.norm(steps)
        spectra.append(fft.rfft(steps / norm if norm > 0 else steps, size))
    for i, j in itertools.combinations(range(len(sounds)), 2):
        if first[i] == first[j]:
            continue
        correlation = fft.irfft(spectra[i] * spectra[j].conj(), size)
        if np.abs(correlation).max() > _SHARED:
            low, high = sorted((first[i], first[j]))
            first = [low if number == high else number for number in first]
    return first
