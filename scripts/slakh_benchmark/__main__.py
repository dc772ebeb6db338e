"""`python -m scripts.slakh_benchmark`."""

import sys

from scripts.slakh_benchmark.program import main

if __name__ == "__main__":
    sys.exit(main())
