"""A tiny checkpoint, a few pictures, and a way to run the command line inside this process."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from siglip_jax.cli.main import main
from tests.tiny_checkpoint import picture, write_checkpoint


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three pictures, out of order, and two other files."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for name in ("c.png", "a.jpg", "b.png", "deeper/d.PNG"):
        PIL.Image.fromarray(picture(ord(name[0]))).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*argv: object) -> Ran:
        capsys.readouterr()
        status = main([str(argument) for argument in argv])
        return Ran(status, *capsys.readouterr())

    return run
