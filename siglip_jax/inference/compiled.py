"""Compiled code that outlives the process: JAX's persistent compilation cache, enabled unless the user configured it.

It saves the one or two seconds that XLA takes for each tower and batch size. JAX's own settings take precedence:
`JAX_COMPILATION_CACHE_DIR` names another directory, and `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing.
"""

import hashlib
import os
import platform
import re
import time
import zlib
from pathlib import Path
from typing import Any

import jax

from siglip_jax._files import user_cache

_CPUINFO = Path("/proc/cpuinfo")
_ZSTD = b"\x28\xb5\x2f\xfd"  # what compressed data of zstd begins with
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
        _remove_cut_off(folder)
    except OSError:
        return
    config.update("jax_compilation_cache_dir", os.fspath(folder))
    if config.jax_persistent_cache_min_compile_time_secs == 1.0:
        config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def _remove_cut_off(folder: Path) -> None:
    """Removes the entries that a full disk cut off, which jax would report at every use and never replace.

    Every entry is looked at once: the file `.checked` is as old as the last look.
    """
    checked, now = folder / ".checked", time.time_ns()
    since = checked.stat().st_mtime_ns if checked.exists() else 0
    for entry in folder.glob("*-cache"):
        if entry.stat().st_mtime_ns >= since and not _is_complete(entry.read_bytes()):
            entry.unlink(missing_ok=True)
    checked.touch()
    os.utime(checked, ns=(now, now))


def _is_complete(data: bytes) -> bool:
    """Returns whether an entry has its end; one of zstd, which jax uses where it is installed, is not looked at."""
    if data.startswith(_ZSTD):
        return True
    try:
        decompressor = zlib.decompressobj()
        decompressor.decompress(data)
    except zlib.error:
        return False
    return decompressor.eof


def _this_cpu(cpuinfo: Path = _CPUINFO) -> str:
    """Returns a name shared by CPUs that run the same code: different machines may share one home directory."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
        instructions = found[1] if found else ""
    except OSError:
        instructions = ""
    return f"{platform.machine()}-{hashlib.sha256(instructions.encode()).hexdigest()[:12]}"
