"""How much a training step computes: the matrix products of the towers and of the loss, counted from the sizes."""

from siglip_jax.configuration import SiglipConfig
from siglip_jax.models.flops import image_flops, text_flops

FORWARD_AND_BACKWARD = 3  # the backward pass multiplies twice for each product of the forward pass


def step_flops(
    config: SiglipConfig, images: int, texts: int, *, image_trained: bool = True, text_trained: bool = True
) -> int:
    """Returns those of a step: a frozen tower runs forward only; what remat computes again is not counted.

    Args:
      images, texts: in the step, 0 where embeddings are given instead.
    """
    image = images * image_flops(config.vision_config) * (FORWARD_AND_BACKWARD if image_trained else 1)
    text = texts * text_flops(config.text_config) * (FORWARD_AND_BACKWARD if text_trained else 1)
    return image + text + 2 * FORWARD_AND_BACKWARD * images * texts * config.text_config.embedding_size
