"""Posterior sampling of source codes, selection, refinement and scores."""
