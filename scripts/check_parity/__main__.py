"""`python -m scripts.check_parity`."""

import sys

from scripts.check_parity.program import main

if __name__ == "__main__":
    sys.exit(main())
