"""Quantization of a checkpoint, with its effect on the file size and on the embeddings of the example images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip_jax._files import new_directory
from siglip_jax.assets import EXAMPLES
from siglip_jax.checkpoints.formats import quantized
from siglip_jax.checkpoints.read import read_contents, rows_of
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.load import load


def quantize_checkpoint(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], scheme: str
) -> dict[str, Any]:
    """Writes a quantized copy of a float checkpoint, reads it back and compares it with the float model.

    Parameters that are not quantized keep the dtype of the first tensor of the checkpoint.

    Args:
      source: local directory or weights file, with the files of its processor in the same directory, or a Hub name.
      destination: directory to write. It must not exist yet, unless it is empty, and appears only when it is complete.
      scheme: number format of the kernels, "int8", "int4", "nf4" or "fp8".

    Returns:
      A dictionary that JSON can hold: `source` and `destination` (paths), `scheme`, `bytes_before` and `bytes` (of the
      weight files), `examples` (number of images, and of labels, that were compared) and `cosine`, a dictionary from
      "images" and "labels" to the `least` and `mean` cosine of the embeddings of the two models.

    Raises:
      FileNotFoundError: if the checkpoint, or a file it needs, does not exist.
      FileExistsError: if the destination exists.
      ValueError: if it is not a float SigLIP checkpoint or is damaged, the scheme is unknown, or the package that
        quantization needs is not installed.

    Example:
      >>> import tempfile
      >>> import siglip_jax
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     facts = quantize_checkpoint(siglip_jax.assets.BUNDLED_MODEL, directory, "int8")
      >>> facts["bytes"] < facts["bytes_before"], round(facts["cosine"]["images"]["mean"], 3)
      (True, 1.0)
    """
    contents = read_contents(source)
    stored = [contents.tensors[row.key] for row in rows_of(contents)]
    before = sum(file.stat().st_size for file in {tensor.file for tensor in stored})
    # Parameters that stay floats keep their dtype, taken from the first tensor.
    with new_directory(Path(destination)) as aside:
        load(contents.path, dtype=stored[0].dtype, quantization=scheme).save_pretrained(aside)
        after = (aside / quantized.WEIGHTS).stat().st_size
        compared = compare(load(contents.path), load(aside))
    return {
        "source": str(contents.path),
        "destination": str(destination),
        "scheme": scheme,
        "bytes_before": before,
        "bytes": after,
        **compared,
    }


def compare(one: Siglip, other: Siglip) -> dict[str, Any]:
    """Returns the least and mean cosine between two models' embeddings of the example images and of their labels."""
    labels = (EXAMPLES / "labels.txt").read_text(encoding="utf-8").splitlines()
    images = [EXAMPLES / f"{label}.png" for label in labels]
    cosine = {
        "images": _cosine(one.encode_image(images), other.encode_image(images)),
        "labels": _cosine(one.encode_text(labels), other.encode_text(labels)),
    }
    return {"examples": len(labels), "cosine": cosine}


def _cosine(one: Float[np.ndarray, "n embed"], other: Float[np.ndarray, "n embed"]) -> dict[str, float]:
    """Returns the least and mean cosine of corresponding rows, which must be normalised."""
    cosines = np.sum(one.astype(np.float64) * other, axis=1)
    return {"least": float(cosines.min()), "mean": float(cosines.mean())}
