"""Names of a package that are imported on first use, so that importing the package stays fast."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package.

    Args:
      package: `__name__` of the package.
      modules: full name of the module that each name is imported from. A name that maps to itself within the package
        is a submodule; no other name may equal that of a submodule, since importing the submodule would hide it.

    Returns:
      A function from a name to its value, which raises `AttributeError` for other names and for names that need a
      package that is not installed.
    """

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(modules[name])
        except ModuleNotFoundError as error:
            raise AttributeError(str(error)) from error
        return module if modules[name] == f"{package}.{name}" else getattr(module, name)

    return __getattr__
