"""What each part of the methods adds, on test songs."""

from scripts.ablate.program import Args, main

__all__ = ["Args", "main"]
