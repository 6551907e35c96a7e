"""The class of checkpoint formats: an object with one hook for each operation that differs between formats."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.table import Row, read_params
from siglip_jax.configs.configuration import Config
from siglip_jax.params import Shape

Shardings = Callable[[Mapping[str, Shape]], Mapping[str, Any]]
"""Function from the shapes of parameters by path to their shardings by path."""


@runtime_checkable
class Restore(Protocol):
    """The hook that reads parameters."""

    def __call__(
        self, what: str, contents: Contents, rows: list[Row], ignored: Iterable[str], shardings: Shardings | None
    ) -> dict[str, Any]:
        """Reads the parameters of some rows.

        Args:
          what: name of the checkpoint, for errors.
          contents: headers of the files.
          rows: rows of the parameters to read.
          ignored: names of further tensors that the files may hold.
          shardings: function from the shapes of the parameters by path to their shardings; None: host arrays.

        Returns:
          Nested dict of arrays.

        Raises:
          ValueError: if tensors are missing, unexpected, of the wrong shape or dtype, or damaged.
        """
        ...


def restore_views(
    what: str, contents: Contents, rows: list[Row], ignored: Iterable[str], shardings: Shardings | None
) -> dict[str, Any]:
    """The `restore` hook of a format whose parameters are views of memory-mapped files."""
    return read_params(what, rows, contents.tensors, ignored)


def no_files(names: frozenset[str]) -> list[str]:
    """The `hub_files` hook of a format that is not read from the Hub."""
    return []


def no_layout(checkpoint: Checkpoint) -> dict[str, Any]:
    """The `layout` hook of a format that leaves nothing open."""
    return {}


@dataclasses.dataclass(frozen=True)
class Format:
    """A checkpoint format.

    Attributes:
      name: name of the format in the registry, and value of `Checkpoint.format`.
      files: description of its files, for the error of a directory without weights.
      recognises: (path) -> whether a local directory or file is of this format.
      read_contents: (path, **options) -> `Contents`, read from headers only.
      table: (config, architecture, layout) -> rows of all parameters.
      write: (path, checkpoint, **options) -> None; writes temporary files and renames them.
      restore: reads the parameters of some rows; its arguments are those of `Restore`.
      layout: (checkpoint, **options) -> the layout that `write` chooses with the same options.
      read_options: names of the options that `read_contents` accepts: "config", a configuration to use instead of that
        of the files, and "key_mapping", replacements of regular expressions in the names of tensors.
      write_options: names of the options that `write` and `layout` accept.
      subtree: (contents, name) -> `Contents` of one tower, for paths such as "file.npz:img"; None: no subtrees.
      hub_files: (names) -> names of the files that hold the weights, [] if the repository has none of this format.
        `names` are the file names in the top folder of the repository.
      suffix: suffix of the file that `write` writes; None: it writes a directory.
      inference_only: whether the parameters can only be used by `siglip_jax.load`, since they are not floats.
    """

    name: str
    files: str
    recognises: Callable[[Path], bool]
    read_contents: Callable[..., Contents]
    table: Callable[[Config, str, Mapping[str, Any]], list[Row]]
    write: Callable[..., None]
    restore: Restore = restore_views
    layout: Callable[..., dict[str, Any]] = no_layout
    read_options: tuple[str, ...] = ()
    write_options: tuple[str, ...] = ()
    subtree: Callable[[Contents, str], Contents] | None = None
    hub_files: Callable[[frozenset[str]], list[str]] = no_files
    suffix: str | None = None
    inference_only: bool = False
