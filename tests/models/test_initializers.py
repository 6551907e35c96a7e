"""Both initialisations, against the paper's figures and against the reference's own draw."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax import SiglipConfig, SiglipForImageClassification, SiglipModel
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.formats.huggingface import to_tensors
from siglip_jax.params import flatten

D = 96
TOWER = {"hidden_size": D, "intermediate_size": 4 * D, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG = SiglipConfig(TOWER | {"vocab_size": 500}, TOWER | {"image_size": 64, "patch_size": 8}, num_labels=50)


def draw(scheme, model_class=SiglipModel):
    model = model_class(CONFIG, init_scheme=scheme)
    given = (jnp.ones((1, 64), jnp.int32),) if model_class is SiglipModel else ()
    return jax.jit(model.init)(jax.random.key(0), *given, jnp.ones((1, 64, 64, 3)))["params"]


def assert_spread(x, std, bound=None):
    x = np.asarray(x)
    assert abs(x.std() / std - 1) < 4 / math.sqrt(2 * x.size)
    if bound is not None:
        assert np.abs(x).max() <= bound and np.abs(x).max() > 0.9 * bound


@pytest.mark.slow
def test_the_paper_s():
    params = flatten(draw("paper"))
    assert params["logit_scale"] == pytest.approx(math.log(10)) and params["logit_bias"] == -10
    xavier = math.sqrt(6 / (2 * D))
    for tower in ("text_model", "vision_model"):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            kernel = params[f"{tower}/encoder/layers_1/self_attn/{name}/kernel"]
            assert_spread(kernel, xavier / math.sqrt(3), xavier)
            assert not params[f"{tower}/encoder/layers_1/self_attn/{name}/bias"].any()
        wide = math.sqrt(6 / (5 * D))
        assert_spread(params[f"{tower}/encoder/layers_0/mlp/fc1/kernel"], wide / math.sqrt(3), wide)
        assert_spread(params[f"{tower}/encoder/layers_0/mlp/fc1/bias"], 1e-6)
        assert_spread(params[f"{tower}/embeddings/position_embedding/embedding"], 1 / math.sqrt(D))
    assert_spread(params["text_model/embeddings/token_embedding/embedding"], 1 / math.sqrt(D))
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert_spread(params[f"vision_model/head/attention/{name}/kernel"], xavier / math.sqrt(3), xavier)
    lecun = 1 / math.sqrt(8 * 8 * 3)
    patch = params["vision_model/embeddings/patch_embedding/kernel"]
    assert_spread(patch, lecun)
    assert np.abs(patch).max() < 2 * lecun / 0.879  # cut at two standard deviations
    assert_spread(params["text_model/head/kernel"], 1 / math.sqrt(D))
    probe = math.sqrt(6 / (D + 1))
    assert np.abs(params["vision_model/head/probe"]).max() <= probe
    classifier = draw("paper", SiglipForImageClassification)["classifier"]
    assert not classifier["kernel"].any() and not classifier["bias"].any()


@pytest.mark.slow
def test_the_reference_s():
    pytest.importorskip("torch", reason="torch has no CPU build here")
    import torch
    import transformers

    torch.manual_seed(0)
    for model_class in (SiglipModel, SiglipForImageClassification):
        d = CONFIG.to_dict()
        reference = getattr(transformers, model_class.__name__)(transformers.SiglipConfig.from_dict(d))
        expected = {k: v.detach().numpy() for k, v in reference.named_parameters()}
        params = draw("reference", model_class)
        found = to_tensors(Checkpoint(CONFIG, params, "huggingface", model_class.__name__))
        assert set(found) == set(expected)
        for key, x in expected.items():
            size, y = x.size, found[key].make()
            if not x.std():
                assert (x == y).all(), key
                continue
            assert abs(y.std() / x.std() - 1) < 6 / math.sqrt(2 * size), key
            assert abs(np.abs(y).max() / np.abs(x).max() - 1) < (0.6 if size < 1000 else 0.35), key
