"""Converts an open_clip directory to an orbax directory: `siglip-jax convert SRC DST --to orbax`.

python convert/open_clip_to_orbax.py SRC DST [--dtype bfloat16] [--resolution 384] [--dry-run] [--help]
"""

import sys

from siglip_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "--to", "orbax", *sys.argv[1:]]))
