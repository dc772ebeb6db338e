"""A web page that separates uploads."""

from scripts.app.program import Args, main, opened

__all__ = ["Args", "main", "opened"]
