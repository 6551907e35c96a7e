"""Import of packages that are not installed by default, with one message that names what to install."""

import importlib
from types import ModuleType

from siglip_jax._requirements import install


class NotInstalledError(ValueError, ModuleNotFoundError):
    """Raised if a package of an extra is not installed; the message names the extra.

    Attributes:
      name: name of the missing package.
    """

    def __init__(self, message: str, package: str) -> None:
        """Creates the error.

        Args:
          message: message of the error.
          package: name of the missing package.
        """
        super().__init__(message)
        self.name = package


def import_optional(module: str, need: str, extra: str) -> ModuleType:
    """Imports a module that an extra of this package installs.

    Args:
      module: name of the module, as in "pyarrow.parquet".
      need: the feature that needs it, as the subject of the message: "approximate search".
      extra: name of the extra that installs it.

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
            f"{need} needs {package}, which is not installed: {install(extra, package)} (the extra {extra!r})", package
        ) from None
