"""`python -m scripts.ablate`."""

import sys

from scripts.ablate.program import main

if __name__ == "__main__":
    sys.exit(main())
