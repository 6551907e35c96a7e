"""The model of two towers computes what big_vision's `two_towers` computes, with its parameters and outputs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from siglip_jax import SiglipModel
from siglip_jax.interop import BigVisionTwoTowers, from_big_vision
from siglip_jax.params import flatten
from tests.interop.test_module import error, random_tree
from tests.support import big_vision_modules

SIZES = {"width": 24, "depth": 2, "mlp_dim": 55}  # heads of 8 and of 6
VOCABULARY = 31


def towers(scan, text=24, heads=4, bias_init=-10.0, **fields):
    """The model with image embeddings as wide as the tower, as all published ones."""
    image = SIZES | {"num_heads": 3, "patch_size": (5, 5), "pool_type": "map", "scan": scan}
    return BigVisionTwoTowers(
        image=image,
        text=SIZES | {"num_heads": heads, "vocab_size": VOCABULARY, "scan": scan} | fields,
        out_dim=(None, text),
        temperature_init=10.0,
        bias_init=bias_init,
    )


def reference(scan, text=24):
    image = SIZES | {"heads": 3, "patch": 5, "scan": scan}
    words = SIZES | {"heads": 4, "vocabulary": VOCABULARY, "out": text, "scan": scan}
    return big_vision_modules.TwoTowers(freeze(image), freeze(words))


def inputs():
    random = np.random.RandomState(2)
    return random.uniform(-1, 1, (2, 20, 20, 3)).astype(np.float32), random.randint(0, VOCABULARY, (3, 16))


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_results_and_parameters_are_those_of_big_vision(scan):
    images, ids = inputs()
    theirs, ours = reference(scan), towers(scan)
    made = jax.eval_shape(ours.init, jax.random.key(0), images, ids)["params"]
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), images, ids)["params"]
    assert {k: x.shape for k, x in flatten(made).items()} == {k: x.shape for k, x in flatten(shapes).items()}
    tree = random_tree(ours, images, ids)
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(theirs.apply)({"params": tree}, images, ids)
        zimg, ztxt, out = jax.jit(functools.partial(ours.apply, train=True))({"params": tree}, images, ids)
    zimg, ztxt, out = jax.tree.map(np.asarray, (zimg, ztxt, out))
    logits = zimg @ ztxt.T * out["t"] + out["b"]
    assert error(zimg, expected["zimg"]) <= 1e-6 and error(ztxt, expected["ztxt"]) <= 1e-6
    assert error(logits, expected["logits"]) <= 1e-5
    assert (
        error(out["txt/logits"], expected["text"]) <= 1e-6 and error(out["img/pre_logits"], expected["image"]) <= 1e-6
    )
    assert error(out["txt/norm"][:, 0], np.linalg.norm(expected["text"], axis=1)) <= 1e-6
    assert error(out["img/normalized"], zimg) == 0 and error(out["t/parameter"], tree["t"]) == 0
    assert error(out["txt/vocab_logits"], out["txt/transformed"] @ tree["txt"]["Embed_0"]["embedding"].T) <= 1e-6
    assert error(out["txt/block01"]["+mlp"], out["txt/pre_ln"]) == 0
    assert error(out["txt/embedded"], tree["txt"]["Embed_0"]["embedding"][ids]) == 0
    names = {"embedded", "transformed", "block00", "block01", "pre_ln", "vocab_logits", "pre_logits", "logits"}
    assert {k for k in out if k.startswith("txt/")} == {f"txt/{k}" for k in (*names, "norm", "normalized")}

    params, config = from_big_vision(tree, scan_layers=scan)
    model = SiglipModel(config, scan_layers=scan)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(model.apply)({"params": params}, ids, images)
    assert error(found.image_embeds, zimg) <= 1e-6 and error(found.text_embeds, ztxt) <= 1e-6
    assert error(found.logits_per_image, logits) <= 1e-5


@pytest.mark.slow
def test_one_input_is_enough_and_initial_values_are_those_of_big_vision():
    images, ids = inputs()
    model = towers(True)
    variables = jax.jit(model.init)(jax.random.key(0), images, ids)
    flat = flatten(variables["params"])
    np.testing.assert_allclose(flat["t"], [np.log(10.0)], rtol=1e-6)
    assert flat["b"].tolist() == [-10.0] and flat["t"].dtype == flat["b"].dtype == np.float32
    np.testing.assert_allclose(flat["txt/pos_embedding"].std(), 24**-0.5, rtol=0.2)
    np.testing.assert_allclose(flat["txt/Embed_0/embedding"].std(), 24**-0.5, rtol=0.2)
    both = jax.eval_shape(model.apply, variables, images, ids)
    zimg, ztxt, out = jax.eval_shape(model.apply, variables, images)
    assert (zimg.shape, ztxt) == ((2, 24), None) and not any(key.startswith("txt/") for key in out)
    zimg, ztxt, out = jax.eval_shape(lambda v: model.apply(v, None, text=jnp.asarray(ids)), variables)
    assert (zimg, ztxt.shape) == (None, (3, 24)) and out.keys() < both[2].keys()
    only = jax.eval_shape(towers(True, bias_init=None).init, jax.random.key(0), images, ids)
    assert "b" not in only["params"]


@pytest.mark.slow
def test_texts_are_pooled_as_in_big_vision():
    _, ids = inputs()
    tree = random_tree(towers(False, text=None, depth=1), None, ids)
    assert "head" not in tree["txt"]
    pools = {"first": lambda x: x[:, 0], "mean": lambda x: x.mean(1), "max": lambda x: x.max(1)}
    for pool, pooled in pools.items():
        found: Any = towers(False, text=None, depth=1, pool_type=pool).apply({"params": tree}, None, ids)
        _, ztxt, out = found
        expected = pooled(np.asarray(out["txt/transformed"], np.float64))
        assert error(out["txt/pre_logits"], expected) <= 1e-6, pool
        assert error(ztxt, expected / np.linalg.norm(expected, axis=1, keepdims=True)) <= 1e-6, pool


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": {"variant": "XL"}}, "variant must be one of mu, Ti, .* got 'XL'"),
        ({"text": {"variant": "mu", "pool_type": "map"}}, "pool_type must be one of 'last', 'first', .* got 'map'"),
        ({"text": {"variant": "mu", "dropout": 0.1}}, "dropout must be off, got 0.1"),
        ({"text": {"variant": "mu", "remat_policy": "all"}}, "remat_policy must be one of"),
        ({"image_model": "bit"}, "image_model must be one of 'vit', got 'bit'"),
        ({"image": {"variant": "mu/16", "pool_type": "tok"}}, "pool_type must be one of"),
    ],
)
def test_what_these_towers_do_not_have_is_refused(fields, said):
    model = BigVisionTwoTowers(**{"image": {"variant": "mu/16"}, "text": {"variant": "mu"}} | fields)
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 4), int))


def test_parameters_of_another_depth_are_refused():
    images, ids = inputs()
    tree = random_tree(towers(True), images, ids)
    with pytest.raises(ValueError, match=r"Encoder_0/encoderblock/LayerNorm_0/scale must be \(3, 24\), got \(2, 24\)"):
        towers(True, depth=3).apply({"params": tree}, None, ids)
