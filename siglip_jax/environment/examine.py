"""`examine`: versions, devices, extras, caches and settings of this environment, two computations, and problems."""

import dataclasses
import os
import platform
from collections.abc import Callable
from typing import Any

import numpy as np

from siglip_jax import _requirements
from siglip_jax._checks import reason
from siglip_jax._version import __version__
from siglip_jax.environment import problems
from siglip_jax.environment.caches import caches

_PREFIXES = ("CUDA_VISIBLE_", "HF_", "JAX_", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "XLA_")
_SECRET = ("KEY", "PASSWORD", "SECRET", "TOKEN")
TOLERANCE = 1e-5  # of a product of matrices in float32, relative to the largest value


@dataclasses.dataclass(frozen=True)
class Examination:
    """What an environment has, and what is wrong with it; `examine` returns one.

    Attributes:
      versions: version of Python, of this package and of those it computes with, by name.
      backend: jax's name of the platform that computes, such as "cpu"; None if jax finds none.
      devices: `kind`, `count` and `memory` (bytes on each; None if unknown) of the devices of each kind.
      extras: requirements of each extra that are missing, by the extra's name: [] is an installed one.
      caches: `name`, `path`, `files` and `bytes` of each cache on this disk; a path of None is one that is not in use.
      settings: environment variables that change what jax, XLA and the Hub do; secrets are replaced by "set".
      checks: `name`, `right` and `found` of each computation.
      problems: sentences, each with what to do.

    No example: `examine` has one.
    """

    versions: dict[str, str]
    backend: str | None
    devices: list[dict[str, Any]]
    extras: dict[str, list[str]]
    caches: list[dict[str, Any]]
    settings: dict[str, str]
    checks: list[dict[str, Any]]
    problems: list[str]

    @property
    def healthy(self) -> bool:
        """Whether all checks are right and no problem was found."""
        return not self.problems and all(check["right"] for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes and `healthy`, of types that JSON has."""
        return {**dataclasses.asdict(self), "healthy": self.healthy}


def examine() -> Examination:
    """Looks at this environment, multiplies two matrices, runs the bundled model once, and says what is wrong.

    Nothing is changed and nothing is downloaded. It also works where jax does not import.

    Returns:
      What was found. A problem is reported only if it is one for certain, such as an NVIDIA GPU that jax leaves unused
      because its plugin is missing or of another version, a TPU without libtpu, or a jaxlib that jax refuses.

    Example:
      >>> found = examine()
      >>> sorted(found.extras["hub"]) if not found.healthy else [check["name"] for check in found.checks]
      ['jax', 'matrix product', 'bundled model']
    """
    versions = _versions()
    checks = [
        _check("jax", _import_jax),
        _check("matrix product", _multiply),
        _check("bundled model", _classify),
    ]
    backend, devices = (None, []) if not checks[0]["right"] else _devices()
    return Examination(
        versions=versions,
        backend=backend,
        devices=devices,
        extras={extra: _requirements.missing(extra) for extra in _requirements.extras()},
        caches=caches(),
        settings=_settings(),
        checks=checks,
        problems=problems.found(versions, backend, checks),
    )


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", *problems.plugins(), "flax", "numpy")
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return {
        "python": platform.python_version(),
        "system": system,
        "siglip_jax": __version__,
        **_requirements.versions(*names),
    }


def _devices() -> tuple[str, list[dict[str, Any]]]:
    import jax

    found: dict[str, dict[str, Any]] = {}
    for device in jax.devices():
        memory = (device.memory_stats() or {}).get("bytes_limit")
        found.setdefault(device.device_kind, {"kind": device.device_kind, "count": 0, "memory": memory})["count"] += 1
    return jax.default_backend(), list(found.values())


def _settings() -> dict[str, str]:
    return {
        name: "set" if any(word in name for word in _SECRET) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES)
    }


def _check(name: str, run: Callable[[], str]) -> dict[str, Any]:
    """Returns what a computation found; its error, of whatever kind, is what is asked for."""
    try:
        return {"name": name, "right": True, "found": run()}
    except Exception as error:
        return {"name": name, "right": False, "found": f"{type(error).__name__}: {reason(error)}"}


def _import_jax() -> str:
    import jax

    return f"{jax.__version__} on {jax.default_backend()}"


def _multiply() -> str:
    import jax.numpy as jnp

    random = np.random.default_rng(0)
    a, b = random.normal(size=(129, 257)), random.normal(size=(257, 65))
    product = jnp.matmul(a.astype(np.float32), b.astype(np.float32), precision="highest")
    truth = a.astype(np.float32).astype(np.float64) @ b.astype(np.float32).astype(np.float64)
    error = float(np.max(np.abs(np.asarray(product, np.float64) - truth)) / np.max(np.abs(truth)))
    if not error <= TOLERANCE:
        raise ArithmeticError(f"the product must be right to {TOLERANCE:.0e} of its largest value, got {error:.0e}")
    return f"right to {error:.0e} of the largest value"


def _classify() -> str:
    from siglip_jax.assets import EXAMPLES
    from siglip_jax.inference.load import load

    labels = ("a horse", "a lemon", "a church")
    best = load().classify(EXAMPLES / "horse.png", list(labels))[0]
    if best["label"] != labels[0]:
        raise ArithmeticError(f"the best label of horse.png must be 'a horse', got {best['label']!r}")
    return f"horse.png is 'a horse' ({best['score']:.1%})"
