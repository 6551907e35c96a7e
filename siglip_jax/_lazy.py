"""Names of a package that are imported on first use, so that importing the package stays fast."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any


def make_lazy(
    package: str,
    names: Mapping[str, str] | None = None,
    submodules: Sequence[str] = (),
    packages: Sequence[str] = (),
) -> None:
    """Lets a package import some of its names when they are first used.

    A name may be that of the submodule it is defined in, as `convert` in `convert.py`: the package then has the name of
    the submodule's attribute, even after the submodule itself has been imported.

    Args:
      package: `__name__` of the package, whose `__init__` calls this.
      names: full name of the module that defines each name.
      submodules: names of submodules that are imported when they are first used.
      packages: further submodules of this kind, whose public names are names of the package too if its `__all__` lists
        them; they are imported in this order until a name is found.
    """
    known = dict(names or {})
    modules = (*submodules, *packages)

    class LazyPackage(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in known and name not in modules:
                for other in packages if name in vars(self).get("__all__", ()) else ():
                    module = importlib.import_module(f"{package}.{other}")
                    if name in module.__all__:
                        return getattr(module, name)
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            try:
                module = importlib.import_module(known.get(name, f"{package}.{name}"))
            except ModuleNotFoundError as error:  # of a package that an extra installs
                raise AttributeError(str(error)) from error
            return getattr(module, name) if name in known else module

        def __setattr__(self, name: str, value: Any) -> None:
            if not (name in known and isinstance(value, ModuleType)):  # what the import of a submodule sets
                super().__setattr__(name, value)

    sys.modules[package].__class__ = LazyPackage
