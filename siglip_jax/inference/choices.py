"""What the engine chooses by device and model, in one place; `siglip-jax info` prints it."""

import os
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from siglip_jax.configs.configuration import SiglipConfig, TextConfig, VisionConfig
from siglip_jax.models.attention import describe_attention
from siglip_jax.models.products import describe_products
from siglip_jax.parallel.mesh import batch_shares

BATCH = 64
CPU_BATCH = {"images": 8, "texts": 32}  # at least; small models take up to `BATCH`
# Numbers between two layers of a CPU's step, tokens times width. Twice as many overflow the caches of some models, and
# half as many give products that are too small; benchmarks/results/inference-cpu.txt has what was measured.
CPU_STEP = 4 * 196 * 768


class Choices(NamedTuple):
    """How a model runs.

    Attributes:
      device: JAX's name of the backend.
      image_batch, text_batch: rows of a batch where none is asked for.
      image_rows, text_rows: at most so many rows go through a tower at a time, larger batches in several steps within
        the compiled code; None: the whole batch.
      attention, products: in words.
      threads: that read and decode images ahead of the device.
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
        """Returns the same in words, for people."""
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


def choose(
    config: SiglipConfig, dtype: DTypeLike, attn_implementation: str = "auto", mesh: Mesh | None = None
) -> Choices:
    """Returns what the engine does for a model on the default device; over a mesh, all shares of a batch together."""
    device = jax.default_backend()
    vision, text = config.vision_config, config.text_config
    on_cpu = device == "cpu"
    shares = batch_shares(mesh)
    rows = {"images": _rows(vision, vision.num_patches), "texts": _rows(text, text.max_position_embeddings)}
    batch = {what: min(max(least, rows[what]), BATCH) if on_cpu else BATCH for what, least in CPU_BATCH.items()}
    return Choices(
        device,
        shares * batch["images"],
        shares * batch["texts"],
        shares * rows["images"] if on_cpu else None,
        shares * rows["texts"] if on_cpu else None,
        describe_attention(attn_implementation, dtype, vision.hidden_size // vision.num_attention_heads),
        describe_products(dtype),
        min(os.cpu_count() or 1, 32),
    )


def _rows(tower: TextConfig | VisionConfig, tokens: int) -> int:
    """Returns the largest power of two of rows that stay within `CPU_STEP`, at least one."""
    return 1 << (max(1, CPU_STEP // (tokens * tower.hidden_size)).bit_length() - 1)
