"""Compiled code that outlives the process: JAX's persistent compilation cache, enabled unless the user configured it.

It saves the one or two seconds that XLA takes for each tower and batch size. JAX's own settings take precedence:
`JAX_COMPILATION_CACHE_DIR` names another directory, and `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing.
"""

import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax

from siglip_jax._files import user_cache

_CPUINFO = Path("/proc/cpuinfo")
_WORTH_KEEPING = 0.1  # seconds of compilation; by default JAX keeps nothing below one second


def keep_compiled() -> None:
    """Enables the cache for this process, unless it is enabled or disabled already or its directory is not usable."""
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    folder = user_cache() / "compiled" / _this_cpu()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK) or (os.name == "posix" and folder.stat().st_mode & 0o022):
            return  # other users who can write to the directory could have their code run here
    except OSError:
        return
    config.update("jax_compilation_cache_dir", os.fspath(folder))
    if config.jax_persistent_cache_min_compile_time_secs == 1.0:
        config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def _this_cpu(cpuinfo: Path = _CPUINFO) -> str:
    """Returns a name shared by CPUs that run the same code: different machines may share one home directory."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
        instructions = found[1] if found else ""
    except OSError:
        instructions = ""
    return f"{platform.machine()}-{hashlib.sha256(instructions.encode()).hexdigest()[:12]}"
