"""The contribution of each part of the methods, on test songs."""

from scripts.ablate.program import Args, main

__all__ = ["Args", "main"]
