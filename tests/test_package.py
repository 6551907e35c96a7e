"""The package as a whole: what importing it costs, what it never imports, and that its sources are clean."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import siglip_jax

ROOT = Path(__file__).parents[1]
SOURCES = ["siglip_jax", "tests", "benchmarks", "notebooks"]


def run(*command, cwd=ROOT):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def python(code):
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_import_adds_less_than_three_tenths_of_a_second():
    code = """
import time, jax, flax
from flax import linen
t = time.process_time()
import siglip_jax
print(time.process_time() - t)
"""
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_jax_is_imported_on_first_use():
    code = "import sys, siglip_jax; print('jax' in sys.modules, callable(siglip_jax.load), 'jax' in sys.modules)"
    assert python(code).split() == ["False", "True", "True"]


@pytest.mark.slow
def test_no_other_framework_is_imported():
    code = """
import pkgutil, importlib, sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["tensorflow"] = None  # importing one would raise
import siglip_jax
for module in pkgutil.walk_packages(siglip_jax.__path__, "siglip_jax."):
    if module.name != "siglip_jax.__main__":
        importlib.import_module(module.name)
print(sorted(m for m in ("torch", "transformers", "tensorflow") if sys.modules[m]))
"""
    assert python(code).strip() == "[]"


@pytest.mark.slow
def test_optional_packages_are_not_needed():
    code = """
import sys
for name in ("huggingface_hub", "matplotlib", "resvg_py", "transformers", "torch"):
    sys.modules[name] = None
import siglip_jax
siglip_jax.load().encode_text(["a cat"])
print("ok")
"""
    assert python(code).strip() == "ok"


def test_the_public_names_are_there():
    configurations = {"SiglipConfig", "SiglipTextConfig", "SiglipVisionConfig"}
    modules = {"SiglipModel", "SiglipTextModel", "SiglipVisionModel", "SiglipForImageClassification"}
    processing = {"SiglipTokenizer", "SiglipImageProcessor", "SiglipImageProcessorPil", "SiglipProcessor"}
    functions = {"Checkpoint", "read_checkpoint", "write_checkpoint", "load", "pipeline", "sigmoid_loss"}
    names = configurations | modules | processing | functions
    assert [name for name in names if not hasattr(siglip_jax, name)] == []


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff_is_clean(command):
    done = run(sys.executable, "-m", "ruff", *command, *SOURCES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_type_checker_is_clean():
    checker = shutil.which("pyrefly", path=str(Path(sys.executable).parent))
    assert checker, "pyrefly is part of the extra 'test'"
    done = run(checker, "check", "--python-interpreter-path", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_ever_unpickled():
    for path in (ROOT / "siglip_jax").rglob("*.py"):
        text = path.read_text()
        for word in ("import pickle", "allow_pickle=True", "torch.load", "yaml.load("):
            assert word not in text, f"{path}: {word}"
