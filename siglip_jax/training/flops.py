"""How much a training step computes: the matrix products of the towers and of the loss, counted from the sizes."""

from siglip_jax.configuration import SiglipConfig, SiglipTextConfig, SiglipVisionConfig

FORWARD_AND_BACKWARD = 3  # the backward pass multiplies twice for each product of the forward pass


def layer_flops(tower: SiglipTextConfig | SiglipVisionConfig, tokens: int) -> int:
    """Returns the floating-point operations of one layer for one example: projections, attention, MLP."""
    width, hidden = tower.hidden_size, tower.intermediate_size
    return 2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width


def image_flops(vision: SiglipVisionConfig) -> int:
    """Returns those of the image tower for one picture, forward."""
    width, tokens = vision.hidden_size, vision.num_patches
    patches = 2 * tokens * vision.patch_size**2 * vision.num_channels * width
    head = 0
    if vision.vision_use_head:  # one query: keys and values of all patches, its own projections, its MLP
        head = 4 * tokens * width * width + 4 * tokens * width + 2 * (2 * width * width)
        head += 4 * width * vision.intermediate_size
    return patches + vision.num_hidden_layers * layer_flops(vision, tokens) + head


def text_flops(text: SiglipTextConfig) -> int:
    """Returns those of the text tower for one text, forward; looking up embeddings is none."""
    tokens = text.max_position_embeddings
    return text.num_hidden_layers * layer_flops(text, tokens) + 2 * text.hidden_size * text.embedding_size


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
