"""Fits the bias of a trained model to held-out drawings, so that its probabilities are those of one name in 64.

    python -m research.pictograms.bias DATA MODEL

The training sees one matching name among 512, and people ask about a few. The bias becomes the one with the least
cross-entropy over pairs of 64 drawings of Fluent 3D and their 64 names, drawn at random, without the drawings that the
package ships as examples. The temperature stays, and with it every cosine, every rank and every accuracy.
"""

import argparse
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from safetensors.numpy import load_file, save_file

import siglip_jax
from research.pictograms.dataset import load_split
from siglip_jax._files import written_aside
from siglip_jax.evaluation.calibration import probabilities_of

NAMES = 64  # of which one matches
GROUPS = 500
BIAS = "logit_bias"


def fitted_bias(matching: Float[np.ndarray, " m"], others: Float[np.ndarray, " n"]) -> float:
    """Returns the bias with the least cross-entropy over pairs, by bisection of its slope.

    Args:
      matching: temperature times cosine of pairs that match.
      others: the same of pairs that do not.
    """

    def slope(bias: float) -> float:
        return float(np.sum(probabilities_of(others, 1.0, bias)) - np.sum(probabilities_of(matching, -1.0, -bias)))

    low, high = -100.0, 100.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (low + high) / 2


def pairs_of(
    logits: Float[np.ndarray, "n n"], seed: int = 0
) -> tuple[Float[np.ndarray, " matching"], Float[np.ndarray, " others"]]:
    """Returns the logits of matching and of other pairs of random groups of rows and columns, of which i matches i."""
    rng = np.random.default_rng(seed)
    groups = [logits[np.ix_(group, group)] for group in (rng.permutation(len(logits))[:NAMES] for _ in range(GROUPS))]
    same = np.eye(len(groups[0]), dtype=bool)
    return np.concatenate([group[same] for group in groups]), np.concatenate([group[~same] for group in groups])


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; see the module docstring."""
    parser = argparse.ArgumentParser("python -m research.pictograms.bias", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="directory written by research.pictograms.build")
    parser.add_argument("model", type=Path, help="directory of the model, whose bias is changed")
    options = parser.parse_args(arguments)
    siglip = siglip_jax.load(options.model)
    examples = {path.stem for path in siglip_jax.assets.EXAMPLES.glob("*.png")}
    split = load_split(options.data, "fluent3d").subset(lambda row: row["caption"] not in examples)
    image_embeds = siglip.encode_image([Image.fromarray(image) for image in split.images])
    text_embeds = siglip.encode_text([row["caption"] for row in split.rows])
    matching, others = pairs_of((image_embeds @ text_embeds.T).astype(np.float64) * siglip.temperature)
    bias = fitted_bias(matching, others)
    for name, value in (("before", siglip.logit_bias), ("after", bias)):
        right, wrong = (100 * np.mean(x + value > 0) for x in (matching, others))
        print(
            f"{name:<7} bias {value:6.2f}: {right:.1f} % of matching pairs and {wrong:.3f} % of others above one half"
        )
    path = options.model / "model.safetensors"
    tensors = load_file(path)
    tensors[BIAS] = np.full_like(tensors[BIAS], bias)
    with written_aside(path) as aside:
        save_file(tensors, aside, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
