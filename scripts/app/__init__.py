"""Web page that separates uploaded songs."""

from scripts.app.program import Args, main, opened

__all__ = ["Args", "main", "opened"]
