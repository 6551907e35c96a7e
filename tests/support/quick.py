"""Compiling for a CPU without most optimizations: a third of the time, and the same values but for rounding."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import compiler

# Each fusion else goes through MLIR's passes, which take as long as the rest of a compilation.
_FUSIONS = ("xla_cpu_use_fusion_emitters", False)

ENVIRONMENT = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "XLA_FLAGS": "--{}={}".format(*_FUSIONS).lower(),
}


@contextlib.contextmanager
def compiling_quickly() -> Iterator[None]:
    """What this process compiles for a CPU is compiled quickly; another process is told by `ENVIRONMENT`."""
    options = compiler.get_compile_options

    @functools.wraps(options)
    def quick(*args: Any, backend: Any = None, **kwargs: Any) -> Any:
        made = options(*args, backend=backend, **kwargs)
        if backend is None or backend.platform == "cpu":
            made.env_option_overrides = [*made.env_option_overrides, _FUSIONS]
        return made

    jax.config.update("jax_disable_most_optimizations", True)
    compiler.get_compile_options = quick
    try:
        yield
    finally:
        compiler.get_compile_options = options
        jax.config.update("jax_disable_most_optimizations", False)
