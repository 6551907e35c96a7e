"""The module computes what big_vision's `vit` computes, with its parameters and outputs, also within NNX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

from siglip_jax import SiglipVisionConfig, SiglipVisionModel
from siglip_jax.interop import big_vision_module, from_big_vision
from siglip_jax.params import flatten
from tests.support import big_vision_modules
from tests.support.cases import VISION
from tests.support.jax_neighbours import random_values

SIZES = {"width": 32, "depth": 2, "mlp_dim": 77, "num_heads": 4}
PATCH = 5


def theirs(scan, pool, classes):
    sizes = {"width": 32, "depth": 2, "mlp_dim": 77, "heads": 4, "patch": PATCH}
    return big_vision_modules.Image(**sizes, scan=scan, pool=pool, classes=classes)


def ours(scan, pool, classes=None, **fields):
    return big_vision_module(classes, **SIZES, patch_size=(PATCH, PATCH), pool_type=pool, scan=scan, **fields)


def random_tree(module, *inputs):
    return random_values(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])


def pixels(rows=18, columns=25):
    return np.random.RandomState(1).uniform(-1, 1, (2, rows, columns, 3)).astype(np.float32)


def error(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scan", "pool", "classes"), [(True, "none", 48), (False, "map", None), (True, "gap", 7), (False, "0", None)]
)
def test_results_and_parameters_are_those_of_big_vision(scan, pool, classes):
    """On images that are not square nor whole patches; pi0 is the first case."""
    images, reference, module = pixels(), theirs(scan, pool, classes), ours(scan, pool, classes)
    tree = random_tree(reference, images)
    made = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    assert {k: x.shape for k, x in flatten(made).items()} == {k: x.shape for k, x in flatten(tree).items()}
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(reference.apply)({"params": tree}, images)
        x, out = jax.jit(functools.partial(module.apply, train=False))({"params": tree}, images)
    assert error(x, expected) <= 1e-6
    encoded = out["encoded"]
    assert error(out["encoder"]["block01"]["+mlp"], out["encoder"]["pre_ln"]) == 0
    assert sorted(out["encoder"]) == ["block00", "block01", "pre_ln"]
    assert encoded.shape == (2, 15, 32) and out["stem"].shape == (2, 3, 5, 32)
    assert out["with_posemb"].shape == (2, 15, 32)
    assert error(out["pre_logits_2d"], encoded.reshape(2, 3, 5, 32)) == 0
    names = {"stem", "with_posemb", "encoder", "encoded", "pre_logits_2d", "pre_logits"}
    names |= {"logits", "logits_2d"} if classes else set()
    assert set(out) == names | (set() if pool == "none" else {"head_input"})
    if classes:
        dense = np.asarray(encoded, np.float64) @ tree["head"]["kernel"] + tree["head"]["bias"]
        assert error(out["logits_2d"], dense.reshape(2, 3, 5, classes)) <= 1e-5


def test_bfloat16_to_rounding():
    images, module = pixels(), ours(True, "none", 48, dtype_mm="bfloat16")
    tree = random_tree(module, images)
    exact = jax.jit(ours(True, "none", 48).apply)({"params": tree}, images)[0]
    x, out = jax.jit(module.apply)({"params": tree}, images)
    assert x.dtype == jnp.bfloat16 and out["stem"].dtype == jnp.float32
    assert 1e-5 < error(x, exact) < 0.03


def test_fixed_positions():
    images = pixels(20, 10)
    module = ours(False, "gap", posemb="sincos2d")
    tree = random_tree(module, images)
    assert "pos_embedding" not in tree
    out = jax.jit(module.apply)({"params": tree}, images)[1]
    table = np.asarray(out["with_posemb"] - out["stem"].reshape(2, 8, 32))[0]
    for patch, (row, column) in enumerate((i, j) for i in range(4) for j in range(2)):
        omega = [10_000 ** -(k / 7) for k in range(8)]
        angles = [column * w for w in omega], [row * w for w in omega]
        expected = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)])
        np.testing.assert_allclose(table[patch], expected, atol=2e-6)


def test_initial_values_are_those_of_big_vision():
    sizes = {"width": 128, "depth": 2, "num_heads": 2, "patch_size": (PATCH, PATCH)}
    made = jax.jit(big_vision_module(9, **sizes, pool_type="none", scan=True).init)(jax.random.key(0), pixels())
    flat = flatten(made["params"])
    assert not flat["head/kernel"].any()
    np.testing.assert_allclose(flat["pos_embedding"].std(), 1 / np.sqrt(128), rtol=0.1)
    mlp = flat["Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"]
    np.testing.assert_allclose(mlp.std((1, 2)), np.sqrt(2 / (128 + 512)), rtol=0.05)  # Glorot's, in every layer
    assert np.abs(flat["Transformer/encoderblock/MlpBlock_0/Dense_0/bias"]).max() < 1e-5
    np.testing.assert_allclose(flat["embedding/kernel"].std(), np.sqrt(1 / 75), rtol=0.05)


def test_the_tree_of_the_module_is_read_as_a_tower():
    images = pixels(20, 20)
    module = ours(True, "map")
    tree = random_tree(module, images)
    params, config = from_big_vision(tree, scan_layers=True)
    model = SiglipVisionModel(config, scan_layers=True)
    found = jax.jit(model.apply)({"params": params}, images).pooler_output
    assert error(found, jax.jit(module.apply)({"params": tree}, images)[0]) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_openpi_makes_an_nnx_module_of_it(scan):
    """As `Pi0` does: `ToNNX`, `lazy_init`, then `nnx.state`, whose paths end with the names of the checkpoint."""
    images, module = pixels(), ours(scan, "none", 48)
    tree = random_tree(module, images)
    model = nnx.jit(lambda x: bridge.ToNNX(module).lazy_init(x, train=False, rngs=nnx.Rngs(0)))(images)
    state = nnx.state(model, nnx.Param)
    assert {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)} == set(flatten(tree))
    nnx.update(model, nnx.State(jax.tree.map(nnx.Param, tree)))
    found = nnx.jit(lambda m, x: m(x, train=False)[0])(model, images)
    assert error(found, jax.jit(module.apply)({"params": tree}, images)[0]) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [True, False])
def test_modules_of_this_package_within_nnx(scan_layers):
    """What docs say of NNX: `ToNNX` with `lazy_init`, then `nnx.update` with parameters that were loaded."""
    images = np.random.RandomState(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    module = SiglipVisionModel(SiglipVisionConfig(**VISION, vision_use_head=False), scan_layers=scan_layers)
    params = random_tree(module, images)
    model = nnx.jit(lambda x: bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(x))(images)
    nnx.update(model, nnx.State(jax.tree.map(nnx.Param, params)))
    expected = jax.jit(module.apply)({"params": params}, images).last_hidden_state
    assert error(nnx.jit(lambda m, x: m(x).last_hidden_state)(model, images), expected) <= 1e-6
    found = flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert {k: np.shape(x) for k, x in found.items()} == {k: x.shape for k, x in flatten(params).items()}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"variant": "B/x"}, "variant must be one of mu, Ti, .*, with a patch size as in B/16, got 'B/x'"),
        ({"variant": "XL"}, "variant must be one of mu, Ti, .* got 'XL'"),
        ({"dropout": 0.1}, "dropout must be off, got 0.1"),
        ({"rep_size": True}, "rep_size must be off, got True"),
        ({"pool_type": "tok"}, r"pool_type must be one of \('map', 'gap', '0', 'none'\), got 'tok'"),
        ({"posemb": "none"}, "posemb must be one of"),
        ({"remat_policy": "all"}, "remat_policy must be one of"),
    ],
)
def test_what_this_encoder_does_not_have_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        module = big_vision_module(**{"variant": "mu/16"} | fields)
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_parameters_of_another_size_are_refused():
    images = pixels()
    tree = random_tree(ours(True, "none"), images)
    with pytest.raises(
        ValueError, match=r"1 of the wrong shape \(pos_embedding must be \(1, 9, 32\), got \(1, 15, 32\)"
    ):
        ours(True, "none").apply({"params": tree}, pixels(15, 15))


def test_variants_are_those_of_big_vision():
    module = big_vision_module(variant="So400m/14", pool_type="none", dropout=0.0)
    assert (module.width, module.depth, module.mlp_dim, module.num_heads) == (1152, 27, 4304, 16)
    assert module.patch_size == (14, 14) and big_vision_module(variant="B").patch_size == (16, 16)
    assert big_vision_module(variant="L/16", depth=3).depth == 3
