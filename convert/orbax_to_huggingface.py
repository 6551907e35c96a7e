"""Converts an orbax directory to a Hugging Face directory: `siglip-jax convert SRC DST --to huggingface`.

python convert/orbax_to_huggingface.py SRC DST [--dtype bfloat16] [--resolution 384] [--dry-run] [--help]
"""

import sys

from siglip_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "--to", "huggingface", *sys.argv[1:]]))
