"""The hybrid's models on the Hugging Face Hub; needs huggingface_hub (`pip install -e ".[hub]"`).

HubModels(Path("runs/demo/models")).push_to_hub("user/name")
separator = HubModels.from_pretrained("user/name").load_separator()
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from hybrid.pretrained import PRETRAINED
from hybrid.separator import neural_method
from jukebox_core.files import check_owned, write_json, write_text
from jukebox_core.separation.export import CARD, CONFIG, RECORD, export_models
from jukebox_core.separation.separator import Separator

_CARD = """\
---
library_name: latent-separation
pipeline_tag: audio-to-audio
tags:
- music-source-separation
---

Models of latent-separation for music source separation, method {method}.
Load them with `hybrid.hub.HubModels.from_pretrained(...).load_separator()`.
"""


class HubModels(ModelHubMixin):
    """Models with a neural likelihood, with or without tables, in the Hub's conventions.

    `save_pretrained(folder)` writes a copy for inference, `push_to_hub(repository)` uploads it, and
    `from_pretrained(folder or repository)` finds or downloads one.
    """

    def __init__(self, models: Path = PRETRAINED):
        """Use this folder of models; `load_separator` is the first to read it."""
        self.models = Path(models)

    def load_separator(self, **options: Any) -> Separator:
        """Load the models, with the options and the errors of `Method.load_separator`."""
        return neural_method(self.models).load_separator(self.models, **options)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        config: Any = None,
        model_card_kwargs: Any = None,
        **push_options: Any,
    ) -> str | None:
        """Write a copy with a model card: the README.md of the models, or a short one.

        The mixin's own function would first remove config.json, which a full disk would then lose.

        Args:
            save_directory: folder of the copy.
            repo_id: USER/NAME to upload to; default: the name of the folder.
            push_to_hub: upload the copy, and return the address of the commit.
            config: without effect, as is `model_card_kwargs`: a copy has its own files.
            model_card_kwargs: see `config`.
            push_options: of `push_to_hub`.

        Raises:
            FileNotFoundError: a part of the models is missing.
            FileExistsError: the folder holds anything else than an earlier copy.
            ValueError: it lies in the folder of the models, or a part is damaged.
        """
        folder = Path(save_directory)
        if not (folder / RECORD).is_file():
            check_owned(folder)  # README.md and config.json in it would be another's
        self._save_pretrained(folder)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, **push_options)

    def _save_pretrained(self, save_directory: Path) -> None:
        method = neural_method(self.models)
        export_models(method, self.models, save_directory)
        own = self.models / CARD
        named = _CARD.format(method=method.name)
        write_text(
            save_directory / CARD, own.read_text(encoding="utf-8") if own.is_file() else named
        )
        write_json(save_directory / CONFIG, {"method": method.name})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> HubModels:
        """Find a folder, or download a repository.

        Args:
            pretrained_model_name_or_path: folder of models, or USER/NAME.
            options: of `ModelHubMixin.from_pretrained`.

        Raises:
            FileNotFoundError: there is no such folder, and it is no name of a repository.
        """
        name = str(pretrained_model_name_or_path)
        path = name.startswith((".", "/", "~")) or name.count("/") > 1
        if path and not Path(name).is_dir():
            raise FileNotFoundError(f"there is no folder {name}, and it is no USER/NAME of the Hub")
        return super().from_pretrained(name, **options)

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
