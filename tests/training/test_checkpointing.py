"""A full disk is one line with the path and what was saved."""

import errno
import os
import shutil
import threading
import traceback

import jax.numpy as jnp
import pytest

from siglip_jax.training.checkpointing import Saver, is_disk_full

STATE = {"a": jnp.arange(1000.0)}


def test_a_checkpoint_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    with Saver(tmp_path / "checkpoints") as saver:
        saver.save(7, STATE, {"x": 1}, {})
        saver.wait()
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3999))
        with pytest.raises(
            OSError, match="the disk is full, and the checkpoint of step 7 is whole; make room"
        ) as caught:
            saver.save(8, STATE, {"x": 1}, {})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str((tmp_path / "checkpoints").resolve()))
    assert os.listdir(tmp_path / "checkpoints") == ["7"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("x: No space left on device")]
)
def test_a_disk_that_fills_up_during_a_save_is_one_line(tmp_path, monkeypatch, capfd, error):
    """The error of the thread that renames what others wrote: any that were not done would wait for minutes."""

    def fail(*args, **kwargs):
        raise type(error)(*error.args)  # not itself: the list of tests would keep what it was raised from

    monkeypatch.setattr("orbax.checkpoint._src.checkpointers.async_checkpointer._on_commit_callback", fail)
    before = set(threading.enumerate())
    refused = pytest.raises(OSError, match="the disk is full, and no step is saved yet")
    with refused as caught, Saver(tmp_path / "checkpoints") as saver:
        saver.save(0, STATE, {"x": 1}, {})
        saver.wait()
    assert len("".join(traceback.format_exception(caught.value)).splitlines()) < 30
    assert capfd.readouterr().err == ""
    assert set(threading.enumerate()) <= before


def test_another_error_stays_as_it_is(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("something else")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fail)
    with pytest.raises(ValueError, match="something else"), Saver(tmp_path / "checkpoints") as saver:
        saver.save(0, STATE, {"x": 1}, {})


def test_which_errors_are_those_of_a_full_disk():
    inner = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    outer = RuntimeError("a thread failed")
    outer.__cause__ = inner
    assert is_disk_full(outer) and is_disk_full(ValueError("RESOURCE_EXHAUSTED: No space left on device [28]"))
    assert not is_disk_full(ValueError("RESOURCE_EXHAUSTED: out of memory")) and not is_disk_full(OSError(2, "no"))
