"""A tiny random SigLIP on disk, in the layout of the Hub: weights, vocabulary and the files of the processor."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece

import siglip_jax
from siglip_jax.assets import BUNDLED_MODEL
from siglip_jax.configs.configuration import Siglip2Config, SiglipConfig
from siglip_jax.models import Siglip2Model, SiglipModel

SENTENCES = """a photo of a cat
a photo of two dogs on the beach
this is a photo of a red car
a drawing of a house and a tree
the quick brown fox jumps over the lazy dog
pictures of lions tigers and zebras in the zoo""".splitlines()


def write_vocabulary(path: Path) -> int:
    """Trains a sentencepiece model of SigLIP's layout into `path` and returns its size."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 20),
            model_writer=file,
            vocab_size=60,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece="<pad>",
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size()


def tiny_config(vocab_size: int, text_length: int = 64, flexible: bool = False) -> SiglipConfig:
    """Returns a configuration of two layers a tower, 32 wide, for images of 32 x 32, or of any form."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = tower | {"vocab_size": vocab_size, "max_position_embeddings": text_length}
    if flexible:
        return Siglip2Config(text_config=text, vision_config=tower | {"num_patches": 16, "patch_size": 8})
    return SiglipConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8})


def write_checkpoint(
    directory: Path, text_length: int = 64, seed: int = 0, flexible: bool = False, digits: bool = False
) -> Path:
    """Writes everything `siglip_jax.load` and `transformers` need into `directory` and returns it.

    With `flexible` it is a model of variable resolution, with `digits` it has the vocabulary of the bundled model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if digits:
        shutil.copy(BUNDLED_MODEL / "spiece.model", directory)
    vocabulary = 2048 if digits else write_vocabulary(directory / "spiece.model")
    config = tiny_config(vocabulary, text_length, flexible)
    model = Siglip2Model(config) if flexible else SiglipModel(config)
    inputs = {"input_ids": jnp.zeros((1, text_length), jnp.int32), "pixel_values": jnp.zeros((1, 32, 32, 3))}
    if flexible:
        inputs |= {"pixel_values": jnp.zeros((1, 16, 192)), "spatial_shapes": jnp.full((1, 2), 4)}
    params = jax.jit(model.init)(jax.random.key(seed), **inputs)["params"]
    rng = np.random.default_rng(seed)
    # Fresh biases and scales are all alike: shake them, or a mix-up of two would not show.
    params = jax.tree.map(lambda x: x + rng.normal(scale=0.05, size=x.shape).astype(np.float32), params)
    params["logit_scale"], params["logit_bias"] = jnp.array([2.0]), jnp.array([-1.0])
    model.save_pretrained(directory, params)
    half = [0.5, 0.5, 0.5]
    images = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": half,
        "image_std": half,
    }
    if flexible:
        images |= {"image_processor_type": "Siglip2ImageProcessor", "resample": 2}
        images |= {"patch_size": 8, "max_num_patches": 20}
        del images["size"]
    tokens = {
        "tokenizer_class": "SiglipTokenizer",
        "model_max_length": text_length,
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "do_lower_case": True,
        "model_input_names": ["input_ids"],  # as published: with a mask the text tower would see other texts
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(images | {"processor_class": "SiglipProcessor"}))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokens | {"processor_class": "SiglipProcessor"}))
    return directory


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> np.ndarray:
    """Returns a smooth random image, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[1], 0 : size[0]] / max(size)
    waves = [np.sin(2 * np.pi * (rng.uniform(1, 4) * x + rng.uniform(1, 4) * y + rng.uniform())) for _ in range(3)]
    return np.uint8(np.round(127.5 * (1 + np.stack(waves, -1))))


def write_classifier(source, directory, **fields):
    """Writes a classifier with a random last layer and its image processor, and returns the directory."""
    family = "Siglip2" if "siglip2" in (source / "config.json").read_text() else "Siglip"
    config = getattr(siglip_jax, f"{family}Config").from_pretrained(source).replace(**fields)
    model, params = getattr(siglip_jax, f"{family}ForImageClassification").from_pretrained(source, config=config)
    rng = np.random.default_rng(1)
    if "classifier" in params:
        params["classifier"] = {
            k: jnp.asarray(rng.normal(size=x.shape), x.dtype) for k, x in params["classifier"].items()
        }
    model.save_pretrained(directory, params)
    shutil.copy(source / "preprocessor_config.json", directory)
    return directory
