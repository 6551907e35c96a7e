"""One of the processes of `test_processes`: `siglip-jax` with the words given, over four devices in all.

python one_of_several.py NUMBER_OF_PROCESSES PROCESS PORT WORDS...
"""

import sys

import jax

from siglip_jax.cli.main import main
from siglip_jax.parallel import join_processes

DEVICES = 4


def run(processes: int, process: int, port: int, words: list[str]) -> int:
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    given = (f"127.0.0.1:{port}", processes, process) if processes > 1 else ()
    assert join_processes(*given) == (processes > 1)
    return main(words)


if __name__ == "__main__":
    sys.exit(run(*map(int, sys.argv[1:4]), sys.argv[4:]))
