"""Paths that jobs write to, and files written aside: only what killed writers left is removed."""

import collections
import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from siglip_jax._files import (
    check_space,
    directory_written_aside,
    output_path,
    remove_litter,
    write_atomically,
    written_aside,
)

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from siglip_jax._files import check_space, directory_written_aside, written_aside

file, folder = map(Path, sys.argv[1:])
with written_aside(file) as one, directory_written_aside(folder) as other:
    one.write_bytes(bytes(1000))
    (other / "weights").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_next_writer_of_a_file_removes_what_a_killed_one_left(tmp_path):
    file, folder = tmp_path / "out.npz", tmp_path / "exported"
    subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, file, folder], check=False, timeout=120)
    assert len(names(tmp_path)) == 2 and all(name.endswith(".tmp") for name in names(tmp_path))
    write_atomically(tmp_path / "out", b"of another file")
    assert len(names(tmp_path)) == 3
    write_atomically(file, b"new")
    with directory_written_aside(folder) as aside:
        (aside / "weights").write_bytes(b"new")
    assert names(tmp_path) == ["exported", "out", "out.npz"]


def test_what_a_live_writer_has_begun_stays(tmp_path):
    file, folder = tmp_path / "out.npz", tmp_path / "exported"
    with written_aside(file) as first, directory_written_aside(folder) as begun:
        first.write_bytes(b"first")
        (begun / "weights").write_bytes(b"first")
        with written_aside(file) as second:
            second.write_bytes(b"second")
        remove_litter(tmp_path, lambda name: True)
        assert file.read_bytes() == b"second"
        assert (first.read_bytes(), (begun / "weights").read_bytes()) == (b"first", b"first")
    assert file.read_bytes() == b"first"
    assert names(tmp_path) == ["exported", "out.npz"]


def test_files_of_others_are_no_litter(tmp_path):
    for name in (".out.npz.tmp", "out.npz.1.tmp", ".other.npz.1.tmp", ".out.npz.1.2.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".out.npz.link.tmp").symlink_to(tmp_path / "out.npz.1.tmp")
    before = names(tmp_path)
    write_atomically(tmp_path / "out.npz", b"")
    assert names(tmp_path) == sorted([*before, "out.npz"])


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_permissions_are_those_of_the_umask_which_is_never_changed(umask, expected, tmp_path, monkeypatch):
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", lambda mask: pytest.fail("the umask is that of the whole process"))
            write_atomically(tmp_path / "file", b"")
            with directory_written_aside(tmp_path / "folder"):
                pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == expected
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_missing_folder_is_reported_with_the_name_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "no" / "out.npz", b"")
    assert caught.value.filename == str(tmp_path / "no" / "out.npz")


@pytest.mark.parametrize("given", ["gs://bucket/run", Path("gs://bucket/run"), "s3://bucket/run"])
def test_a_url_is_no_output(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^--out must be a path on this machine, got the URL (gs|s3)://bucket/run; write to"
    ):
        output_path(given, "--out")


@pytest.mark.parametrize("given", ["out", "a/b.c", "C:/out", "x:y", "./gs:/run", "/tmp/gs://x"])
def test_a_path_stays_as_it_is(given):
    assert output_path(given) == Path(given)


def test_the_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_path("~/run") == tmp_path / "run"
    assert output_path("~") == tmp_path
    assert output_path(Path("a/~")) == Path("a/~")


def test_a_full_disk_is_reported_with_the_path(tmp_path):
    for writer in (written_aside, directory_written_aside):
        with pytest.raises(OSError, match="No space left") as caught, writer(tmp_path / "out.npz"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert caught.value.filename == str(tmp_path / "out.npz")
    assert not list(tmp_path.iterdir())


def test_errors_of_other_files_keep_their_path(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, written_aside(tmp_path / "out.npz"):
        (tmp_path / "in.npz").read_bytes()
    assert caught.value.filename == str(tmp_path / "in.npz")


def test_space_is_checked_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: collections.namedtuple("Usage", "free")(999))
    check_space(tmp_path, 999)
    with pytest.raises(OSError, match=re.escape("the disk must have 1,000 bytes free, got 999; make room")) as caught:
        check_space(tmp_path, 1000)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
