"""Small SigLIPs of timm's own, and what they compute, as golden files for tests/checkpoints/formats/test_timm.py.

`python -m tests.support.timm_golden` writes tests/golden/timm_*.npz anew. It needs what `open_clip_golden` needs.

A file holds `config` (the `config.json` that timm's `save_for_hf` writes), `state/…` (the state dict, of values that
float16 holds exactly), `pixels` (images, channel, height, width), or for NaFlex patches (images, patches, pixels) of
a grid of `GRID`, and `out`, what timm computes from them in float64.
"""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from tests.support.cases import GOLDEN
from tests.support.open_clip_golden import import_open_clip

GRID = (4, 7)  # rows and columns of patches of a NaFlex image
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.3}
MODELS = {  # name of the case: timm's model, arguments beside `SMALL`, classes
    "map": ("vit_base_patch16_siglip_224", {"img_size": 48}, 0),
    "gap": ("vit_large_patch16_siglip_gap_512", {"img_size": 48}, 0),
    "map_classifier": ("vit_so400m_patch14_siglip_378", {"img_size": 50}, 5),
    "gap_classifier": ("vit_so400m_patch14_siglip_gap_448", {"img_size": 42, "in_chans": 1}, 3),
    "naflex": ("naflexvit_so400m_patch16_siglip", {"patch_size": 4}, 0),
    "naflex_classifier": (
        "naflexvit_base_patch16_siglip",
        {"patch_size": 4, "pos_embed_grid_size": (5, 5), "global_pool": "avg", "fc_norm": False},
        4,
    ),
}


@functools.cache
def golden(case):
    """Returns the arrays of a golden file, which is read once."""
    with np.load(GOLDEN / f"timm_{case}.npz") as file:
        return {key: file[key] for key in file.files}


def state_of(case):
    """Returns timm's weights of a case."""
    return {k.removeprefix("state/"): x.astype(np.float32) for k, x in golden(case).items() if k.startswith("state/")}


def config_of(case):
    """Returns timm's `config.json` of a case."""
    return json.loads(str(golden(case)["config"]))


def write_timm(directory, case, config=None):
    """Writes a directory as timm does, independently of the library."""
    directory.mkdir(exist_ok=True)
    safetensors.numpy.save_file(state_of(case), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config or config_of(case)))
    return directory


def random_state(model):
    """Random values of a size that keeps activations of order one, each of which float16 holds exactly."""
    random = np.random.RandomState(0)
    state = {}
    for key, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        x = random.standard_normal(shape)
        if key.endswith("bias"):
            x = 0.2 * x
        elif len(shape) == 1:  # gains
            x = 1 + 0.3 * x
        elif key.endswith("weight"):
            x = 1.5 * x / np.sqrt(np.prod(shape[1:]))
        state[key] = np.asarray(x, np.float16)
    return state


def compute(model, pixels):
    """What timm's model computes in its own type."""
    import torch

    dtype = next(model.parameters()).dtype
    x = torch.tensor(np.asarray(pixels, np.float32)).to(dtype)
    if x.ndim == 3:
        grid = np.stack(np.meshgrid(*map(np.arange, GRID), indexing="ij"), -1).reshape(1, -1, 2)
        coordinates = torch.tensor(grid).repeat(len(x), 1, 1)
        x = {"patches": x, "patch_coord": coordinates, "patch_valid": torch.ones(x.shape[:2], dtype=torch.bool)}
    with torch.no_grad():
        return model(x).numpy()


def main():
    import torch

    import_open_clip()
    import timm

    for case, (name, more, classes) in MODELS.items():
        model = timm.create_model(name, num_classes=classes, **SMALL, **more).eval()
        state = random_state(model)
        model = model.double()
        model.load_state_dict({key: torch.tensor(x.astype(np.float64)) for key, x in state.items()}, strict=True)
        with tempfile.TemporaryDirectory() as directory:
            timm.models.save_for_hf(model, directory, safe_serialization=True)
            config = (Path(directory) / "config.json").read_text()
        _, height, width = json.loads(config)["pretrained_cfg"]["input_size"]
        shape = (2, more.get("in_chans", 3), height, width)
        if "naflex" in case:
            shape = (2, GRID[0] * GRID[1], 3 * more["patch_size"] ** 2)
        pixels = np.random.RandomState(1).uniform(-1, 1, shape).astype(np.float16)
        out = compute(model, pixels)
        path = GOLDEN / f"timm_{case}.npz"
        arrays = {f"state/{key}": x for key, x in state.items()}
        np.savez_compressed(path, config=config, pixels=pixels, out=out, **arrays)
        print(path.name, path.stat().st_size, float(np.abs(out).mean().round(3)))


if __name__ == "__main__":
    main()
