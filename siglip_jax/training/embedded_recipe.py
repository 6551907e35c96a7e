"""What the embedded model is trained with: the recipe of each stage, and how a model grows from one to the next."""

import dataclasses
from typing import Any

import jax

from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.surgery import with_patch_size, with_resolution
from siglip_jax.configuration import SiglipConfig, SiglipTextConfig, SiglipVisionConfig

SIZE = 64  # pixels of the model's pictures


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything the result depends on, besides the data."""

    steps: int = 3000  # optimizer steps
    pictures: int = 384  # pictures in a step
    texts: int = 512  # texts in a step; the first ones describe the pictures, the others are negatives
    warmup: int = 150  # steps
    muon_rate: float = 0.02  # peak learning rate of the matrices
    adam_rate: float = 0.003  # peak learning rate of everything else
    final_rate: float = 0.02  # of the peak, reached at the last step along a cosine
    adam_b2: float = 0.95  # per step
    weight_decay: float = 0.02  # of the matrices, times the learning rate, per step
    average: float = 0.998  # decay of the moving average of the weights, per step
    blend: float = 1.0  # share of the trained weights in the stage's result; the rest are those it started from
    temperature: float = 10.0  # at the start
    seed: int = 0  # of the weights, the draws and the augmentation
    wide: bool = False  # augment towards styles and surroundings that no training picture has
    smallest: float = 0.8  # the least scale that a picture is drawn at
    low_size: int = 48  # pixels of the pictures in the first steps
    low_steps: int = 0  # how many those are
    vision_width: int = 192  # features
    vision_depth: int = 4  # layers
    text_width: int = 128  # features
    text_depth: int = 2  # layers
    head_width: int = 32  # features of one attention head
    patch_size: int = 16  # pixels
    positions: int = 16  # tokens, the closing one included

    def config(self, vocab_size: int) -> SiglipConfig:
        """The model's configuration for a vocabulary of the given size."""
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
            image_size=SIZE,
            patch_size=self.patch_size,
        )
        return SiglipConfig(text_config=text, vision_config=vision)


STAGES = (
    Recipe(),
    Recipe(  # other styles; half of it, as it loses on plain pictures what it gains on others
        steps=500,
        warmup=30,
        muon_rate=0.012,
        adam_rate=0.002,
        seed=1,
        wide=True,
        smallest=0.65,
        blend=0.5,
    ),
)


def blended(start: Any, trained: Any, share: float) -> Any:
    """Weights on the way from those a stage started from (`share` 0) to those it ended with (1).

    A model tuned for other data and the one it was tuned from lie in one valley, and what lies between can be better on
    both kinds of data (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903).
    """
    return jax.tree.map(lambda a, b: (1 - share) * a + share * b, start, trained)


def grown(config: SiglipConfig, params: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Parameters to start `recipe` from: those of a trained model, cut to finer patches where the recipe has such.

    A finer patch embeds as its own enlargement did (`surgery.with_patch_size`), and the positions are interpolated: of
    the names right before, about a third are still right.
    """
    start = Checkpoint(config, params, "huggingface", "SiglipModel")
    if recipe.patch_size != config.vision_config.patch_size:
        start = with_resolution(with_patch_size(start, recipe.patch_size).checkpoint, SIZE).checkpoint
    return start.params
