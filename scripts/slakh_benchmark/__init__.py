"""Score models on real Slakh2100 beside the reference report, or repeat its experiment."""

from scripts.slakh_benchmark.program import Args, main

__all__ = ["Args", "main"]
