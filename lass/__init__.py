"""LASS (arXiv 2301.08562): a plain codec, and a likelihood counted over triples of codes."""

from lass.counter import TripleCounter
from lass.counts import Counts, load_counts, merge_counts, save_counts, symmetrise
from lass.likelihood import CountLikelihood, build_likelihood

__all__ = [
    "CountLikelihood",
    "Counts",
    "TripleCounter",
    "build_likelihood",
    "load_counts",
    "merge_counts",
    "save_counts",
    "symmetrise",
]
