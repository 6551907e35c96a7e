"""A tiny checkpoint, a few images, and a way to run the command line inside this process."""

import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from siglip_jax.cli import main
from tests.support.tiny_checkpoint import picture


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images, out of order, and two other files."""
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for name in ("c.png", "a.jpg", "b.png", "deeper/d.PNG"):
        PIL.Image.fromarray(picture(ord(name[0]))).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*argv: object) -> Ran:
        capsys.readouterr()
        status = main([str(argument) for argument in argv])
        return Ran(status, *capsys.readouterr())

    return run


class Terminal(io.StringIO):
    """A standard output that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run_on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs the command line on a terminal of `columns` columns that shows colours; returns nothing of stderr."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def run(*argv: object, columns: int) -> Ran:
        terminal = Terminal()
        with monkeypatch.context() as patched:
            patched.setenv("COLUMNS", str(columns))
            patched.setattr(sys, "stdout", terminal)
            status = main([str(argument) for argument in argv])
        return Ran(status, terminal.getvalue(), "")

    return run
