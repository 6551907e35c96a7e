"""The configuration of a module must be that of its class."""

import re

import jax
import jax.numpy as jnp
import pytest

import siglip_jax
from siglip_jax.configs import Siglip2Config, SiglipConfig, SiglipTextConfig
from siglip_jax.models.pretrained import _check_config

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("SiglipModel", Siglip2Config(), "a SiglipModel, got a Siglip2Config; use Siglip2Model"),
        ("Siglip2Model", SiglipConfig(), "a Siglip2Model, got a SiglipConfig; use SiglipModel"),
        ("SiglipVisionModel", SiglipConfig(), "a SiglipVisionModel, got a SiglipConfig; pass config.vision_config"),
        ("Siglip2TextModel", Siglip2Config(), "a Siglip2TextModel, got a Siglip2Config; pass config.text_config"),
        ("SiglipVisionModel", SiglipTextConfig(), "a SiglipVisionModel, got a SiglipTextConfig; use SiglipTextModel"),
        ("SiglipForImageClassification", Siglip2Config(), "got a Siglip2Config; use Siglip2ForImageClassification"),
        ("SiglipModel", {"hidden_size": 3}, "a SiglipModel, got a dict; pass a configuration of its class"),
    ],
)
def test_the_configuration_of_another_class_is_refused(name, config, words):
    # In tests, the checker of annotations would speak before the module itself.
    with pytest.raises(ValueError, match=f"^config must be that of .*{re.escape(words)}$"):
        _check_config(getattr(siglip_jax, name), config)


def test_a_module_checks_its_configuration():
    with pytest.raises(ValueError, match="a SiglipModel, got a Siglip2Config; use Siglip2Model"):
        siglip_jax.SiglipModel(Siglip2Config())


def test_a_class_of_the_user_takes_the_configuration_of_its_base():
    class Mine(siglip_jax.SiglipTextModel):
        """Adds nothing."""

    model = Mine(SiglipTextConfig(**SMALL, vocab_size=9, max_position_embeddings=4))
    shape = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    assert shape["params"]["text_model"]["embeddings"]["token_embedding"]["embedding"].shape == (9, 32)
    with pytest.raises(ValueError, match="a SiglipTextModel, got a SiglipConfig; pass config.text_config"):
        _check_config(Mine, SiglipConfig())
