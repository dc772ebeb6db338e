"""Separation: posterior sampling of the sources' codes, selection, masks, whole songs."""
