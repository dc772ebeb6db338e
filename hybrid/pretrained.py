"""The models that ship with the package."""

from __future__ import annotations

from pathlib import Path

PRETRAINED = Path(__file__).parent / "weights"
"""A models folder (`jukebox_core.separation.loading`), made by `python -m scripts.pretrain`."""
