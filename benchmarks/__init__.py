"""Speed and memory against plain paths in the same run: `python -m benchmarks.NAME --help`."""
