"""One HTML page of a models folder and its results."""

from scripts.report.program import build_page, main

__all__ = ["build_page", "main"]
