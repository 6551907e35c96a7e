"""`python -m siglip_jax` is `siglip-jax`."""

import sys

from siglip_jax.cli.main import main

sys.exit(main())
