"""Packages that are not installed by default: how they are imported, and the one message that says what to install."""

import importlib
from types import ModuleType


class NotInstalledError(ValueError, ModuleNotFoundError):
    """A package that an extra of this one installs is missing; the message names the extra."""

    def __init__(self, message: str, package: str) -> None:
        """Keeps the message, and the name of the package as `name`."""
        super().__init__(message)
        self.name = package


def import_optional(module: str, need: str, extra: str) -> ModuleType:
    """Imports a module that an extra of this package installs.

    Args:
      module: name of the module, as in "pyarrow.parquet".
      need: what needs it, as the subject of the message: "approximate search".
      extra: name of the extra.

    Returns:
      The module.

    Raises:
      NotInstalledError: if its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise NotInstalledError(
            f"{need} needs {package}, which is not installed: pip install 'siglip_jax[{extra}]'", package
        ) from None
