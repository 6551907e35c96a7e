"""The choices that the engine makes by device and model; `siglip-jax info` prints them."""

import os
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from siglip_jax.configs.configuration import Config, TextConfig, VisionConfig
from siglip_jax.configs.towers import towers_of
from siglip_jax.models.attention import describe_attention
from siglip_jax.models.products import describe_products
from siglip_jax.parallel.mesh import batch_shards, platform_of

BATCH = 64
CPU_BATCH = {"images": 8, "texts": 32}  # least batch sizes; those of small models are up to `BATCH`
# Number of activations between two layers of a step on a CPU: rows times tokens times width. With twice as many, some
# models overflow the caches; with half as many, the products are too small. The measurements are in
# benchmarks/results/inference-cpu.txt.
CPU_STEP = 4 * 196 * 768


class Choices(NamedTuple):
    """How a model runs on this device.

    Attributes:
      device: JAX's name of the backend, such as "cpu".
      image_batch: default number of images per batch.
      text_batch: default number of texts per batch.
      image_rows: largest number of images that the tower processes at once; larger batches take several steps within
        the compiled code. None: the whole batch.
      text_rows: largest number of texts that the tower processes at once; larger batches take several steps within the
        compiled code. None: the whole batch.
      attention: attention implementation, in words.
      products: dtype and precision of matrix products, in words.
      threads: number of threads that read and decode images ahead of the device.
    """

    device: str
    image_batch: int
    text_batch: int
    image_rows: int | None
    text_rows: int | None
    attention: str
    products: str
    threads: int

    def facts(self) -> dict[str, str]:
        """Returns the choices in words, for a table."""
        images, texts = (
            f"{batch} {what}" + (f", {rows} at a time" if rows is not None and rows < batch else "")
            for batch, what, rows in (
                (self.image_batch, "images", self.image_rows),
                (self.text_batch, "texts", self.text_rows),
            )
        )
        return {
            "runs on": self.device,
            "batches": f"{images}; {texts}",
            "attention": self.attention,
            "products": self.products,
            "decoding": f"{self.threads} threads",
        }


def choose(config: Config, dtype: DTypeLike, attn_implementation: str = "auto", mesh: Mesh | None = None) -> Choices:
    """Returns the choices for a model on the devices of a mesh or on the default device.

    Args:
      config: configuration of the whole model or of one tower; a tower that is not there has batches of 0 rows.
      dtype: compute dtype.
      attn_implementation: "auto", "xla", "eager", "cudnn" or "pallas".
      mesh: mesh over which batches are sharded; batch sizes are then those of all shards together.

    Raises:
      ValueError: if the attention implementation is unknown or does not run on this device.
    """
    device = platform_of(mesh)
    vision, text = towers_of(config)
    on_cpu = device == "cpu"
    shards = batch_shards(mesh)
    rows = {
        "images": 0 if vision is None else _rows(vision, vision.num_patches),
        "texts": 0 if text is None else _rows(text, text.max_position_embeddings),
    }
    batch = {
        what: 0 if not rows[what] else min(max(least, rows[what]), BATCH) if on_cpu else BATCH
        for what, least in CPU_BATCH.items()
    }
    heads: Any = text if vision is None else vision
    return Choices(
        device,
        shards * batch["images"],
        shards * batch["texts"],
        shards * rows["images"] if on_cpu else None,
        shards * rows["texts"] if on_cpu else None,
        describe_attention(
            attn_implementation,
            dtype,
            heads.hidden_size // heads.num_attention_heads,
            device,
            tokens=heads.max_position_embeddings if vision is None else vision.num_patches,
            num_heads=heads.num_attention_heads,
        ),
        describe_products(dtype, device),
        min(os.cpu_count() or 1, 32),
    )


def in_brief(model: Any, config: Config) -> str:
    """Returns the kind and sizes of a model and its compute dtype, as arguments of a constructor.

    Args:
      model: linen module of one tower or both.
      config: configuration of the model.
    """
    vision, text = towers_of(config)
    tower: Any = text if vision is None else vision
    sizes = f"width={tower.hidden_size}, layers={tower.num_hidden_layers}"
    if vision is None:
        sizes = f"length={tower.max_position_embeddings}, {sizes}"
    else:
        pixels = getattr(vision, "image_size", None)  # none where the resolution varies
        sized = f"num_patches={vision.num_patches}" if pixels is None else f"image_size={pixels}"
        sizes = f"{sized}, patch_size={vision.patch_size}, {sizes}"
    mesh = "" if model.mesh is None else f", mesh={dict(model.mesh.shape)}"
    return f"model={type(model).__name__}({sizes}), dtype={np.dtype(model.dtype).name}{mesh}"


def _rows(tower: TextConfig | VisionConfig, tokens: int) -> int:
    """Returns the largest power of two of rows whose activations fit `CPU_STEP`, at least 1."""
    return 1 << (max(1, CPU_STEP // (tokens * tower.hidden_size)).bit_length() - 1)
