"""Token ids and positions outside the tables: errors on concrete values, NaN under `jit`."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax import SiglipTextModel
from siglip_jax.configs import SiglipTextConfig
from siglip_jax.models.encoder import Embedding

CONFIG = SiglipTextConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=4,
)  # fmt: skip
MODEL = SiglipTextModel(CONFIG)
IDS = np.array([[3, 10, 0, 1], [5, 2, 1, 1]], np.int32)


@pytest.fixture(scope="module")
def params():
    rng, shapes = np.random.default_rng(0), jax.eval_shape(MODEL.init, jax.random.key(0), IDS)["params"]
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@jax.jit
def pooled(params, ids, positions=None):
    return MODEL.apply({"params": params}, ids, position_ids=positions).pooler_output


@pytest.mark.parametrize("wrong", [-1, -100, 11, 2**31 - 1])
def test_an_id_outside_the_vocabulary(params, wrong):
    ids = IDS.copy()
    ids[0, 1] = wrong
    with pytest.raises(ValueError, match=f"^input_ids must be 0 to 10, got {wrong}; use the tokenizer of this model"):
        MODEL.apply({"params": params}, ids)
    with pytest.raises(ValueError, match="input_ids must be 0 to 10"):
        MODEL.apply({"params": params}, jnp.asarray(ids))
    found, expected = (pooled(params, rows) for rows in (ids, IDS))
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("wrong", [-1, 4])
def test_a_position_outside_the_table(params, wrong):
    positions = np.array([[0, 1, 2, wrong]], np.int32)
    with pytest.raises(ValueError, match=f"^position_ids must be 0 to 3, got {wrong}; "):
        MODEL.apply({"params": params}, IDS, position_ids=positions)
    assert np.isnan(pooled(params, IDS, positions)).all()


def test_the_lookup_needs_no_more_operations_than_a_plain_one():
    table, module = jnp.ones((11, 4)), Embedding(11, 4, jax.nn.initializers.zeros)
    plain = jax.jit(lambda table, ids: jnp.take(table, ids, axis=0)).lower(table, IDS)
    ours = jax.jit(lambda table, ids: module.apply({"params": {"embedding": table}}, ids)).lower(table, IDS)
    assert ours.as_text().count("stablehlo.") < plain.as_text().count("stablehlo.")


def test_the_engine_refuses_such_ids(shared_siglip):
    (ids,) = shared_siglip.tokens(["a cat"])
    with pytest.raises(ValueError, match="^input_ids must be 0 to .*, got -1; use the tokenizer of this model$"):
        shared_siglip.embed_tokens(np.where(np.arange(ids.shape[1]) == 3, -1, ids))


class TestUnpaddedTexts:
    SHORT = r"^input_ids has 3 tokens per text, and the model was trained on texts padded to 4: every score depends on"

    def test_warn_when_they_are_traced(self, params):
        step = jax.jit(lambda params, ids: MODEL.apply({"params": params}, ids).pooler_output)
        with pytest.warns(UserWarning, match=self.SHORT):
            step(params, IDS[:, :3])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(params, IDS[:, :3])  # compiled
            step(params, IDS)

    def test_a_mask_says_that_the_caller_knows(self, params):
        mask = np.ones((2, 3), np.int32)
        assert MODEL.apply({"params": params}, IDS[:, :3], mask).pooler_output.shape == (2, 8)
