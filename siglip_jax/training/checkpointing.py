"""Checkpoints of a run, by step, with Orbax: the whole state, and the facts that a resumed run needs besides it.

A checkpoint is written in the background under a temporary name and renamed. It does not depend on the devices: a run
resumes on any number of them.
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
    """The checkpoints in a directory: the latest ones, and the one where a metric is highest."""

    def __init__(self, directory: Path, keep: int = 2, best: str | None = None):
        """Opens the directory, which is made if need be.

        Args:
          directory: directory of the checkpoints.
          keep: number of latest checkpoints to keep.
          best: name of a metric; the checkpoint where it is highest is kept too. None: only the latest are kept.
        """
        policies: list[Any] = [LatestN(keep)]
        if best is not None:
            policies.append(
                BestN(get_metric_fn=lambda metrics: metrics[best], n=1, keep_checkpoints_without_metrics=False)
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
        """The step of the latest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, facts: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Copies the state to the host and writes a checkpoint in the background.

        Args:
          step: number of steps done.
          state: tree of arrays.
          facts: further values that JSON can hold.
          metrics: results of an evaluation of the state; empty if it was not evaluated.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(_leaves(state)), facts=ocp.args.JsonSave(dict(facts)))
        judged = dict(metrics) if self._best in metrics else None
        self._manager.save(step, args=args, metrics=judged, force=True)

    def facts(self, step: int) -> dict[str, Any]:
        """Returns the facts that were saved with the state of a step.

        Args:
          step: step of the checkpoint.

        Raises:
          ValueError: if the checkpoint is unreadable.
        """
        return self._read(step, facts=ocp.args.JsonRestore())["facts"]

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Returns the state of a step and the facts that were saved with it.

        Args:
          step: step of the checkpoint.
          like: state with the structure, shapes, dtypes and shardings that the result has.

        Raises:
          ValueError: if the checkpoint is unreadable, or is of another model or optimizer.
        """
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in _leaves(like).items()
        }
        found = self._read(step, state=ocp.args.StandardRestore(wanted), facts=ocp.args.JsonRestore())
        leaves = [found["state"][name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), found["facts"]

    def _read(self, step: int, **args: Any) -> Any:
        """Returns parts of a checkpoint by name."""
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except (ValueError, KeyError, OSError, json.JSONDecodeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self._manager.directory / str(step)}: the checkpoint must be one of this run, got one that does not"
                f" fit ({reason}); give another output directory"
            ) from error

    def wait(self) -> None:
        """Waits until all checkpoints are on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._manager.close()


def _leaves(tree: Any) -> dict[str, jax.Array]:
    """Returns the arrays of a tree by their paths, which are stable where the types of its tuples may change."""
    return {jax.tree_util.keystr(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
