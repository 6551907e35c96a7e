"""Packages that import some of their names on first use: the name is the function, whatever is imported before."""

import importlib
import subprocess
import sys

import pytest

import siglip_jax
from siglip_jax._lazy import make_lazy


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import siglip_jax.checkpoints.convert", "import siglip_jax.training.run"])
def test_a_function_is_not_hidden_by_the_submodule_of_its_name(first):
    names = "siglip_jax.checkpoints.convert, siglip_jax.training.train"
    code = f"{first}\nimport siglip_jax\nprint(*map(callable, ({names})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True True\n", done.stderr


def test_names_are_imported_when_they_are_used(tmp_path, monkeypatch):
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "__init__.py").write_text("")
    (tmp_path / "late" / "thing.py").write_text("def thing():\n    return 1\n")
    (tmp_path / "late" / "broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    late = importlib.import_module("late")
    make_lazy("late", {"thing": "late.thing", "broken": "late.broken"}, submodules=["other"])
    assert "late.thing" not in sys.modules
    assert late.thing() == 1 and "late.thing" in sys.modules
    late.value = 2
    assert late.value == 2
    for name, message in (("none", "has no attribute 'none'"), ("broken", "no_such_package"), ("other", "late.other")):
        with pytest.raises(AttributeError, match=message):
            getattr(late, name)


def test_every_public_name_is_there():
    for name in siglip_jax.__all__:
        assert getattr(siglip_jax, name) is not None
