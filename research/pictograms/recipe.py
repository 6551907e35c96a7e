"""The training stages of the bundled model, and how a model grows from one stage to the next."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.surgery import with_patch_size, with_resolution
from siglip_jax.configs.configuration import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
from siglip_jax.training.recipe import Optimizer, Recipe, Schedule

SIZE = 64  # pixels of the drawings, and of the inputs of the finished model

# The rate is that of Muon, for its matrices; Adam trains patches, tables, norms, biases and the two logit scalars.
RATES = ((".*/patch_embedding/kernel", 0.15), (".*/kernel", 1.0), (".*", 0.15))
DECAYS = ((".*/patch_embedding/kernel", 0.0), (".*/kernel", 1.0), (".*", 0.0))


def make_recipe(images: int, steps: int, warmup: int, rate: float, seed: int) -> Recipe:
    """Returns a recipe with Muon, a warm-up and a decay of `steps` in all, for batches of `images`."""
    muon = Optimizer(
        "muon",
        rate=rate,
        rates=RATES,
        weight_decay=0.02 * rate,
        decays=DECAYS,
        beta1=0.95,
        clip_norm=None,
        average=0.998,
    )
    schedule = Schedule("cosine", warmup=f"{warmup} steps", final=0.02)
    return Recipe(batch_size=images, duration=f"{steps} steps", optimizer=muon, schedule=schedule, seed=seed)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Everything that the result of a stage depends on, besides the data and the initial weights."""

    recipe: Recipe  # optimizer, schedule, duration in steps, seed; batch_size counts images
    texts: int = 512  # texts in a step; the first ones describe the images, the others are negatives
    wide: float = 0.0  # share of the images augmented towards styles and backgrounds that no training image has
    smallest: float = 0.8  # smallest scale of an image
    blend: float = 1.0  # weight of the trained parameters in the result; the rest is that of the initial ones
    temperature: float = 10.0  # initial temperature of random weights
    image_size: int = SIZE  # pixels that the images are downsampled to
    patch_size: int = 16  # pixels
    vision_width: int = 192  # features
    vision_depth: int = 4  # layers
    text_width: int = 128  # features
    text_depth: int = 2  # layers
    head_width: int = 32  # features of one attention head
    positions: int = 16  # tokens, including the closing one

    def config(self, vocab_size: int) -> SiglipConfig:
        """Returns the configuration of the model for a vocabulary of the given size."""
        text = SiglipTextConfig(
            vocab_size=vocab_size,
            hidden_size=self.text_width,
            intermediate_size=4 * self.text_width,
            num_hidden_layers=self.text_depth,
            num_attention_heads=self.text_width // self.head_width,
            max_position_embeddings=self.positions,
            projection_size=self.vision_width,
            bos_token_id=None,
            eos_token_id=1,
        )
        vision = SiglipVisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=4 * self.vision_width,
            num_hidden_layers=self.vision_depth,
            num_attention_heads=self.vision_width // self.head_width,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        return SiglipConfig(text_config=text, vision_config=vision)


STAGES = (
    Stage(make_recipe(images=384, steps=3000, warmup=150, rate=0.02, seed=0)),
    # Other styles; blended by half, because it loses on plain images what it gains on others.
    Stage(make_recipe(images=384, steps=500, warmup=30, rate=0.012, seed=1), wide=1.0, smallest=0.65, blend=0.5),
    # Finer patches, which cost four times as much; most steps use smaller images, which cost half of that.
    Stage(
        make_recipe(images=256, steps=2000, warmup=50, rate=0.01, seed=2),
        wide=0.4,
        smallest=0.7,
        image_size=48,
        patch_size=8,
    ),
    Stage(make_recipe(images=256, steps=300, warmup=30, rate=0.004, seed=3), wide=0.4, smallest=0.7, patch_size=8),
)


def blended(start: Any, trained: Any, share: float) -> Any:
    """Interpolates between the initial weights of a stage (`share` 0) and its final weights (1).

    Fine-tuned and original weights share a basin of the loss, and weights between them can be better on both kinds of
    data (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903).
    """
    return jax.tree.map(lambda a, b: (1 - share) * a + share * b, start, trained)


def grown(config: SiglipConfig, params: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """Returns the initial parameters of a stage: a trained model's, resized to its patches and image size.

    A finer patch embeds as its enlargement did (`surgery.with_patch_size`), and the positions are interpolated. About
    a third of the names that were right before are still right.
    """
    start = Checkpoint(config, params, "huggingface", "SiglipModel")
    vision = config.vision_config
    if stage.patch_size != vision.patch_size:
        start = with_patch_size(start, stage.patch_size).checkpoint
    if (stage.image_size, stage.patch_size) != (vision.image_size, vision.patch_size):
        start = with_resolution(start, stage.image_size).checkpoint
    return jax.tree.map(
        lambda x: jnp.array(x, jnp.float32), start.params
    )  # copies, because the first step donates them
