"""Compiled code that outlives the process."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from siglip_jax.inference.compiled import _remove_cut_off, _this_cpu

PROGRAM = """
import jax, siglip_jax
siglip_jax.load().encode_text("a cat")
print(jax.config.jax_compilation_cache_dir)
"""


def run(**settings: str | Path) -> tuple[str, list[str]]:
    """Returns the directory of a new process's compiled code, and its log lines about cache hits."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {**given, "JAX_LOGGING_LEVEL": "DEBUG", **{name: str(value) for name, value in settings.items()}}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.strip(), [line for line in ran.stderr.splitlines() if "Persistent compilation cache hit" in line]


@pytest.mark.slow
def test_the_next_process_compiles_nothing(tmp_path):
    folder, hits = run(XDG_CACHE_HOME=tmp_path)
    assert Path(folder) == tmp_path / "siglip_jax" / "compiled" / _this_cpu() and not hits
    assert Path(folder).stat().st_mode & 0o777 == 0o700 and list(Path(folder).iterdir())
    again, hits = run(XDG_CACHE_HOME=tmp_path)
    assert again == folder and any("embed" in line for line in hits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"JAX_COMPILATION_CACHE_DIR": "mine"}, "mine"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "None"),
    ],
)
def test_settings_of_the_user_come_first(tmp_path, settings, expected):
    settings = {name: str(tmp_path / value) if value == "mine" else value for name, value in settings.items()}
    folder, _ = run(**{"XDG_CACHE_HOME": tmp_path, **settings})
    assert folder == (str(tmp_path / "mine") if expected == "mine" else expected)


@pytest.mark.slow
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path):
    (tmp_path / "siglip_jax" / "compiled" / _this_cpu()).mkdir(parents=True)
    (tmp_path / "siglip_jax" / "compiled" / _this_cpu()).chmod(0o777)
    assert run(XDG_CACHE_HOME=tmp_path)[0] == "None"


def test_cpus_of_other_instructions_have_other_folders(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("processor : 0\nflags\t\t: sse avx2\nflags : sse\n")
    two.write_text("processor : 0\nflags\t\t: sse avx2 avx512f\n")
    assert len({_this_cpu(one), _this_cpu(two), _this_cpu(tmp_path / "missing")}) == 3


def test_entries_that_a_full_disk_cut_off_are_removed(tmp_path):
    data = zlib.compress(os.urandom(10_000))
    contents = {"whole": data, "cut": data[:-1], "half": data[:5000], "empty": b"", "other": b"not zlib"}
    for name, part in contents.items():
        (tmp_path / f"{name}-cache").write_bytes(part)
    _remove_cut_off(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".checked", "whole-cache"]
    (tmp_path / "old-cache").write_bytes(data[:5000])
    os.utime(tmp_path / "old-cache", ns=(0, 0))  # older than the last look, as if it had been whole then
    (tmp_path / "new-cache").write_bytes(data[:5000])
    _remove_cut_off(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".checked", "old-cache", "whole-cache"]
