"""Trees of big_vision in memory are those of its files, and go through this package and back to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import siglip_jax
from siglip_jax.interop import from_big_vision, to_big_vision
from siglip_jax.params import flatten, stack_layers, unflatten
from tests.support.scaled_variants import random_checkpoint, write_as_released
from tests.support.tiny_checkpoint import tiny_config

BOTH = ["vision_model", "text_model"]


@pytest.fixture(scope="module", params=[False, True], ids=["fixed", "naflex"])
def made(request):
    config = tiny_config(vocab_size=60, text_length=16, flexible=request.param)
    if request.param:  # the table of the released NaFlex models has 16 x 16 positions
        config = config.replace(vision_config=config.vision_config.replace(num_patches=256))
    return random_checkpoint(config, np.dtype(np.float32))


def assert_equal(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert set(found) == set(expected)
    assert all(np.array_equal(found[k], x) and found[k].dtype == x.dtype for k, x in expected.items())


def in_file(tmp_path, made, scan):
    path = write_as_released(tmp_path / f"{scan}.npz", made, BOTH if scan else [], prefix="")
    return unflatten(dict(np.load(path)))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_tree_is_that_of_the_file(tmp_path, made, scan, stacked):
    params = stack_layers(made.params) if stacked else made.params
    tree = in_file(tmp_path, made, scan)
    assert_equal(to_big_vision(params, made.config, scan), tree)
    found, config = from_big_vision({"params": tree}, scan_layers=stacked)
    assert_equal(found, params)
    assert config == made.config


def test_within_jit_and_with_jax_arrays(tmp_path, made):
    params = jax.tree.map(jnp.asarray, made.params)
    tree = jax.jit(lambda p: to_big_vision(p, made.config, True))(params)
    assert_equal(tree, in_file(tmp_path, made, True))
    found = from_big_vision(tree, scan_layers=True)[0]
    assert isinstance(found["logit_bias"], jax.Array)
    assert_equal(jax.jit(lambda t: from_big_vision(t)[0])(tree), made.params)


@pytest.mark.parametrize(("root", "part"), [("img", "vision_model"), ("txt", "text_model")])
def test_one_tower(tmp_path, made, root, part):
    tree = in_file(tmp_path, made, False)[root]
    config = getattr(made.config, f"{part.removesuffix('_model')}_config")
    assert_equal(to_big_vision({part: made.params[part]}, config), tree)
    for given in (tree, {"params": tree}, {root: tree}, {"params": {"PaliGemma": {root: tree, "llm": {}}}}):
        found, found_config = from_big_vision(given)
        assert_equal(found, {part: made.params[part]})
        # The text towers of both families are the same, and nothing in the tree tells them apart.
        assert found_config.to_dict() == config.to_dict() | {"model_type": found_config.model_type}


def test_what_is_no_tree_of_big_vision_is_refused(tmp_path, made):
    with pytest.raises(ValueError, match="pass variables"):
        to_big_vision({"params": made.params}, made.config)
    with pytest.raises(ValueError, match=r"the tree of parameters must hold .* 1 missing \(logit_bias\)"):
        to_big_vision({k: v for k, v in made.params.items() if k != "logit_bias"}, made.config)
    with pytest.raises(ValueError, match="or hold one of its towers, got"):
        from_big_vision(made.params)
    tree = in_file(tmp_path, made, False)
    del tree["img"]["embedding"]["bias"]
    with pytest.raises(ValueError, match=r"the tree must hold .* 1 missing \(img/embedding/bias\)"):
        from_big_vision(tree)


def test_the_text_head_that_was_not_released():
    made = random_checkpoint(tiny_config(vocab_size=60, text_length=16), np.dtype(np.float32), text_head=False)
    tree = to_big_vision(made.params, made.config)
    del tree["txt"]["head"]
    assert_equal(from_big_vision(tree)[0], made.params)


def test_a_classifier_is_refused():
    config = tiny_config(vocab_size=60).replace(num_labels=2)
    model = siglip_jax.SiglipForImageClassification(config)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))["params"]
    with pytest.raises(ValueError, match="unexpected"):
        to_big_vision(params, config)
