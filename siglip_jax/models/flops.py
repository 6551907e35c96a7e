"""How much the towers compute going forward: their matrix products, counted from the sizes."""

from siglip_jax.configuration import SiglipTextConfig, TextConfig, VisionConfig


def layer_flops(tower: TextConfig | VisionConfig, tokens: int) -> int:
    """Returns the floating-point operations of one layer for one example: projections, attention, MLP."""
    width, hidden = tower.hidden_size, tower.intermediate_size
    return 2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width


def image_flops(vision: VisionConfig, tokens: int | None = None) -> int:
    """Returns those of the image tower for one picture, forward.

    Args:
      tokens: patches of the picture; those of the configuration by default.
    """
    width, tokens = vision.hidden_size, tokens or vision.num_patches
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
