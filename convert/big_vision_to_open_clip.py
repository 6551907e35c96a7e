"""Converts a big_vision .npz file to an open_clip directory: `siglip-jax convert SRC DST --to open_clip`.

python convert/big_vision_to_open_clip.py SRC DST [--dtype bfloat16] [--resolution 384] [--dry-run] [--help]
"""

import sys

from siglip_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "--to", "open_clip", *sys.argv[1:]]))
