"""Checkpoints of a run, by step, with orbax: the whole state, and what a resumed run needs to know besides it.

A checkpoint is written aside and renamed, in the background. It does not depend on the devices: a run goes on on
another number of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

State = TypeVar("State")


class Saver:
    """The checkpoints of one directory: the last few, and the best one if there is a figure to judge by."""

    def __init__(self, directory: Path, keep: int = 2, best: str | None = None):
        """Opens the directory, or makes it.

        Args:
          keep: of the last checkpoints, how many stay.
          best: the name of a figure; the checkpoint where it is highest stays too.
        """
        policies: list[Any] = [LatestN(keep)]
        if best is not None:
            policies.append(
                BestN(get_metric_fn=lambda figures: figures[best], n=1, keep_checkpoints_without_metrics=False)
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)
        self._best = best

    @property
    def latest(self) -> int | None:
        """The step of the last whole checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, facts: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Copies the state and writes it in the background.

        Args:
          facts: anything JSON holds.
          figures: what the checkpoint is judged by.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(_leaves(state)), facts=ocp.args.JsonSave(dict(facts)))
        judged = dict(figures) if self._best in figures else None
        self._manager.save(step, args=args, metrics=judged, force=True)

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Returns the state of a step, laid out as `like` is, and the facts saved with it.

        Raises:
          ValueError: if the checkpoint is that of another model or optimizer, or cannot be read.
        """
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in _leaves(like).items()
        }
        args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), facts=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=args)
        except (ValueError, KeyError, OSError, json.JSONDecodeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self._manager.directory / str(step)}: expected a checkpoint of this run, found one that does not fit"
                f" ({reason}); give another output directory"
            ) from error
        leaves = [found["state"][name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), found["facts"]

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._manager.close()


def _leaves(tree: Any) -> dict[str, jax.Array]:
    """Returns the arrays of a tree by where they are: names that last where types of tuples may not."""
    return {jax.tree_util.keystr(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
