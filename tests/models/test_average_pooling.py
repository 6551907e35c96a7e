"""Average pooling: the embedding is the mean of the patches, padding left out, and files keep that it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import siglip_jax
from siglip_jax.configs.configuration import Siglip2VisionConfig, SiglipVisionConfig
from siglip_jax.models import Siglip2VisionModel, SiglipVisionModel
from tests.support.tiny_checkpoint import write_checkpoint

POOLED = {"vision_use_head": False, "average_pooling": True}
SIZES = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 3, "patch_size": 4}


def test_the_embedding_is_the_mean_of_the_patches():
    model = SiglipVisionModel(SiglipVisionConfig(**SIZES, **POOLED, image_size=12))
    images = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    out, variables = jax.jit(model.init_with_output)(jax.random.key(1), images)
    assert "head" not in variables["params"]["vision_model"]
    mean = np.asarray(out.last_hidden_state, np.float64).mean(axis=1)
    np.testing.assert_allclose(out.embedding, mean, rtol=1e-5, atol=1e-6)


def test_padding_is_left_out():
    model = Siglip2VisionModel(Siglip2VisionConfig(**SIZES, **POOLED, num_patches=9))
    patches, grids = jax.random.normal(jax.random.key(0), (2, 7, 48)), jnp.array([[2, 3], [1, 7]])
    mask = (jnp.arange(7)[None] < grids.prod(axis=1)[:, None]).astype(jnp.int32)
    out, _ = jax.jit(model.init_with_output)(jax.random.key(1), patches, mask, grids)
    tokens = np.asarray(out.last_hidden_state, np.float64)
    mean = np.stack([tokens[0, :6].mean(axis=0), tokens[1].mean(axis=0)])
    np.testing.assert_allclose(out.embedding, mean, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    """A whole model with average pooling."""
    whole = siglip_jax.read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("pooled"), text_length=16))
    config = whole.config.replace(vision_config=whole.config.vision_config.replace(**POOLED))
    tower = {name: x for name, x in whole.params["vision_model"].items() if name != "head"}
    return dataclasses.replace(whole, config=config, params=whole.params | {"vision_model": tower})


@pytest.mark.parametrize("format", ["huggingface", "big_vision", "orbax"])
def test_files_keep_it(pooled, tmp_path, format):
    path = tmp_path / "model.npz"
    siglip_jax.write_checkpoint(path, pooled, format)
    assert siglip_jax.read_checkpoint(path).config == pooled.config
    assert pooled.config.to_dict()["vision_config"].keys() >= {"average_pooling"}
    assert "average_pooling" not in SiglipVisionConfig().to_dict()


def test_two_towers_of_big_vision_without_a_head_are_averaged(pooled, tmp_path):
    siglip_jax.write_checkpoint(tmp_path / "model.npz", pooled, "big_vision")
    with np.load(tmp_path / "model.npz") as arrays:
        names = [name for name in arrays.files if arrays[name].dtype.kind == "f"]
        np.savez(tmp_path / "bare.npz", **{name: arrays[name] for name in names})
    read = siglip_jax.read_checkpoint(tmp_path / "bare.npz").config.vision_config
    assert (read.vision_use_head, read.average_pooling) == (False, True)


def test_what_cannot_hold_it_refuses_it(pooled, tmp_path):
    with pytest.raises(ValueError, match="average_pooling must be False for open_clip, got True; write the format hug"):
        siglip_jax.write_checkpoint(tmp_path, pooled, "open_clip")
    with pytest.raises(ValueError, match="vision_use_head must be False with average_pooling, got True"):
        SiglipVisionConfig(average_pooling=True)
