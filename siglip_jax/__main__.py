"""Runs the command line: `python -m siglip_jax` is `siglip-jax`."""

import sys

from siglip_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
