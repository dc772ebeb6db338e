"""The hybrid's models on the Hugging Face Hub; needs huggingface_hub (`pip install -e ".[hub]"`).

HubModels(Path("runs/demo/models")).push_to_hub("user/name")
separator = HubModels.from_pretrained("user/name").load_separator()
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from hybrid.pretrained import PRETRAINED
from hybrid.separator import NEURAL
from jukebox_core.files import atomic_path, write_json
from jukebox_core.separation.export import export_models
from jukebox_core.separation.separator import Separator

CARD, CONFIG = "README.md", "config.json"


class HubModels(
    ModelHubMixin,
    library_name="latent-separation",
    license="mit",
    pipeline_tag="audio-to-audio",
    tags=["music-source-separation"],
):
    """A models folder of the hybrid with the neural likelihood, in the Hub's conventions.

    `save_pretrained(folder)` writes a copy for inference, `push_to_hub(repository)` uploads it, and
    `from_pretrained(folder or repository)` finds or downloads one.
    """

    def __init__(self, models: Path = PRETRAINED):
        """Use this folder of models; `load_separator` is the first to read it."""
        self.models = Path(models)

    def load_separator(self, **options: Any) -> Separator:
        """Load the models, with the options and the errors of `Method.load_separator`."""
        return NEURAL.load_separator(self.models, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        export_models(NEURAL, self.models, save_directory)
        write_json(save_directory / CONFIG, {"method": NEURAL.name})
        if (self.models / CARD).is_file():
            with atomic_path(save_directory / CARD) as temporary:
                shutil.copyfile(self.models / CARD, temporary)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None, cache_dir: str | Path | None, **options: Any
    ) -> HubModels:
        if Path(model_id).is_dir():
            return cls(Path(model_id))
        names = ("force_download", "local_files_only", "token")
        passed = {name: options[name] for name in names if name in options}
        return cls(
            Path(snapshot_download(model_id, revision=revision, cache_dir=cache_dir, **passed))
        )
