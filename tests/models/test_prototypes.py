import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from siglip_jax import make_mesh, shard_params
from siglip_jax.models.encoder import Options
from siglip_jax.models.prototypes import PrototypeHead
from siglip_jax.params import flatten

HEAD = {"prototypes": 26, "hidden": 24, "bottleneck": 10}


def made(**options):
    """Returns a head, random parameters and inputs."""
    head = PrototypeHead(**HEAD, options=Options(**options))
    random = np.random.RandomState(0)
    inputs = jnp.asarray(random.standard_normal((3, 5, 12)), jnp.float32)
    shapes = jax.eval_shape(head.init, jax.random.key(0), inputs)["params"]
    return head, jax.tree.map(lambda p: jnp.asarray(random.standard_normal(p.shape) / 3, jnp.float32), shapes), inputs


def float64(params, x):
    p, x = {name: np.asarray(v, np.float64) for name, v in flatten(params).items()}, np.asarray(x, np.float64)
    erf = np.vectorize(math.erf)
    for name in ("fc1", "fc2"):
        x = x @ p[f"{name}/kernel"] + p[f"{name}/bias"]
        x = x * (1 + erf(x / np.sqrt(2))) / 2
    x = x @ p["fc3/kernel"] + p["fc3/bias"]
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x @ (p["prototypes"] / np.linalg.norm(p["prototypes"], axis=0))


def test_logits_equal_float64():
    head, params, inputs = made()
    shapes = {name: p.shape for name, p in flatten(params).items() if not name.endswith("bias")}
    assert shapes == {
        "fc1/kernel": (12, 24),
        "fc2/kernel": (24, 24),
        "fc3/kernel": (24, 10),
        "prototypes": (10, 26),
    }
    found = jax.jit(head.apply)({"params": params}, inputs)
    np.testing.assert_allclose(found, float64(params, inputs), atol=1e-6)
    assert np.abs(found).max() <= 1 + 1e-6


def test_logits_of_bfloat16_are_float32():
    head, params, inputs = made(dtype=jnp.bfloat16)
    found = jax.jit(head.apply)({"params": params}, inputs)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, float64(params, inputs), atol=0.02)


def test_the_length_of_a_prototype_does_not_matter():
    head, params, inputs = made()
    factors = jnp.asarray(np.random.RandomState(2).uniform(0.1, 10, (1, 26)), jnp.float32)
    longer = params | {"prototypes": params["prototypes"] * factors}
    run = jax.jit(head.apply)
    found, expected = (run({"params": p}, inputs) for p in (longer, params))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_vector_of_zeros_has_finite_gradients():
    head, params, inputs = made()
    params = jax.tree.map(jnp.zeros_like, params)
    value, slopes = jax.jit(jax.value_and_grad(lambda p: jnp.sum(head.apply({"params": p}, inputs))))(params)
    assert value == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(slopes))


@pytest.mark.slow
def test_over_a_mesh():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    head, params, inputs = made(mesh=mesh)
    sharded = shard_params({"patch_head": params}, mesh)["patch_head"]
    assert sharded["prototypes"].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert sharded["fc3"]["kernel"].sharding.spec == PartitionSpec("fsdp", None)
    found = jax.jit(head.apply)({"params": sharded}, inputs)
    np.testing.assert_allclose(found, float64(params, inputs), atol=1e-6)
