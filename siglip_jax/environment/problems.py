"""What is wrong with an environment for certain, in sentences that say what to do."""

import glob
import importlib.metadata
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from siglip_jax import _requirements
from siglip_jax._checks import reason
from siglip_jax._tpu import has_tpu
from siglip_jax._version import __version__
from siglip_jax.environment.caches import compiled_folder

_NVIDIA = "/dev/nvidia[0-9]*"
_DRIVER = Path("/proc/driver/nvidia/version")
_GOOGLE = Path("/sys/bus/pci/devices")
_CUDA_13 = 580  # the oldest driver that runs CUDA 13; CUDA 12 needs 525
_PLUGIN = re.compile(r"jax[-_.](?:cuda|rocm)\d+[-_.](?:plugin|pjrt)", re.IGNORECASE)


def plugins() -> list[str]:
    """Returns the names of the distributions that let jax compute on GPUs and TPUs, those that are installed."""
    names = {str(found.metadata["Name"]) for found in importlib.metadata.distributions()}
    return sorted(name for name in names if name == "libtpu" or _PLUGIN.fullmatch(name))


def found(versions: Mapping[str, str], backend: str | None, checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what is wrong, each in one sentence.

    Args:
      versions: versions of the installed distributions, by name.
      backend: jax's name of the platform that computes; None if it has none.
      checks: `name`, `right` and `found` of the computations.
    """
    return [*_installation(versions), *_accelerators(versions, backend), *_failures(versions, checks), *_cache(backend)]


def _installation(versions: Mapping[str, str]) -> Iterator[str]:
    known = _requirements.versions(_requirements.PACKAGE).get(_requirements.PACKAGE)
    if known is not None and known != __version__:
        place = Path(_requirements.__file__).parent
        yield (
            f"The installed siglip_jax must be the one that is imported, got {known} installed and {__version__} in"
            f" {place}; install that directory again"
        )
    if needed := _requirements.missing():
        yield f"The package needs {', '.join(needed)}, which is not installed: pip install {shlex.join(needed)}"
    for name in plugins():
        if "cuda" in name and versions[name] != versions.get("jaxlib"):
            yield (
                f"{name} must have the version of jaxlib, {versions.get('jaxlib', 'which is not installed')}, got"
                f" {versions[name]}, which jax does not use; {_install(versions, _cuda())}"
            )


def _accelerators(versions: Mapping[str, str], backend: str | None) -> Iterator[str]:
    if backend != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if glob.glob(_NVIDIA) and not hidden:
        if any("cuda" in name for name in versions):
            yield f"jax must find the NVIDIA GPU of this machine, got only the CPU: {_why('cuda')}"
        else:
            yield f"jax runs on the CPU of a machine that has an NVIDIA GPU; {_install(versions, _cuda())}"
    if has_tpu() and _is_google():
        if "libtpu" in versions:
            yield f"jax must find the TPU of this machine, got only the CPU: {_why('tpu')}"
        else:
            yield f"jax runs on the CPU of a machine that has a TPU; {_install(versions, 'tpu')}"


def _failures(versions: Mapping[str, str], checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the first failure: those after it follow from it."""
    for check in checks:
        if not check["right"]:
            advice = f"; pip install {shlex.quote('jax==' + versions['jax'])}" if "jaxlib" in check["found"] else ""
            if "Unable to initialize backend" in check["found"] and os.environ.get("JAX_PLATFORMS"):
                advice = f"; unset JAX_PLATFORMS, which is {os.environ['JAX_PLATFORMS']!r}"
            yield f"The check of {check['name']} fails: {check['found']}{advice}"
            return


def _cache(backend: str | None) -> Iterator[str]:
    from siglip_jax._files import user_cache

    if backend is None or compiled_folder() is not None:
        return
    import jax

    config: Any = jax.config
    if config.jax_enable_compilation_cache:
        yield (
            f"Compiled programs are kept only in a folder that you alone can write to, got {user_cache()}; make it"
            " so (chmod -R go-w), or name another with JAX_COMPILATION_CACHE_DIR"
        )


def _install(versions: Mapping[str, str], extra: str) -> str:
    pinned = f"=={versions['jax']}" if "jax" in versions else ""
    return f"pip install {shlex.quote(f'jax[{extra}]{pinned}')}"


def _cuda() -> str:
    """Returns the extra of jax for the driver of this machine."""
    try:
        driver = re.search(r"Kernel Module\D*(\d+)\.", _DRIVER.read_text())
    except OSError:
        driver = None
    return "cuda13" if driver is None or int(driver[1]) >= _CUDA_13 else "cuda12"


def _is_google() -> bool:
    """Returns whether a device on the bus is Google's; /dev/vfio alone may be any device of a virtual machine."""
    for vendor in _GOOGLE.glob("*/vendor"):
        try:
            if vendor.read_text().strip() == "0x1ae0":
                return True
        except OSError:
            continue
    return False


def _why(platform: str) -> str:
    import jax

    try:
        jax.devices(platform)
    except RuntimeError as error:
        return reason(error)
    return "it is not the default"
