"""`python -m scripts.app`."""

import sys

from scripts.app.program import main

if __name__ == "__main__":
    sys.exit(main())
