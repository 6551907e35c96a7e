"""Small random checkpoints of variable resolution, as `tests.support.cases` has them of fixed resolution.

`python -m tests.support.naflex_cases` writes the golden files anew.
"""

from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax.configs.configuration import Siglip2Config
from tests.support import cases

ARCHITECTURE = "Siglip2Model"
PATCHES = 24
# The table's own grid; one row; two columns; smaller; larger; one patch: those below 24 are padded. A single column is
# tested beside the definition instead: torch 2.13 interpolates it wrongly on a CPU (an image of one row it gets right).
GRIDS = np.array([(4, 4), (1, 24), (12, 2), (3, 2), (5, 4), (1, 1)], np.int32)

_VISION = {k: v for k, v in cases.VISION.items() if k != "image_size"} | {"num_patches": 16, "patch_size": 4}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "naflex": (cases.TEXT, _VISION),
    "naflex_odd": (
        cases.TEXT | {"num_attention_heads": 8, "intermediate_size": 90, "projection_size": 96},
        _VISION | {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 77, "num_patches": 9}
        | {"num_channels": 1, "patch_size": 5, "hidden_act": "gelu"},
    ),
}  # fmt: skip


def make_config(case: str) -> Siglip2Config:
    text, vision = CASES[case]
    return Siglip2Config(text_config=text, vision_config=vision)


def make_checkpoint(directory: Path, case: str, architecture: str = ARCHITECTURE) -> Path:
    config = make_config(case)
    return cases.write_directory(directory / case, config, cases.make_tensors(config, architecture), architecture)


def make_inputs(config: Siglip2Config) -> dict[str, np.ndarray]:
    random = np.random.RandomState(1)
    text, vision = config.text_config, config.vision_config
    count, length = len(GRIDS), text.max_position_embeddings
    text_mask = np.ones((count, length), np.int32)
    text_mask[1, 5:] = 0
    pixels = random.standard_normal((count, PATCHES, vision.patch_size**2 * vision.num_channels))
    mask = np.arange(PATCHES)[None] < GRIDS.prod(1)[:, None]
    return {
        "input_ids": random.randint(0, text.vocab_size, (count, length)).astype(np.int32),
        "pixel_values": pixels.astype(np.float32),  # padding is noise here, so that whoever looks at it is seen
        "pixel_attention_mask": mask.astype(np.int32),
        "spatial_shapes": GRIDS,
        "attention_mask": text_mask,
    }


def runs(forward: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """All that is compared: plain, with a text mask, without an image mask, and one image without padding."""
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    grids, mask = inputs["spatial_shapes"], inputs["pixel_attention_mask"]
    images = {"pixel_attention_mask": mask, "spatial_shapes": grids}
    results = {
        "plain": forward(ids, pixels, **images, return_loss=True, output_hidden_states=True),
        "masked": forward(ids, pixels, **images, attention_mask=inputs["attention_mask"]),
        "unmasked": forward(ids, pixels, pixel_attention_mask=None, spatial_shapes=grids),
        "full": forward(ids, pixels[1:2], pixel_attention_mask=mask[1:2], spatial_shapes=grids[1:2]),
    }
    flat = {f"{run}/{k}": v for run, out in results.items() for k, v in cases.flatten_output(out).items()}
    return {k: v for k, v in flat.items() if k.startswith("plain/") or ".attentions" not in k}


def reference_results(directory: Path, inputs: dict[str, np.ndarray], dtype: str = "float32") -> dict[str, np.ndarray]:
    return cases.reference_results(directory, inputs, dtype, ARCHITECTURE, runs)


def write_golden(work: Path) -> None:
    for case in CASES:
        directory, inputs = make_checkpoint(work, case), make_inputs(make_config(case))
        cases.save_golden(case, reference_results(directory, inputs, "float64"))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as work:
        write_golden(Path(work))
