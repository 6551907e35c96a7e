"""`siglip-jax train` starts itself again with huge pages, once, where the allocator knows them."""

import os
import subprocess
import sys

import pytest

from siglip_jax.cli import _huge_pages


@pytest.fixture
def started(monkeypatch):
    """Collects what would be started."""
    found: list[tuple] = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", lambda *given: found.append(given))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "siglip_jax", "train", "finetune"])
    monkeypatch.setattr(_huge_pages, "glibc", lambda: (2, 36))
    return found


def test_the_same_command_is_started_again(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    _huge_pages.restart_with_huge_pages()
    ((program, arguments, environment),) = started
    assert (program, arguments) == (sys.executable, [sys.executable, "-m", "siglip_jax", "train", "finetune"])
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("value", ["glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=1"])
def test_what_the_user_has_set_stays(started, monkeypatch, value):
    monkeypatch.setenv("GLIBC_TUNABLES", value)
    _huge_pages.restart_with_huge_pages()
    assert not started


@pytest.mark.parametrize(("said", "version"), [("glibc 2.36", (2, 36)), ("musl", (0, 0)), (None, (0, 0))])
def test_versions_are_read(monkeypatch, said, version):
    monkeypatch.setattr(os, "confstr", lambda name: said)
    assert _huge_pages.glibc() == version


def test_an_older_allocator_is_left_alone(started, monkeypatch):
    monkeypatch.setattr(_huge_pages, "glibc", lambda: (2, 31))
    _huge_pages.restart_with_huge_pages()
    assert not started


@pytest.mark.skipif(_huge_pages.glibc() < _huge_pages.SINCE, reason="the allocator has no such setting here")
def test_the_program_ends_as_it_would_have():
    """The mistake is told by the program that was started again."""
    code = "import os, sys; from siglip_jax.cli import main; status = main(); print(os.environ['GLIBC_TUNABLES'])"
    command = [sys.executable, "-c", f"{code}; sys.exit(status)", "train", "no-such-recipe"]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ran.returncode, ran.stdout) == (2, "glibc.malloc.hugetlb=1\n")
    assert "the recipe must be one of" in ran.stderr and "got 'no-such-recipe'" in ran.stderr
