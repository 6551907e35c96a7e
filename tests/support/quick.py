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


@functools.cache
def _options() -> tuple[tuple[str, bool], ...]:
    """Returns the options of XLA that spare each fusion MLIR's passes, half of the time; newer versions have none."""
    option = ("xla_cpu_use_fusion_emitters", False)
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=dict([option]))
    except jax.errors.JaxRuntimeError:
        return ()
    return (option,)


def environment() -> dict[str, str]:
    """Returns what tells another process to compile quickly."""
    flags = " ".join(f"--{name}={value}".lower() for name, value in _options())
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "XLA_FLAGS": flags}


_held_are_quick = False


def hold_only(quick: bool) -> None:
    """Forgets all compiled programs if they were compiled in the other way: jax would run them in this one too."""
    global _held_are_quick
    if quick != _held_are_quick:
        jax.clear_caches()
    _held_are_quick = quick


@contextlib.contextmanager
def compiling_quickly(folder: Path) -> Iterator[None]:
    """What this process compiles for a CPU is compiled quickly, and kept; `environment()` tells another process."""
    make, options = compiler.get_compile_options, _options()

    @functools.wraps(make)
    def quick(*args: Any, backend: Any = None, **kwargs: Any) -> Any:
        made = make(*args, backend=backend, **kwargs)
        if jax.config.values["jax_disable_most_optimizations"] and (backend is None or backend.platform == "cpu"):
            made.env_option_overrides = [*made.env_option_overrides, *options]
        return made

    settings = {
        "jax_disable_most_optimizations": True,
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: jax.config.values[name] for name in settings}
    compiler.get_compile_options = quick
    _set(settings)
    hold_only(quick=True)
    try:
        yield
    finally:
        compiler.get_compile_options = make
        _set(before)


def _set(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
