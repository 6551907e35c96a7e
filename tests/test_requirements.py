"""Extras as the metadata lists them: what is missing, and the command that installs it."""

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from siglip_jax import _requirements

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]


def marked(line, extra):
    """Returns a requirement as the metadata of an extra has it."""
    requirement, _, marker = line.partition(";")
    return f"{requirement.strip()}; " + (f"({marker.strip()}) and " if marker else "") + f"extra == '{extra}'"


@pytest.fixture
def declared(monkeypatch):
    """Metadata as pyproject.toml says, whenever this package was installed; and the versions that a test sets."""
    lines = [*PROJECT["dependencies"], *(marked(line, extra) for extra, lines in OPTIONAL.items() for line in lines)]
    requires, installed = {"siglip_jax": lines}, {}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires.get(name))
    monkeypatch.setattr(importlib.metadata, "version", version)
    _requirements._is_complete.cache_clear()
    yield requires, installed
    _requirements._is_complete.cache_clear()


def test_the_command_names_what_the_extra_lists(declared):
    assert _requirements.install("quant", "qwix") == "pip install 'qwix>=0.1.8'"
    assert _requirements.install("search", "usearch") == "pip install 'grain>=0.2.18' 'pyarrow>=20' 'usearch>=2.16'"
    assert _requirements.install("hub", "tokenizers") == "pip install 'huggingface_hub>=0.30' 'tokenizers>=0.21'"
    assert _requirements.install("no such extra", "package") == "pip install package"


def test_the_command_names_the_package_where_there_is_no_metadata(monkeypatch):
    monkeypatch.setattr(_requirements, "PACKAGE", "no_such_distribution")
    assert _requirements.install("hub", "huggingface_hub") == "pip install huggingface_hub"
    assert _requirements.extras() == _requirements.missing("hub") == _requirements.missing() == []


def test_a_package_is_missing_if_it_is_too_old_or_lacks_what_its_own_extra_needs(declared):
    requires, installed = declared
    assert _requirements.missing("siglip2") == ["tokenizers>=0.21"]
    installed["tokenizers"] = "0.20.9"
    assert _requirements.missing("siglip2") == ["tokenizers>=0.21"]
    installed["tokenizers"] = "0.21.0rc1"
    assert _requirements.missing("siglip2") == ["tokenizers>=0.21"]
    installed["tokenizers"] = "0.22"
    assert _requirements.missing("siglip2") == []
    assert _requirements.missing("hub") == ["huggingface_hub>=0.30"]
    requires["ray"] = ["click", "fsspec; extra == 'data'", "numpy>=1; extra == 'serve'"]
    installed |= {"ray": "2.60", "grain": "0.3", "pyarrow": "30", "usearch": "3"}
    assert _requirements.missing("ray") == ["ray[data]>=2.40"]
    _requirements._is_complete.cache_clear()
    installed["fsspec"] = "2026.1"
    assert _requirements.missing("ray") == []


def test_the_package_itself_needs_what_it_declares(declared):
    _, installed = declared
    installed |= {"jax": "0.9.0", "numpy": "2.4"}
    missing = _requirements.missing()
    assert "jax>=0.10.2" in missing and "rich>=13" in missing and "numpy>=1.26" not in missing
    assert sum(line.startswith("flax") for line in missing) == 1  # of the two that pyproject.toml has, by Python


# Names of modules whose distributions have others.
PROVIDED_BY = {"libtpu": "jax[tpu]", "pillow_heif": "pillow-heif", "ray": "ray[data]"}


def asked_for():
    """Yields (file, module, extra) of each import of an optional package."""
    for file in sorted((ROOT / "siglip_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_optional":
                module, _, extra = node.args
                assert isinstance(module, ast.Constant) and isinstance(extra, ast.Constant)
                yield pytest.param(module.value.partition(".")[0], extra.value, id=f"{file.stem}-{module.value}")


@pytest.mark.parametrize(("module", "extra"), list(asked_for()))
def test_the_extra_of_each_hint_installs_the_package_that_is_missing(declared, module, extra):
    assert extra in OPTIONAL
    named = re.findall(r"'([^']*)'", _requirements.install(extra, "nothing"))
    assert PROVIDED_BY.get(module, module) in [re.split("[<>=]", requirement)[0] for requirement in named]


def test_the_table_of_extras_has_them_all():
    text = (ROOT / "docs" / "start" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| .+ \|$", text.partition("| extra | for |")[2].partition("\n\n")[0], re.MULTILINE
    )
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(OPTIONAL)
