"""Upstream's files and training, to convert and to compare."""
