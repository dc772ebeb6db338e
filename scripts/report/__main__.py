"""`python -m scripts.report`."""

import sys

from scripts.report.program import main

if __name__ == "__main__":
    sys.exit(main())
