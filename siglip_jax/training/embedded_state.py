"""What lets an interrupted training of the embedded model go on as if nothing had happened: state and log on disk."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siglip_jax.files import write_atomically, written_aside


def save_state(path: Path, state: dict[str, Any], recipe: Any, seconds: float) -> None:
    """Writes the whole training state as plain arrays, aside first.

    Args:
      state: any tree of arrays.
      recipe: the dataclass that the state belongs to.
      seconds: trained so far.
    """
    leaves: Any = {
        jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    with written_aside(path) as aside, open(aside, "wb") as out:
        np.savez(out, recipe=np.asarray(json.dumps(dataclasses.asdict(recipe))), seconds=np.asarray(seconds), **leaves)


def restore_state(path: Path, like: dict[str, Any], recipe: Any) -> tuple[dict[str, Any], float]:
    """Reads what `save_state` wrote into the structure of `like`; returns the state and the seconds trained.

    Raises:
      ValueError: the file is of another recipe.
    """
    with np.load(path) as arrays:
        found = json.loads(str(arrays["recipe"]))
        wanted = dataclasses.asdict(recipe)
        if found != wanted:
            differing = {k: (found.get(k), wanted[k]) for k in wanted if found.get(k) != wanted[k]}
            raise ValueError(
                f"{path}: expected a checkpoint of this recipe, found another (found, wanted): {differing};"
                " remove it to start anew"
            )
        state = jax.tree_util.tree_map_with_path(lambda key, _: jnp.asarray(arrays[jax.tree_util.keystr(key)]), like)
        return state, float(arrays["seconds"])


def keep_log_until(path: Path, step: int) -> None:
    """Drops what an interrupted run logged after its last checkpoint, because it is going to be logged again."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
        write_atomically(path, "".join(line + "\n" for line in lines).encode())
