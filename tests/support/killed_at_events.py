"""Jobs that are killed at their first, second, third … change of the disk, in processes of their own.

Each is checked after every kill: what it leaves is what was there, what it makes, or refused; the last one, which
nothing kills, leaves no temporary files.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import siglip_jax
from siglip_jax.checkpoints import convert
from siglip_jax.inference.export import export, read_encoder
from siglip_jax.search import embed, open_collection, open_index
from tests.support import tiny_checkpoint
from tests.support.damaged_files import read_all, write

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def kill_at(event: int) -> None:
    """Kills this process at its `event`th change of the disk, just before it."""
    counter = itertools.count(1)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or name in CHANGES) and next(counter) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def in_fork(job: Callable[[], object], event: int = 0) -> int:
    """Runs a job in a fork, which is killed at a change of the disk; returns its status, negative if it was killed.

    Everything that runs a model is done in forks: a process that has started jax's threads must not be forked.
    """
    child = os.fork()
    if child == 0:
        if event:
            kill_at(event)
        try:
            job()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_each(job: Callable[[], object], check: Callable[[], object]) -> int:
    """Runs a job that is killed at ever later changes of the disk, until it ends; returns how often it was killed."""
    event = kills = 0
    while True:
        event += 1 + event // 4
        status = in_fork(job, event)
        if in_fork(check) or status > 0:
            raise RuntimeError(f"the job or its check failed at change {event}; see above")
        if status == 0:
            return kills
        kills += 1


def litter(home: Path) -> list[str]:
    """Returns the temporary files below a directory."""
    return [path.name for path in home.rglob("*.tmp")]


def convert_to(home: Path, format: str) -> int:
    """Kills conversions: there is no destination, or the whole one."""
    source, out = write(home, "huggingface", seed=2), home / ("out.npz" if format == "big_vision" else "out")
    expected = read_all(source)

    def check() -> None:
        if out.exists():
            assert read_all(out) == expected
            shutil.rmtree(out) if out.is_dir() else out.unlink()

    kills = kill_at_each(lambda: convert(source, out, format), check)
    assert not litter(home), litter(home)
    return kills


def save_quantized(home: Path) -> int:
    """Kills the writers of quantized weights: a directory is refused, or holds the whole model."""
    made, out = home / "made", home / "out"

    def weights(directory: Path) -> list[bytes]:
        return [np.asarray(x).tobytes() for x in jax.tree.leaves(siglip_jax.load(directory).params)]

    def make() -> None:
        siglip = siglip_jax.load(tiny_checkpoint.write_checkpoint(home / "float"), quantization="int8")
        siglip.save_pretrained(made)

    def check() -> None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            assert weights(out) == weights(made)

    assert in_fork(make) == 0
    kills = kill_at_each(lambda: siglip_jax.load(made).save_pretrained(out), check)
    assert in_fork(lambda: siglip_jax.load(out)) == 0 and not litter(home), litter(home)
    return kills


def build_index(home: Path) -> int:
    """Kills the builders of an approximate index: the next search builds it anew, and finds the same."""
    (home / "texts.txt").write_text("\n".join(tiny_checkpoint.SENTENCES))
    out = home / "out"

    def make() -> None:
        embed(home / "texts.txt", out, tiny_checkpoint.write_checkpoint(home / "model"), part_size=4)

    assert in_fork(make) == 0
    whole = {path.name for path in out.iterdir()}

    def check() -> None:
        collection = open_collection(out)
        index = open_index(collection)
        for row in range(len(collection)):
            assert index.search(collection.rows(np.arange(row, row + 1))[0], 1)[1].tolist() == [row]
        assert not litter(home), litter(home)
        for path in out.iterdir():
            if path.name not in whole:
                path.unlink()

    return kill_at_each(lambda: open_index(open_collection(out)), check)


def export_to(home: Path) -> int:
    """Kills exports: there is no directory, or the whole one."""
    out, model = home / "out", home / "model"
    assert in_fork(lambda: tiny_checkpoint.write_checkpoint(model)) == 0

    def check() -> None:
        if out.exists():
            for name in ("image", "text"):
                read_encoder(out, name)
            shutil.rmtree(out)

    kills = kill_at_each(lambda: export(siglip_jax.load(model), out, platforms=["cpu"]), check)
    assert not litter(home), litter(home)
    return kills


JOBS: dict[str, Callable[[Path], int]] = {
    "convert to huggingface": lambda home: convert_to(home, "huggingface"),
    "convert to big_vision": lambda home: convert_to(home, "big_vision"),
    "export": export_to,
    "quantized": save_quantized,
    "index": build_index,
}


if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](Path(sys.argv[2]))))
