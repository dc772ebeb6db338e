"""Programs, run with `python -m scripts.NAME`; every one has --help."""

import os

# Large pages for PyTorch's large buffers, on Linux, where the system offers them: weights and
# caches are read from end to end at every step. Has to be said before the first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
