"""Compare with tensors recorded from upstream."""

from scripts.check_parity.program import main, markdown, run, summary

__all__ = ["main", "markdown", "run", "summary"]
