"""The flags that the training programs parse first: the defaults of the others depend on them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from jukebox_core.checkpoints import load_config
from jukebox_core.config import TrainConfig, VQVAEConfig
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.presets import DEFAULT_PRESET, PRESETS, Preset, PresetName

C = TypeVar("C", bound=Any)


@dataclass(frozen=True)
class FirstFlags:
    """The size, and the data."""

    preset: PresetName = DEFAULT_PRESET
    data: Path | None = field(default=None, kw_only=True)

    @property
    def values(self) -> Preset:
        """The preset of that name."""
        return PRESETS[self.preset]

    def of_mixtures(self, train: TrainConfig) -> TrainConfig:
        """A preset's training, which is for two sources, with as many mixtures per batch."""
        try:
            sources = len(load_manifest(self.data or "").sources)
        except (OSError, ValueError):
            return train  # open_data reports what is wrong with the folder
        return replace(train, batch_size=train.batch_size // 2 * sources)


@dataclass(frozen=True)
class CodecFlags(FirstFlags):
    """The size, the data, and the codec, whose values override the preset's."""

    vqvae: Path | None = None

    def fit(self, config: C, shared: tuple[str, ...]) -> C:
        """A preset's configuration with the codec's values of the `shared` fields.

        Flags come later and override both.
        """
        try:
            codec, _ = load_config(self.vqvae or "", "vqvae", VQVAEConfig)
        except (OSError, ValueError):
            return config  # load_codec reports what is wrong with the folder
        return replace(config, **{name: getattr(codec, name) for name in shared})


def check_fits_codec(
    name: str, config: Any, shared: tuple[str, ...], folder: Path, codec: VQVAEConfig, crop: int
) -> None:
    """Refuse a configuration that contradicts the codec, and crops of half a code.

    Args:
        name: of the configuration's flags.
        config: of the model to train.
        shared: fields that must be the codec's.
        folder: of the codec.
        codec: its configuration.
        crop: samples of a training crop.

    Raises:
        ValueError: a shared field differs, or the crop is no multiple of the codec's hop.
    """
    for name_of in shared:
        own, codecs = getattr(config, name_of), getattr(codec, name_of)
        if own != codecs:
            flag = f"--{name}.{name_of.replace('_', '-')}"
            raise ValueError(f"{flag} is {own}, the codec {folder} has {codecs}: leave it out")
    if crop % codec.hop:
        raise ValueError(f"--train.crop is {crop}, not a multiple of the hop, {codec.hop} samples")
