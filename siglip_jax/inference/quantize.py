"""What quantization saves and costs: bytes, and how far embeddings of the package's images and labels move."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip_jax.assets import EXAMPLES
from siglip_jax.checkpoints.formats import quantized
from siglip_jax.checkpoints.read import read_contents, rows_of
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.load import load


def quantize_checkpoint(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], scheme: str
) -> dict[str, Any]:
    """Writes a quantized copy of a float checkpoint, reads it back and compares it with the float model.

    Args:
      source: a Hub name, directory or file with the files of its processor beside it.
      destination: a directory without float weights.
      scheme: "int8", "int4", "nf4" or "fp8".

    Returns:
      `source`, `destination`, `scheme`; `bytes_before` and `bytes` of the weights; `examples`, how many images and
      labels were compared, and `cosine`, their least and mean cosine by kind.

    Raises:
      FileNotFoundError, ValueError: as `load`, or if there is no place at the destination.
    """
    contents = read_contents(source)
    stored = [contents.tensors[row.key] for row in rows_of(contents)]
    before = sum(file.stat().st_size for file in {tensor.file for tensor in stored})
    # What stays float keeps its type, as that of the first table.
    load(contents.path, dtype=stored[0].dtype, quantization=scheme).save_pretrained(destination)
    after = (Path(destination) / quantized.WEIGHTS).stat().st_size
    return {
        "source": str(contents.path),
        "destination": str(destination),
        "scheme": scheme,
        "bytes_before": before,
        "bytes": after,
        **compare(load(contents.path), load(destination)),
    }


def compare(one: Siglip, other: Siglip) -> dict[str, Any]:
    """Returns `examples`, a number, and by kind the least and mean cosine of the embeddings of two models."""
    labels = (EXAMPLES / "labels.txt").read_text(encoding="utf-8").splitlines()
    images = [EXAMPLES / f"{label}.png" for label in labels]
    cosine = {
        "images": _cosine(one.encode_image(images), other.encode_image(images)),
        "labels": _cosine(one.encode_text(labels), other.encode_text(labels)),
    }
    return {"examples": len(labels), "cosine": cosine}


def _cosine(one: Float[np.ndarray, "n embed"], other: Float[np.ndarray, "n embed"]) -> dict[str, float]:
    cosines = np.sum(one.astype(np.float64) * other, axis=1)
    return {"least": float(cosines.min()), "mean": float(cosines.mean())}
