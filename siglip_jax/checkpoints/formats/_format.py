"""What a checkpoint format is: an object with one hook for each thing that formats do differently."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.table import Row, read_params
from siglip_jax.configs.configuration import Config
from siglip_jax.params import Shape

Shardings = Callable[[Mapping[str, Shape]], Mapping[str, Any]]


@runtime_checkable
class Restore(Protocol):
    """The hook that reads parameters."""

    def __call__(
        self, what: str, contents: Contents, rows: list[Row], ignored: Iterable[str], shardings: Shardings | None
    ) -> dict[str, Any]:
        """Returns the tree of parameters of some rows.

        Args:
          what: what is read, for errors.
          contents: what the files hold.
          rows: rows of the parameters to read.
          ignored: further keys that the files may hold.
          shardings: function from the shapes of the parameters by path to their shardings; None: host arrays.

        Raises:
          ValueError: if tensors are missing, unexpected, of the wrong shape or dtype, or damaged.
        """
        ...


def restore_views(
    what: str, contents: Contents, rows: list[Row], ignored: Iterable[str], shardings: Shardings | None
) -> dict[str, Any]:
    """Restores parameters as views of memory-mapped files; see `Restore`."""
    return read_params(what, rows, contents.tensors, ignored)


def no_files(names: frozenset[str]) -> list[str]:
    """The `hub_files` hook of a format that is not read from the Hub."""
    return []


def no_layout(checkpoint: Checkpoint) -> dict[str, Any]:
    """The `layout` hook of a format that leaves no choice."""
    return {}


@dataclasses.dataclass(frozen=True)
class Format:
    """A checkpoint format.

    Attributes:
      name: name in the registry, and value of `Checkpoint.format`.
      files: the files it consists of, in words, for the error that lists what was expected.
      recognises: (path) -> whether a local directory or file is of this format.
      read_contents: (path) -> `Contents`, from headers alone.
      table: (config, architecture, layout) -> rows of all parameters.
      write: (path, checkpoint, **options) -> None; writes aside and renames.
      restore: reads the parameters of some rows, see `Restore`.
      layout: (checkpoint, **options) -> the layout that `write` would choose with the same options.
      write_options: names of the options that `write` and `layout` take.
      subtree: (contents, name) -> `Contents` of one tower, for paths like "file.npz:img"; None if there are none.
      hub_files: (names) -> which files of a repository hold the weights; [] if this format is not among them. `names`
        are the plain file names at the top of the repository.
      inference_only: whether the parameters are for `siglip_jax.load` alone: not floats, not to be trained.
    """

    name: str
    files: str
    recognises: Callable[[Path], bool]
    read_contents: Callable[[Path], Contents]
    table: Callable[[Config, str, Mapping[str, Any]], list[Row]]
    write: Callable[..., None]
    restore: Restore = restore_views
    layout: Callable[..., dict[str, Any]] = no_layout
    write_options: tuple[str, ...] = ()
    subtree: Callable[[Contents, str], Contents] | None = None
    hub_files: Callable[[frozenset[str]], list[str]] = no_files
    inference_only: bool = False
