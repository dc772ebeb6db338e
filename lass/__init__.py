"""LASS (arXiv 2301.08562): a plain codec, and a likelihood counted over triples of codes."""

from lass.counts import Counts, TripleCounter, load_counts, merge_counts, save_counts, symmetrise
from lass.likelihood import CountLikelihood, SmoothedLikelihood
from lass.separator import METHOD, load_separator

__all__ = [
    "METHOD",
    "CountLikelihood",
    "Counts",
    "SmoothedLikelihood",
    "TripleCounter",
    "load_counts",
    "load_separator",
    "merge_counts",
    "save_counts",
    "symmetrise",
]
