"""The requirements of the installed package and of its extras, read from its metadata: what `pyproject.toml` lists."""

import functools
import importlib.metadata
import re
import shlex
from collections.abc import Iterator
from typing import Any

PACKAGE = "siglip_jax"


def extras() -> list[str]:
    """Returns the names of the extras, sorted; none if the package is on the path without being installed."""
    try:
        return sorted(importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or [])
    except importlib.metadata.PackageNotFoundError:
        return []


def versions(*names: str) -> dict[str, str]:
    """Returns the versions of those of the distributions `names` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def install(extra: str, package: str) -> str:
    """Returns the command that installs an extra: it names packages, so that it is right wherever this one came from.

    Args:
      extra: name of the extra.
      package: package that is named if the metadata knows nothing of the extra.
    """
    listed = sorted({str(requirement) for requirement in _listed(PACKAGE, extra)}) or [package]
    return f"pip install {shlex.join(listed)}"


def missing(extra: str = "") -> list[str]:
    """Returns the requirements of an extra that this environment does not fulfil, as pip takes them.

    Args:
      extra: name of the extra; "": what the package itself needs.

    Returns:
      Requirements such as "usearch>=2.16", sorted; an extra that another one includes is replaced by its requirements.
      A requirement is missing if its package is not installed, is of another version, or lacks a package of its own
      extra, as libtpu of jax[tpu]. [] if the package is on the path without being installed.
    """
    return sorted({str(requirement) for requirement in _listed(PACKAGE, extra) if not _is_fulfilled(requirement)})


def _listed(package: str, extra: str) -> Iterator[Any]:
    """Yields the requirements of an extra of an installed package on this machine, without their markers.

    Those that the package has anyway are left out for an extra.
    """
    try:
        from packaging.requirements import Requirement

        lines = importlib.metadata.requires(package) or []
    except ModuleNotFoundError:  # of the package, too, whose error is one of these
        return
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker and not marker.evaluate({"extra": extra}) or extra and (not marker or marker.evaluate({"extra": ""})):
            continue
        requirement.marker = None
        if _canonical(requirement.name) == _canonical(package):
            for other in sorted(requirement.extras):
                yield from _listed(package, other)
        else:
            yield requirement


def _is_fulfilled(requirement: Any) -> bool:
    """Returns whether a package is installed in a version that is allowed, and with its extras."""
    version = versions(requirement.name).get(requirement.name)
    if version is None or not requirement.specifier.contains(version, prereleases=True):
        return False
    return all(_is_complete(requirement.name, extra) for extra in requirement.extras)


@functools.cache
def _is_complete(package: str, extra: str) -> bool:
    return all(_is_fulfilled(requirement) for requirement in _listed(package, extra))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
