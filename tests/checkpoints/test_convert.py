"""`convert` never leaves half a result, and never replaces anything."""

import errno
import shutil
from pathlib import Path

import pytest

import siglip_jax
from siglip_jax.checkpoints import convert


@pytest.mark.parametrize("format", ["huggingface", "open_clip", "orbax", "big_vision"])
def test_an_existing_destination_is_refused(tmp_path, checkpoint, format):
    out = tmp_path / ("x.npz" if format == "big_vision" else "x")
    if format == "big_vision":
        out.write_bytes(b"mine")
    else:
        out.mkdir()
        (out / "mine").write_bytes(b"mine")
    words = f"{out.name}: the destination must not exist yet, got an existing one; choose another"
    with pytest.raises(FileExistsError, match=words):
        convert(checkpoint, out, format)
    assert (out if out.is_file() else out / "mine").read_bytes() == b"mine"
    assert len(list(tmp_path.rglob("*"))) == (1 if out.is_file() else 2)


def test_an_empty_directory_is_filled(tmp_path, checkpoint):
    (tmp_path / "x").mkdir()
    done = convert(checkpoint, tmp_path / "x", "huggingface")
    assert done.written and not done.different and done.destination == tmp_path / "x"
    assert done.bytes == sum(file.stat().st_size for file in (tmp_path / "x").iterdir())
    assert siglip_jax.load(tmp_path / "x").config == siglip_jax.load(checkpoint).config


def test_a_full_disk_leaves_no_directory_with_a_cut_vocabulary(tmp_path, checkpoint, monkeypatch):
    def copy_half(source, target):
        data = Path(source).read_bytes()
        Path(target).write_bytes(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", copy_half)
    with pytest.raises(OSError, match="No space left on device"):
        convert(checkpoint, tmp_path / "x", "huggingface")
    assert list(tmp_path.iterdir()) == []

    # Into a directory that has a vocabulary, by `write_checkpoint`: that one stays whole.
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "spiece.model").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left on device"):
        siglip_jax.write_checkpoint(tmp_path / "y", siglip_jax.read_checkpoint(checkpoint), "open_clip")
    assert (tmp_path / "y" / "spiece.model").read_bytes() == b"old"
    assert [file.name for file in (tmp_path / "y").iterdir()] == ["spiece.model"]
