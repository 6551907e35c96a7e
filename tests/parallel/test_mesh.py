"""A model with a mesh keeps the batch sharded; `make_mesh` and `check_mesh` are tested where they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from siglip_jax import SiglipModel, make_mesh
from siglip_jax.parallel import shard_params
from siglip_jax.parallel.mesh import keep_batch_sharded
from siglip_jax.parallel.sharding import shardings
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


class TestOtherAxes:
    """Meshes with the names and the types that `jax.make_mesh` and users give them."""

    SHAPES = {"mlp/fc1/kernel": (8, 16)}

    def test_names_that_no_rule_has_warn_with_the_way_out(self):
        mesh = jax.make_mesh((4, 2), ("dp", "tp"), axis_types=(AxisType.Auto,) * 2)
        said = r"none of the axes fsdp, tensor of the sharding rules, but dp, tp: every parameter is whole.*'tp'"
        with pytest.warns(UserWarning, match=said):
            assert shardings(self.SHAPES, mesh)["mlp/fc1/kernel"].is_fully_replicated
        with pytest.warns(UserWarning, match=said):
            shard_params({"mlp": {"fc1": {"kernel": np.zeros((8, 16), np.float32)}}}, mesh)

    def test_rules_with_these_names_shard_and_do_not_warn(self):
        mesh = jax.make_mesh((4, 2), ("dp", "tp"), axis_types=(AxisType.Auto,) * 2)
        rules = ((".*fc1/kernel", PartitionSpec(None, "tp")), (".*", PartitionSpec()))
        found = shardings(self.SHAPES, mesh, rules)["mlp/fc1/kernel"]
        assert found.shard_shape((8, 16)) == (8, 8)
        shardings(self.SHAPES, mesh, ((".*", PartitionSpec()),))  # nothing is to be sharded
        shardings(self.SHAPES, jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)))

    @pytest.mark.parametrize("tower", ["text", "image", "both"])
    def test_a_batch_on_explicit_axes_is_refused_as_such_a_mesh_is(self, tower):
        config = CONFIGS["odd"]
        model, side = SiglipModel(config), config.vision_config.image_size
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
        over = NamedSharding(mesh, PartitionSpec("data"))
        ids = jax.device_put(np.ones((8, config.text_config.max_position_embeddings), np.int32), over)
        pixels = jax.device_put(np.zeros((8, side, side, 3), np.float32), over)
        arguments, method = {
            "text": ((ids,), "get_text_features"),
            "image": ((pixels,), "get_image_features"),
            "both": ((ids, pixels), None),
        }[tower]
        plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (ids, pixels))
        params = jax.eval_shape(model.init, jax.random.key(0), *plain)
        with pytest.raises(ValueError, match="mesh must have Auto axes, since linen fails on Explicit ones, got"):
            jax.eval_shape(lambda params, *given: model.apply(params, *given, method=method), params, *arguments)
