"""LASS (arXiv 2301.08562): a plain codec, and a likelihood counted over triples of codes."""

from lass.counter import TripleCounter
from lass.counts import Counts, load_counts, merge_counts, save_counts, symmetrise
from lass.likelihood import CountLikelihood, SmoothedLikelihood
from lass.separator import METHOD, NEURAL, load_neural_separator, load_separator

__all__ = [
    "METHOD",
    "NEURAL",
    "CountLikelihood",
    "Counts",
    "SmoothedLikelihood",
    "TripleCounter",
    "load_counts",
    "load_neural_separator",
    "load_separator",
    "merge_counts",
    "save_counts",
    "symmetrise",
]
