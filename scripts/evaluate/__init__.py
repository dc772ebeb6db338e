"""Score the methods and the baselines on the same chunks."""

from scripts.evaluate.program import Args, evaluate, main

__all__ = ["Args", "evaluate", "main"]
