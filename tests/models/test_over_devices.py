"""Every module computes the same on one device, under pmap and over meshes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import jax_utils
from jax.sharding import NamedSharding, PartitionSpec

import siglip_jax
from siglip_jax import make_mesh, pmap_forward, shard_params
from siglip_jax.parallel import global_batch
from tests.support import cases, naflex_cases

BATCH = 8


def random_params(model, batch):
    """Drawn without compiling anything; of a size that keeps activations of order one, and no bias is zero."""
    random = np.random.RandomState(0)

    def draw(path, x):
        values = random.standard_normal(x.shape) / math.sqrt(math.prod(x.shape[:-1]))
        return jnp.asarray(values if x.ndim > 1 else (path[-1].key == "scale") + 0.2 * values, x.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), **batch)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def setting(name):
    """Returns a module of one layer, its parameters, a batch of eight for it, and its options."""
    flexible = name.startswith("Siglip2")
    config = naflex_cases.make_config("naflex_odd") if flexible else cases.make_config("so400m_like")
    towers = {tower: getattr(config, tower).replace(num_hidden_layers=1) for tower in ("text_config", "vision_config")}
    config = config.replace(**towers)
    inputs = (naflex_cases if flexible else cases).make_inputs(config)
    part = config.replace(num_labels=5)
    names = ["pixel_values", *(["pixel_attention_mask", "spatial_shapes"] if flexible else [])]
    if name.endswith("TextModel"):
        part, names = config.text_config, ["input_ids", "attention_mask"]
    elif name.endswith("VisionModel"):
        part = config.vision_config
    elif name.endswith("Model"):
        part, names = config, ["input_ids", *names]
    model = getattr(siglip_jax, name)(part)
    batch = {key: np.resize(inputs[key], (BATCH, *inputs[key].shape[1:])) for key in names}
    if "pixel_values" in batch:  # no two images alike
        batch["pixel_values"] = batch["pixel_values"] * np.linspace(0.5, 1, BATCH, dtype=np.float32).reshape(
            -1, *[1] * (batch["pixel_values"].ndim - 1)
        )
    batch = {key: jnp.asarray(x) for key, x in batch.items()}
    params = random_params(model, batch)
    options = {}
    if name.endswith("Classification"):
        batch["labels"] = jnp.array([0, 3, -100, 4, 1, -100, 2, 2])
    elif name in ("SiglipModel", "Siglip2Model"):
        options["return_loss"] = True
    return model, params, batch, options


@functools.cache
def forward_of(name):
    """Returns what computes the module's outputs, compiled anew only where its arguments lie elsewhere."""
    model, _, _, options = setting(name)
    return jax.jit(lambda params, batch: model.apply({"params": params}, **batch, **options))


@functools.cache
def expected_of(name):
    """Returns the outputs computed on one device."""
    _, params, batch, _ = setting(name)
    return forward_of(name)(params, batch)


def assert_same(found, expected):
    found, expected = (jax.device_get(jax.tree.leaves(out)) for out in (found, expected))
    assert len(found) == len(expected) > 0
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        f"{family}{kind}"
        for family in ("Siglip", "Siglip2")
        for kind in ("Model", "TextModel", "VisionModel", "ForImageClassification")
    ],
)
def test_every_module(name):
    model, params, batch, options = setting(name)
    assert_same(pmap_forward(model)(params, **batch, **options), expected_of(name))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert_same(forward_of(name)(shard_params(params, mesh), global_batch(batch, mesh)), expected_of(name))


@pytest.mark.slow
def test_methods_and_options_under_pmap():
    model, params, batch, _ = setting("SiglipModel")
    everything = {"output_hidden_states": True, "position_ids": jnp.arange(16)[None][:, ::-1]}
    apply = jax.jit(
        lambda method, **given: model.apply({"params": params}, method=method, **given),
        static_argnames=("method", "output_hidden_states"),
    )
    assert_same(pmap_forward(model)(params, **batch, **everything), apply(None, **batch, **everything))
    pixels = batch["pixel_values"]
    features = pmap_forward(model, "get_image_features")(params, pixels)
    assert_same(features, apply("get_image_features", pixel_values=pixels))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SiglipModel", "Siglip2ForImageClassification"])
def test_what_pmap_users_have(name):
    """Parameters replicated by flax, and inputs that are sharded already."""
    model, params, batch, options = setting(name)
    sharded = {name: x.reshape(8, 1, *x.shape[1:]) for name, x in batch.items()}
    assert_same(pmap_forward(model)(jax_utils.replicate(params), **sharded, **options), expected_of(name))


def test_by_position_as_by_name():
    model, params, batch, _ = setting("SiglipForImageClassification")
    found = pmap_forward(model)(params, batch["pixel_values"], batch["labels"])
    assert found.loss is not None
    assert_same(found, expected_of("SiglipForImageClassification"))
    with pytest.raises(TypeError, match="unexpected keyword argument 'label'"):
        pmap_forward(model)(params, batch["pixel_values"], label=batch["labels"])


def test_uneven_batches_are_refused():
    model, params, batch, _ = setting("SiglipVisionModel")
    with pytest.raises(ValueError, match="batch size must be a multiple of the 8 devices, got 6; drop or repeat"):
        pmap_forward(model)(params, batch["pixel_values"][:6])
    whole, params, both, _ = setting("SiglipModel")
    with pytest.raises(ValueError, match="must be a multiple of the 8 devices, got 1"):  # one image, eight texts
        pmap_forward(whole)(params, input_ids=both["input_ids"], pixel_values=both["pixel_values"][:1])
    with pytest.raises(ValueError, match="input_ids or pixel_values must be given .* got neither"):
        pmap_forward(whole)(params, return_loss=True)
    with pytest.raises(ValueError, match="multiple of the 4 devices along data, got 6 examples on each of 1 processes"):
        global_batch(np.zeros((6, 2)), make_mesh(data=4, fsdp=2), "data")


@pytest.mark.slow
def test_as_many_texts_as_one_likes():
    """The numbers of images and texts need not be the same, only divide evenly."""
    model, params, batch, _ = setting("SiglipModel")
    batch = batch | {"input_ids": jnp.concatenate([batch["input_ids"], batch["input_ids"][::-1]])}
    expected = jax.jit(lambda p, b: model.apply({"params": p}, **b))(params, batch)
    found = pmap_forward(model)(params, **batch)
    assert found.logits_per_image.shape == (8, 16)
    assert_same(found, expected)


def test_parameters_placed_once_stay_where_they_are():
    """Parameters that are placed on all devices already are not copied again."""
    model, params, batch, _ = setting("SiglipVisionModel")
    mesh = make_mesh()
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    assert_same(pmap_forward(model)(placed, **batch), expected_of("SiglipVisionModel"))
