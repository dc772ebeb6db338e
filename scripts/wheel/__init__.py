"""The installed package `latent_separation`: the command that runs the programs without a checkout.

In the wheel, `scripts` and `data` lie inside this package, so that they take no names in
site-packages.
"""

import sys
from pathlib import Path


def main() -> int:
    """`latent-separation PROGRAM FLAGS`; return the exit status."""
    here = Path(__file__).resolve().parent
    root = here if (here / "scripts").is_dir() else here.parents[1]  # installed, or a checkout
    sys.path.insert(0, str(root))
    import scripts
    from scripts.__main__ import main as run

    scripts.COMMAND = "latent-separation "
    return run()
