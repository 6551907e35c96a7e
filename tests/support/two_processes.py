"""One of the processes of `test_distributed`: prints what it finds of the loss over all of them.

python two_processes.py NUMBER_OF_PROCESSES PROCESS PORT
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from siglip_jax import make_mesh, sigmoid_loss
from siglip_jax.parallel import global_batch
from tests.support.processes import DEVICES, join

BATCH, WIDTH = 24, 16  # in all


def main(processes: int, process: int, port: int) -> None:
    join(processes, process, port)
    mesh = make_mesh(data=2, fsdp=2)
    x = np.random.RandomState(0).standard_normal((2, BATCH, WIDTH)).astype(np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    mine = slice(process * BATCH // processes, (process + 1) * BATCH // processes)
    images, texts = global_batch((x[0, mine], x[1, mine]), mesh)
    assert images.shape == (BATCH, WIDTH) and len(jax.devices()) == DEVICES

    def loss(*given):
        return sigmoid_loss(*given, mesh=mesh, axis=("data", "fsdp"), block_size=4)

    scalars = jnp.asarray(np.log(10.0), jnp.float32), jnp.asarray(-10.0, jnp.float32)
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(images, texts, *scalars)
    alone = sigmoid_loss(images, texts, *scalars, mesh=mesh, axis=("data", "fsdp"))  # without jit around it
    gradients = multihost_utils.process_allgather(gradients, tiled=True)
    flat = [np.asarray(g).reshape(-1).tolist() for g in gradients]
    print(json.dumps({"value": float(value), "alone": float(alone), "gradients": flat}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
