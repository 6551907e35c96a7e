"""One of the processes of `test_processes`: `siglip-jax` with the words given, over four devices in all.

python one_of_several.py NUMBER_OF_PROCESSES PROCESS PORT WORDS...
"""

import sys

from siglip_jax.cli import main
from tests.support.processes import join

if __name__ == "__main__":
    join(*map(int, sys.argv[1:4]))
    sys.exit(main(sys.argv[4:]))
