"""`python -m scripts.evaluate`."""

import sys

from scripts.evaluate.program import main

if __name__ == "__main__":
    sys.exit(main())
