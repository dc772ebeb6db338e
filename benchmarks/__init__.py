"""Speed and memory against plain paths in the same run: `python -m benchmarks.NAME --help`."""

import scripts  # noqa: F401  (the same settings of memory)
