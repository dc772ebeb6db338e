"""Programs, run with `python -m scripts.NAME`; every one has --help."""

import os

# Large pages for PyTorch's large buffers, on Linux, where the system offers them: weights and
# caches are read from end to end at every step. Has to be said before the first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# OpenMP's threads spin while they wait for each other, by default for so long that a machine with
# other work to do is several times slower. Short waits are all that separation gains by.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
