"""Audio files and signals: read, write, resample, stream."""

from jukebox_core.audio.io import (
    AudioInfo,
    DamagedAudioWarning,
    info,
    is_silent,
    load,
    load_segment,
    reference_is_silent,
    resample,
    rms_dbfs,
    save,
    to_mono,
)

__all__ = [
    "AudioInfo",
    "DamagedAudioWarning",
    "info",
    "is_silent",
    "load",
    "load_segment",
    "resample",
    "rms_dbfs",
    "save",
    "reference_is_silent",
    "to_mono",
]
