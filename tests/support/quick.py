"""Compiling for a CPU without most optimizations: a third of the time, and the same values but for rounding.

A program that is compiled again, as by a run that goes on, comes from a folder.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import compiler
from jax.experimental.compilation_cache import compilation_cache

# Each fusion else goes through MLIR's passes, which take as long as the rest of a compilation.
_FUSIONS = ("xla_cpu_use_fusion_emitters", False)

ENVIRONMENT = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "XLA_FLAGS": "--{}={}".format(*_FUSIONS).lower(),
}


@contextlib.contextmanager
def compiling_quickly(folder: Path) -> Iterator[None]:
    """What this process compiles for a CPU is compiled quickly, and kept; another process is told by `ENVIRONMENT`."""
    options = compiler.get_compile_options

    @functools.wraps(options)
    def quick(*args: Any, backend: Any = None, **kwargs: Any) -> Any:
        made = options(*args, backend=backend, **kwargs)
        if jax.config.values["jax_disable_most_optimizations"] and (backend is None or backend.platform == "cpu"):
            made.env_option_overrides = [*made.env_option_overrides, _FUSIONS]
        return made

    settings = {
        "jax_disable_most_optimizations": True,
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    before = {name: jax.config.values[name] for name in settings}
    compiler.get_compile_options = quick
    _set(settings)
    try:
        yield
    finally:
        compiler.get_compile_options = options
        _set(before)


def _set(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
