"""Where the recorded tensors are: LATENT_SEPARATION_SHARED, or `shared` beside the checkout."""

import os
from pathlib import Path

_named = os.environ.get("LATENT_SEPARATION_SHARED")
_candidates = [Path(_named)] if _named else [Path(__file__).parent.parent.parent / "shared"]
SHARED: Path | None = next((p for p in _candidates if (p / "fixtures").is_dir()), None)
