"""Programs, run with `python -m scripts.NAME`; every one has --help."""

import os

# Large pages for PyTorch's large buffers, if the system offers them (Linux): every step reads the
# weights and caches from end to end. This must be set before the first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# OpenMP's threads spin while they wait for each other, by default for so long that a busy machine
# becomes several times slower. Separation only gains from short waits.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

COMMAND = "python -m scripts."
"""The words before a program's name on the command line."""
