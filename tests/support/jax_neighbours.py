"""Checkpoints as other JAX programs save them, by their own layouts and nothing of ours.

Checked against `save_checkpoint_ts` of big_vision, `training/checkpoints.py` of openpi (orbax; NNX puts each array
below `value`), and `gm/ckpts/_checkpoint.py` of gemma (a nested tree, and a flat one whose names are whole paths).
"""

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from siglip_jax.params import flatten, unflatten


def random_values(shapes):
    """Random parameters of a module of big_vision or its relatives, which keep activations of order one."""
    random = np.random.RandomState(0)
    flat = {}
    for path, x in flatten(shapes).items():
        *names, leaf = path.split("/")
        value = random.standard_normal(x.shape).astype(np.float32)
        if leaf == "kernel":
            inputs = {"query": x.shape[-3:-2], "key": x.shape[-3:-2], "value": x.shape[-3:-2], "out": x.shape[-3:-1]}
            inputs["embedding"] = x.shape[:-1]
            value /= np.float32(np.sqrt(np.prod(inputs.get(names[-1], x.shape[-2:-1]))))
        elif leaf == "scale":
            value = 1 + np.float32(0.1) * value
        elif leaf == "bias":
            value *= np.float32(0.1)
        flat[path] = value
    return unflatten(flat)


def nested(flat):
    tree = {}
    for path, x in flat.items():
        *names, leaf = path.split("/")
        at = tree
        for name in names:
            at = at.setdefault(name, {})
        at[leaf] = x
    return tree


def save_orbax(folder: Path, tree) -> Path:
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve(), tree)
    return folder


def image_tower(flat):
    """The image tower of a file of big_vision, without the pooling head: what a larger model keeps of it."""
    tower = {k.removeprefix("params/img/"): x for k, x in flat.items() if k.startswith("params/img/")}
    return {k: x for k, x in tower.items() if not k.startswith("MAPHead_0/")}


def pi0(folder: Path, flat, value: bool = True) -> Path:
    """`<step>/params` of openpi: its image tower ends with a projection to the width of the language model."""
    tower = image_tower(flat)
    width = tower["embedding/bias"].shape[0]
    tower |= {"head/kernel": np.zeros((width, 48), np.float32), "head/bias": np.zeros(48, np.float32)}
    tree = {f"PaliGemma/img/{k}": x for k, x in tower.items()}
    tree |= {"PaliGemma/llm/embedder/input_embedding": np.zeros((60, 48), np.float32)}
    tree |= {"action_in_proj/kernel": np.zeros((7, 48), np.float32)}
    return save_orbax(folder / "params", {"params": nested({f"{k}/value" if value else k: x for k, x in tree.items()})})


def gemma(folder: Path, flat, is_flat: bool) -> Path:
    tower = image_tower(flat)
    if not is_flat:
        tree = {f"vision_encoder/siglip_encoder/{k}": x for k, x in tower.items()}
        tree |= {"embedder/input_embedding": np.zeros((60, 48), np.float32)}
        return save_orbax(folder, nested(tree))
    tree = {"transformer/embedder": {"input_embedding": np.zeros((60, 48), np.float32)}}
    for path, x in tower.items():
        module, _, leaf = f"SigLiPFromPatches_0/siglip_encoder/{path}".rpartition("/")
        tree.setdefault(module, {})[leaf] = x
    return save_orbax(folder, tree)


def save_zarr(folder: Path, tree) -> None:
    """One zarr array for each leaf, whose folder is named by its path with "~" in the place of "/"."""
    for path, x in tree.items():
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder / path.replace('/', '~')}/"}}
        x = np.asarray(x)
        store = ts.open(spec, create=True, dtype=ts.dtype(x.dtype.name), shape=x.shape).result()
        store.write(x).result()


def big_vision_run(folder: Path, flat, step: int) -> Path:
    """`checkpoint.bv-<step>` and `checkpoint.bv-LAST` of a training run."""
    name = f"checkpoint.bv-{step:09d}"
    tree = {**flat, "opt/0/count": np.int32(3), "chrono/accum_train_time": np.float64(1.0)}
    tree |= {f"opt/0/mu/{k.removeprefix('params/')}": x for k, x in flat.items()}
    save_zarr(folder / name, tree)
    (folder / "checkpoint.bv-LAST").write_text(f"{step:09d}")
    return folder / name
