"""A model with a mesh keeps the batch sharded; `make_mesh` and `check_mesh` are tested where they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from siglip_jax import SiglipModel, make_mesh
from siglip_jax.parallel.mesh import keep_batch_sharded
from tests.models.test_cost import CONFIGS, abstract, analysis

BATCH = 64


@pytest.mark.slow
def test_a_scanned_model_with_a_mesh_holds_its_shard_of_the_batch_only():
    mesh = make_mesh(data=1, fsdp=8)

    def temporaries(model):
        def total(params, ids, pixels):
            out = model.apply({"params": params}, ids, pixels)
            return jnp.sum(out.image_embeds) + jnp.sum(out.text_embeds)

        return analysis(jax.jit(jax.grad(total)).lower(*abstract(model, mesh, BATCH))).temp_size_in_bytes

    config = CONFIGS["odd"]
    without = temporaries(SiglipModel(config, scan_layers=True))
    with_mesh = temporaries(SiglipModel(config, scan_layers=True, mesh=mesh))
    with jax.set_mesh(mesh):
        in_context = temporaries(SiglipModel(config, scan_layers=True))
    assert with_mesh == in_context < without / 4


def test_where_the_batch_cannot_be_constrained():
    mesh = make_mesh(data=4, fsdp=2)
    x = jnp.ones((8, 3))
    assert keep_batch_sharded(x, None) is x
    assert keep_batch_sharded(x[:6], mesh).shape == (6, 3)  # six rows cannot be sharded over eight devices
    sharded = PartitionSpec(("data", "fsdp"))
    inside = jax.shard_map(lambda x: keep_batch_sharded(x, mesh) + 1, mesh=mesh, in_specs=sharded, out_specs=sharded)
    np.testing.assert_array_equal(jax.jit(inside)(x), x + 1)
    np.testing.assert_array_equal(jax.pmap(lambda x: keep_batch_sharded(x, mesh) + 1)(x), x + 1)
    assert jax.jit(keep_batch_sharded, static_argnums=1)(x, mesh).sharding.is_equivalent_to(
        NamedSharding(mesh, sharded), 2
    )
