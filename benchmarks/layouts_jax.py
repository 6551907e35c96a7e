"""Image towers of openpi and gemma: random parameters of their own modules, saved as they save them, then read.

`layouts.py` prints the results; "own" is how far the owner's bfloat16 is from its float32. openpi is on no registry:
`src` of a checkout is on PYTHONPATH. gemma needs kauldron and TensorFlow, for the types of its arguments.
"""

import functools
import importlib.util
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from siglip_jax import SiglipVisionModel
from siglip_jax.interop import big_vision_module, to_big_vision
from siglip_jax.models import average_pool
from siglip_jax.params import flatten
from tests.support.jax_neighbours import random_values, save_orbax

# Heads of 72 numbers, as those of So400m/14; width, depth and MLP are small.
_SMALL: dict[str, Any] = {"width": 288, "depth": 3, "mlp_dim": 1076, "num_heads": 4, "patch_size": (14, 14)}
_SCAN = {"scan": True}
_PI0 = {"variant": "So400m/14", "scan": True}
_DTYPES = ("float32", "bfloat16")
# Name: image size, width of the language model, fields of `siglip.Module`.
_OPENPI: dict[str, tuple[int, int, dict[str, Any]]] = {
    "pi0, 3 layers scanned": (224, 48, _SMALL | _SCAN),
    "pi0, 3 layers": (224, 48, _SMALL),
    "PaliGemma, 896 px, scanned": (896, 48, _SMALL | _SCAN),
    "pi0, all 27 layers scanned": (224, 2048, _PI0),
}


def of_openpi(work: Path) -> Iterator[tuple[str, str, str, float | None, int]]:
    """Yields the results of the tower of openpi, read by `SiglipVisionModel` and run by the module in its place too."""
    from openpi.models import siglip

    folder = Path(siglip.__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    library = f"openpi {commit.stdout.strip()}"
    for case, (size, width, fields) in _OPENPI.items():
        images = np.random.default_rng(1).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
        scan = fields.get("scan", False)
        theirs = [siglip.Module(width, **fields, pool_type="none", dtype_mm=dtype) for dtype in _DTYPES]
        ours = [big_vision_module(width, **fields, pool_type="none", dtype_mm=dtype) for dtype in _DTYPES]
        tree = random_values(jax.eval_shape(theirs[0].init, jax.random.key(0), images)["params"])
        expected = [_run(module.apply, tree, images) for module in theirs]
        found = [_run(module.apply, tree, images) for module in ours]
        saved = work / case
        save_orbax(saved / "params", {"params": {"PaliGemma": {"img": nnx.State(jax.tree.map(nnx.Param, tree))}}})
        kept = {key: x for key, x in flatten(tree).items() if not key.startswith("head/")}
        for i, dtype in enumerate(_DTYPES):
            model, params = SiglipVisionModel.from_pretrained(saved, scan_layers=scan, dtype=dtype)
            wrong = _different(to_big_vision(params, model.config, scan), kept)
            states = _run(model.apply, params, images).last_hidden_state
            parts = {
                "tower": (states, [out["encoded"] for _, out in expected]),
                "module": (found[i][0], [x for x, _ in expected]),
            }
            for part, (result, both) in parts.items():
                rounding = f", own {_difference(both[1], both[0]):.1e}" if i else ""
                yield library, f"{case}: {part}{rounding}", dtype, _difference(result, both[i]), wrong


def of_gemma(work: Path) -> Iterator[tuple[str, str, str, float | None, int]]:
    """Yields the results of the tower of Gemma 3 at 896 pixels, with its 256 averaged image tokens."""
    from gemma.multimodal import vision, vision_utils

    library = f"gemma {version('gemma')}"
    images = np.random.default_rng(1).integers(0, 256, (1, 896, 896, 3)).astype(np.float32)
    theirs = vision.SigLiPFromPatches(vision_utils.ViTModel(**_SMALL))  # its `scan` fails: it expects a pair
    patches = theirs.patchify_images(images[:, None])
    init = functools.partial(theirs.init, is_training=False)
    tree = random_values(jax.eval_shape(init, jax.random.key(0), patches=patches)["params"])
    expected = _run(functools.partial(theirs.apply, is_training=False), tree, patches=patches)[:, 0]
    kept = {key.removeprefix("siglip_encoder/"): x for key, x in flatten(tree).items()}
    for name, saved in {"nested": {"vision_encoder": tree}, "flat": _flat(vision, tree)}.items():
        folder = save_orbax(work / f"gemma-{name}", saved)
        for scan in (False, True):
            model, params = SiglipVisionModel.from_pretrained(folder, scan_layers=scan)
            maps = _run(functools.partial(model.apply, method="get_patch_features"), params, images / 127.5 - 1)
            difference = _difference(average_pool(maps, (16, 16)).reshape(expected.shape), expected)
            case = f"Gemma 3, 896 px, {name}{', scanned here' if scan else ''}"
            yield library, case, "float32", difference, _different(to_big_vision(params, model.config), kept)


def _flat(package: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """Returns a tree in the layout of the released checkpoints, made by gemma's own function."""
    file = Path(package.__file__).parents[1] / "gm" / "ckpts" / "_compat.py"
    spec: Any = importlib.util.spec_from_file_location("_compat", file)  # its package needs all of kauldron
    compat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compat)
    return {f"SigLiPFromPatches_0/{key}": x for key, x in compat.flatten_and_remap_params(tree).items()}


def _run(apply: Any, params: Any, *inputs: Any, **named: Any) -> Any:
    with jax.default_matmul_precision("highest"):
        return jax.jit(apply)({"params": params}, *inputs, **named)


def _difference(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _different(found: Any, expected: dict[str, Any]) -> int:
    flat = flatten(found)
    return sum(key not in flat or not np.array_equal(flat.pop(key), x) for key, x in expected.items()) + len(flat)
