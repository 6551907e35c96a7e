"""Checkpoints of a run, by step, with Orbax: the whole state, and the facts that a resumed run needs besides it.

A checkpoint is written in the background under a temporary name and renamed. It does not depend on the devices: a run
resumes on any number of them.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
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

        Raises:
          OSError: if the disk is full; the message names the last whole checkpoint.
        """
        leaves = _leaves(state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), facts=ocp.args.JsonSave(dict(facts)))
        judged = dict(metrics) if self._best in metrics else None
        size = sum(leaf.nbytes for leaf in leaves.values())
        if size // jax.process_count() > shutil.disk_usage(self._manager.directory).free:
            raise self._disk_is_full()
        with self._naming_a_full_disk():
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
        """Waits until all checkpoints are on disk.

        Raises:
          OSError: if the disk is full; the message names the last whole checkpoint.
        """
        with self._naming_a_full_disk():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _naming_a_full_disk(self) -> Iterator[None]:
        """Replaces the error of a full disk, which comes from a thread of Orbax, by one line."""
        try:
            yield
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise self._disk_is_full() from None

    def _disk_is_full(self) -> OSError:
        """Returns the error of a full disk."""
        whole = [int(name) for name in os.listdir(self._manager.directory) if name.isdigit() and int(name)]
        kept = f"the checkpoint of step {max(whole)} is whole" if whole else "no step is saved yet"
        text = f"the disk is full, and {kept}; make room, then the same call resumes the run"
        return OSError(errno.ENOSPC, text, os.fspath(self._manager.directory))

    def __enter__(self) -> "Saver":
        _ABSL.addFilter(_not_of_orbax)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # After an error, closing would raise that of the last save once more, and threads would still log theirs.
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            with self._naming_a_full_disk():
                self._manager.close()
            _ABSL.removeFilter(_not_of_orbax)


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error, or one that caused it, says that the disk or the user's share of it is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):  # of C++ code
            return True
        error = error.__cause__ or error.__context__
    return False


_ABSL = logging.getLogger("absl")


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Filters the log of Orbax, which has a traceback for each thread that an error passes before it is raised."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _leaves(tree: Any) -> dict[str, jax.Array]:
    """Returns the arrays of a tree by their paths, which are stable where the types of its tuples may change."""
    return {jax.tree_util.keystr(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
