"""Converts an open_clip directory to a big_vision .npz file: `siglip-jax convert SRC DST --to big_vision`.

python convert/open_clip_to_big_vision.py SRC DST [--dtype bfloat16] [--resolution 384] [--dry-run] [--help]
"""

import sys

from siglip_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "--to", "big_vision", *sys.argv[1:]]))
