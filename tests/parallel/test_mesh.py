"""A model that knows its mesh keeps the batch cut; `make_mesh` and `check_mesh` are tested where they are used."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from siglip_jax import SiglipModel, make_mesh
from siglip_jax.parallel.mesh import keep_batch_cut
from tests.models.test_cost import CONFIGS, abstract, analysis

BATCH = 64


def test_a_scanned_model_that_knows_its_mesh_holds_its_part_of_the_batch_only():
    mesh = make_mesh(data=1, fsdp=8)

    def temporaries(model):
        def total(params, ids, pixels):
            out = model.apply({"params": params}, ids, pixels)
            return jnp.sum(out.image_embeds) + jnp.sum(out.text_embeds)

        return analysis(jax.jit(jax.grad(total)).lower(*abstract(model, mesh, BATCH))).temp_size_in_bytes

    config = CONFIGS["odd"]
    untold = temporaries(SiglipModel(config, scan_layers=True))
    told = temporaries(SiglipModel(config, scan_layers=True, mesh=mesh))
    with jax.set_mesh(mesh):
        told_by_context = temporaries(SiglipModel(config, scan_layers=True))
    assert told == told_by_context < untold / 4


def test_where_nothing_can_be_said():
    mesh = make_mesh(data=4, fsdp=2)
    x = jnp.ones((8, 3))
    assert keep_batch_cut(x, None) is x
    assert keep_batch_cut(x[:6], mesh).shape == (6, 3)  # six rows cannot be cut over eight devices
    cut = PartitionSpec(("data", "fsdp"))
    inside = jax.shard_map(lambda x: keep_batch_cut(x, mesh) + 1, mesh=mesh, in_specs=cut, out_specs=cut)
    np.testing.assert_array_equal(jax.jit(inside)(x), x + 1)
    np.testing.assert_array_equal(jax.pmap(lambda x: keep_batch_cut(x, mesh) + 1)(x), x + 1)
    assert jax.jit(keep_batch_cut, static_argnums=1)(x, mesh).sharding.is_equivalent_to(NamedSharding(mesh, cut), 2)
