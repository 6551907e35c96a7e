"""Features of patches equal the reference's states, of any layer and size, and only the layers needed are computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax import Siglip2Model, Siglip2VisionModel, SiglipModel, SiglipVisionModel, pmap_forward
from siglip_jax.models import average_pool, map_mask
from siglip_jax.params import flatten
from tests.models.test_parity import error
from tests.support import cases, naflex_cases

TOLERANCE = 1e-5  # of the largest value


def made(tmp_path_factory, case):
    directory = cases.make_checkpoint(tmp_path_factory.mktemp("fixed"), case)
    return directory, cases.make_inputs(cases.make_config(case)), dict(np.load(cases.GOLDEN / f"{case}.npz"))


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    return made(tmp_path_factory, "odd_heads")


@pytest.fixture(scope="module")
def flexible(tmp_path_factory):
    directory = naflex_cases.make_checkpoint(tmp_path_factory.mktemp("naflex"), "naflex_odd")
    inputs = naflex_cases.make_inputs(naflex_cases.make_config("naflex_odd"))
    return directory, inputs, dict(np.load(cases.GOLDEN / "naflex_odd.npz"))


def compiled(model):
    return jax.jit(functools.partial(patch_features, model), static_argnames=("layer", "normalize", "as_map"))


def patch_features(model, params, *inputs, **options):
    return model.apply({"params": params}, *inputs, **options, method="get_patch_features")


def images_of(inputs):
    return inputs["pixel_values"], inputs["pixel_attention_mask"], inputs["spatial_shapes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "model_class", "scan_layers"),
    [("odd_heads", SiglipModel, True), ("non_divisible", SiglipVisionModel, False)],
)
def test_every_state_equals_the_reference(tmp_path_factory, case, model_class, scan_layers):
    directory, inputs, golden = made(tmp_path_factory, case)
    model, params = model_class.from_pretrained(directory, scan_layers=scan_layers)
    take = compiled(model)
    pixels = inputs["pixel_values"]
    last = golden["plain/vision.last_hidden_state"]
    side = int(last.shape[1] ** 0.5)
    found = take(params, pixels)
    assert found.shape == (len(pixels), side, side, last.shape[2])
    assert error(np.asarray(found).reshape(last.shape), last) <= TOLERANCE
    for layer in (0, -2, 2):
        state = golden[f"plain/vision.hidden_states.{layer % 3}"]
        assert error(take(params, pixels, layer=layer, normalize=layer < 2, as_map=False), state) <= TOLERANCE
    other = golden["interpolated/vision.last_hidden_state"]
    found = np.asarray(take(params, inputs["other_pixels"]))
    assert found.shape[1] != found.shape[2] and error(found.reshape(other.shape), other) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("model_class", "scan_layers"), [(Siglip2Model, True), (Siglip2VisionModel, False)])
def test_every_state_of_variable_resolution_equals_the_reference(flexible, model_class, scan_layers):
    directory, inputs, golden = flexible
    model, params = model_class.from_pretrained(directory, scan_layers=scan_layers)
    images = images_of(inputs)
    for layer, normalize, name in ((1, True, "hidden_states.1"), (2, False, "hidden_states.2")):
        expected = golden[f"plain/vision.{name}"]
        found = compiled(model)(params, *images, layer=layer, normalize=normalize, as_map=False)
        assert error(found, expected) <= TOLERANCE
    expected = golden["plain/vision.last_hidden_state"]
    maps = np.asarray(patch_features(model, params, *images))
    assert maps.shape[1:3] == (12, 24)
    for tokens, found, (rows, columns) in zip(expected, maps, naflex_cases.GRIDS, strict=True):
        grid = tokens[: rows * columns].reshape(rows, columns, -1)
        assert error(found[:rows, :columns], grid, expected) <= TOLERANCE
        assert not found[rows:].any() and not found[:, columns:].any()
    larger = np.asarray(compiled(model)(params, *images, as_map=(12, 25)))
    assert larger.shape[1:3] == (12, 25) and not larger[:, :, 24:].any()
    np.testing.assert_allclose(larger[:, :, :24], maps, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_only_the_layers_needed_are_computed(fixed, scan_layers):
    directory, inputs, _ = fixed
    model, params = SiglipVisionModel.from_pretrained(directory, scan_layers=scan_layers, remat="full")
    programs = [
        str(jax.make_jaxpr(functools.partial(patch_features, model, layer=layer))(params, inputs["pixel_values"]))
        for layer in (0, 1, 2)
    ]
    products = [program.count("dot_general") for program in programs]
    if scan_layers:
        assert "length=" not in programs[0] and "length=1" in programs[1] and "length=2" in programs[2]
        assert products[0] < products[1] == products[2]
    else:
        assert products[1] - products[0] == products[2] - products[1] > 0
    # The second layer, the final norm and the head have no gradient; the first layer and the embeddings have.
    total = jax.jit(lambda p: patch_features(model, p, inputs["pixel_values"], layer=1).sum())
    gradients = jax.grad(total)(params)
    moved = {path for path, x in flatten(gradients).items() if np.asarray(x).any()}
    assert not any(path.startswith(("vision_model/head", "vision_model/post")) for path in moved)
    if scan_layers:
        stacked = gradients["vision_model"]["encoder"]["layers"]["mlp"]["fc2"]["kernel"]
        assert np.asarray(stacked[0]).any() and not np.asarray(stacked[1]).any()
    else:
        assert {path.split("/")[2] for path in moved if "encoder" in path} == {"layers_0"}


def test_parameters_are_complete_whatever_layer_creates_them(fixed):
    directory, inputs, _ = fixed
    model, params = SiglipVisionModel.from_pretrained(directory, scan_layers=True)
    made = jax.eval_shape(
        lambda key: model.init(key, inputs["pixel_values"], layer=0, method="get_patch_features"), jax.random.key(0)
    )["params"]
    assert {k: x.shape for k, x in flatten(made).items()} == {k: x.shape for k, x in flatten(params).items()}


def test_bfloat16_is_the_state_of_the_tower(fixed):
    directory, inputs, _ = fixed
    model, params = SiglipVisionModel.from_pretrained(directory, dtype=jnp.bfloat16)
    forward = jax.jit(functools.partial(model.apply, output_hidden_states=True))
    states = forward({"params": params}, inputs["pixel_values"])
    for expected, options in ((states.last_hidden_state, {}), (states.hidden_states[-2], {"layer": -2})):
        found = np.asarray(compiled(model)(params, inputs["pixel_values"], **options, as_map=False))
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=0.06)


def test_over_devices(fixed):
    directory, inputs, _ = fixed
    model, params = SiglipVisionModel.from_pretrained(directory)
    pixels = np.repeat(inputs["pixel_values"][:1], jax.local_device_count(), axis=0)
    found = pmap_forward(model, "get_patch_features")(params, pixels, layer=-2)
    np.testing.assert_allclose(found, compiled(model)(params, pixels, layer=-2), atol=1e-5)


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_does_not_exist_is_refused(fixed, layer):
    directory, inputs, _ = fixed
    model, params = SiglipVisionModel.from_pretrained(directory)
    with pytest.raises(ValueError, match="layer must be -3 to 2, 0 for the embeddings and 2 or -1"):
        patch_features(model, params, inputs["pixel_values"], layer=layer)


def test_maps_without_room_for_a_grid_are_refused(flexible):
    directory, inputs, _ = flexible
    model, params = Siglip2VisionModel.from_pretrained(directory)
    with pytest.raises(ValueError, match="as_map must be at least 12 x 24, which holds every grid, got 12 x 23"):
        patch_features(model, params, *images_of(inputs), as_map=(12, 23))
    with pytest.raises(ValueError, match=r"as_map must be a pair .* where the values of spatial_shapes are not known"):
        jax.jit(functools.partial(patch_features, model))(params, *images_of(inputs))


def test_averages():
    features = np.random.RandomState(0).standard_normal((3, 12, 24, 5)).astype(np.float32)
    grids = [(12, 24), (5, 7), (1, 1)]
    mask = np.asarray(map_mask(grids, (12, 24)))
    assert mask.sum((1, 2)).tolist() == [288, 35, 1]
    found = average_pool(features, mask=mask)[:, 0, 0]
    for x, mean, (rows, columns) in zip(features.astype(np.float64), found, grids, strict=True):
        np.testing.assert_allclose(mean, x[:rows, :columns].mean((0, 1)), rtol=1e-5, atol=1e-7)
    found = np.asarray(average_pool(features, (4, 6)))
    expected = [[features[:, 3 * i : 3 * i + 3, 4 * j : 4 * j + 4].mean((1, 2)) for j in range(6)] for i in range(4)]
    np.testing.assert_allclose(found, np.array(expected).transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
    pooled = np.asarray(average_pool(features, (4, 6), mask))
    assert not pooled[2].reshape(24, -1)[1:].any() and (pooled[2, 0, 0] == features[2, 0, 0]).all()
    assert average_pool(features.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="size must divide the 12 x 24 cells of features, got 5 x 6"):
        average_pool(features, (5, 6))


@pytest.mark.reference
def test_the_grid_of_gemma_3_equals_the_reference():
    torch = pytest.importorskip("torch")
    from transformers import Gemma3Config
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

    text = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 10}
    vision = {"hidden_size": 8, "image_size": 56, "patch_size": 7, "model_type": "siglip_vision_model"}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    projector = Gemma3MultiModalProjector(config)
    with torch.no_grad():  # the norm with weight 0 has gain 1, and the projection is an identity
        projector.mm_input_projection_weight.copy_(torch.eye(8))
    tokens = np.random.RandomState(0).standard_normal((2, 64, 8)).astype(np.float32)
    pooled = np.asarray(average_pool(jnp.asarray(tokens).reshape(2, 8, 8, 8), (2, 2))).reshape(2, 4, 8)
    normed = pooled / np.sqrt((pooled**2).mean(-1, keepdims=True) + vision.get("layer_norm_eps", 1e-6))
    with torch.no_grad():
        expected = projector(torch.tensor(tokens)).numpy()
    np.testing.assert_allclose(normed, expected, rtol=1e-5, atol=1e-6)
