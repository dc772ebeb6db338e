"""The flags that the training programs parse first: the defaults of the others depend on them."""

from __future__ import annotations

from dataclasses import dataclass

from jukebox_core.presets import DEFAULT_PRESET, PRESETS, Preset, PresetName


@dataclass(frozen=True)
class FirstFlags:
    """The size."""

    preset: PresetName = DEFAULT_PRESET

    @property
    def values(self) -> Preset:
        """The preset of that name."""
        return PRESETS[self.preset]
