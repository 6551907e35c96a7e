"""Reads and writes back what the installed libraries save: every class, family and dtype, both directions.

python benchmarks/layouts.py

Needs `transformers`, and tests open_clip too where it is installed with timm. Prints one line for each model: the
largest relative difference of the outputs in float32, and the number of parameters of which a bit differs after this
package has read them and the library has read what was written.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import siglip_jax
from siglip_jax.checkpoints import convert
from tests.support import layouts

OPEN_CLIP = ("ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256")
Row = tuple[str, str, str, float | None, int]


def of_transformers(work: Path) -> Iterator[Row]:
    """Yields the results of every class of `transformers`."""
    for name in layouts.CLASSES:
        for dtype in layouts.DTYPES:
            model, saved, again = layouts.build(name, dtype), work / f"{name}-{dtype}", work / f"{name}-{dtype}-again"
            model.save_pretrained(saved)
            wrong = layouts.different_bits(name, model, saved, again)
            found = [layouts.difference(name, model, path) for path in (saved, again) if dtype == "float32"]
            yield f"transformers {version('transformers')}", name, dtype, max(found, default=None), len(wrong)


def of_open_clip(work: Path) -> Iterator[Row]:
    """Yields the results of models of open_clip, of their real sizes with random weights."""
    import open_clip

    for name in OPEN_CLIP:
        torch.manual_seed(0)
        model = open_clip.create_model(name, pretrained=None).eval()
        directory = work / name
        directory.mkdir()
        safetensors.torch.save_file(dict(model.state_dict()), directory / "open_clip_model.safetensors")
        preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
        d = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocess}
        (directory / "open_clip_config.json").write_text(json.dumps(d))
        module, params = siglip_jax.SiglipModel.from_pretrained(directory)
        size, length = module.config.vision_config.image_size, module.config.text_config.max_position_embeddings
        rng = np.random.default_rng(0)
        pixels = rng.normal(size=(1, size, size, 3)).astype(np.float32)
        ids = rng.integers(3, 30_000, (1, length)).astype(np.int32)
        with torch.no_grad():
            images = model.encode_image(torch.tensor(pixels.transpose(0, 3, 1, 2))).numpy()
            texts = model.encode_text(torch.tensor(ids.astype(np.int64))).numpy()
        pairs = [
            (_run(module, params, pixels, "get_image_features"), images),
            (_run(module, params, ids, "get_text_features"), texts),
        ]
        found = max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)
        convert(directory, work / f"{name}-again", "open_clip")
        again = safetensors.torch.load_file(work / f"{name}-again" / "open_clip_model.safetensors")
        before = model.state_dict()
        report = model.load_state_dict(again)  # strict: names and shapes
        wrong = [key for key in again if not torch.equal(again[key], before[key])]
        yield f"open_clip {version('open_clip_torch')}", name, "float32", found, len(wrong) + len(report.missing_keys)


def _run(module: siglip_jax.SiglipModel, params: Any, inputs: np.ndarray, method: str) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda p, x: module.apply({"params": p}, x, method=method))(params, inputs))


def main() -> int:
    """Prints the results; returns 1 if any is wrong."""
    worst = 0
    with tempfile.TemporaryDirectory() as work:
        for package, results in (("transformers", of_transformers), ("open_clip_torch", of_open_clip)):
            try:
                version(package)
            except PackageNotFoundError:
                print(f"{package} is not installed")
                continue
            for library, name, dtype, difference, wrong in results(Path(work)):
                shown = "" if difference is None else f"{difference:.1e}"
                print(f"{library:<22} {name:<30} {dtype:<9} {shown:>8} {wrong:>4} different", flush=True)
                worst = max(worst, wrong > 0, (difference or 0) > 1e-5)
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
