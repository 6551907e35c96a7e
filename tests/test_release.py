"""What a release is made of agrees: versions, addresses, requirements, notebooks and workflows."""

import ast
import html
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # installed with flax

import siglip_jax
from siglip_jax._files import read_lines
from siglip_jax.assets import EXAMPLES
from siglip_jax.cli._output import percent

ROOT = Path(__file__).parents[1]
PROJECT: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
YAML = [
    *sorted((ROOT / ".github").rglob("*.yml")),
    ROOT / "CITATION.cff",
    ROOT / "recipe" / "recipe.yaml",
]


@pytest.mark.parametrize("file", YAML, ids=lambda file: file.name)
def test_yaml_parses_and_says_what_it_is(file):
    facts = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.parent.name == "workflows":  # YAML 1.1 takes the key `on` for True
        assert {"name", True, "permissions", "jobs"} <= facts.keys()
        for job in facts["jobs"].values():
            assert ("uses" in job) != ("steps" in job)
            assert "uses" not in job or (ROOT / job["uses"]).is_file()
            assert all(("uses" in step) != ("run" in step) for step in job.get("steps", ()))
    elif file.parent.name == "ISSUE_TEMPLATE":
        assert file.stem == "config" or all(field["attributes"]["label"] for field in facts["body"])


def test_versions_agree():
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert recipe["context"]["version"] == citation["version"] == siglip_jax.__version__
    newest = re.search(r"^## \[(.+?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == siglip_jax.__version__
    assert newest[2] == "unreleased" or re.fullmatch(r"20\d\d-\d\d-\d\d", newest[2])


def test_the_recipe_requires_what_the_package_does():
    lines = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())["requirements"]["run"]
    oldest: dict[str, str] = {}
    for line in PROJECT["dependencies"]:
        name, bound = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
        oldest.setdefault(name, bound)  # flax has two, by Python, the older of them first
    assert dict(line.split(" >=") for line in lines if not line.startswith("python ")) == oldest


def test_the_address_of_the_repository_is_one():
    assert re.fullmatch(r"https://github\.com/[\w.-]+/siglip_jax", REPOSITORY)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == REPOSITORY
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())
    assert recipe["about"]["homepage"] == REPOSITORY and recipe["source"]["url"].startswith(f"{REPOSITORY}/archive/")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_installs_what_it_needs_and_opens_in_colab(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    words, code = ("".join(cell["source"]) for cell in cells[:2])
    place = f"{REPOSITORY.removeprefix('https://github.com/')}/blob/main/notebooks/{notebook.name}"
    assert f"(https://colab.research.google.com/github/{place})" in words.splitlines()[2]
    assert cells[1]["outputs"] == [] and 'if importlib.util.find_spec("siglip_jax") is None:' in code
    released, source = re.findall(r'"(siglip_jax\[[\w,]+\][^"]*)"', code)
    assert source == f"{released} @ git+{REPOSITORY}"
    extras = set(released[len("siglip_jax[") : -1].split(","))
    assert extras <= PROJECT["optional-dependencies"].keys() and "plot" in extras


@pytest.mark.slow
def test_the_image_of_the_first_command_is_what_it_prints():
    """The classification of README's image, whose lines are those of docs/images/classify.svg."""
    svg = (ROOT / "docs" / "images" / "classify.svg").read_text(encoding="utf-8")
    shown = [html.unescape(text).replace("\xa0", " ") for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    words = " ".join("".join(shown).split())
    command = re.search(r"\.venv/bin/(siglip-jax classify .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert command and command[1].replace(" ", "") in words.replace(" ", "")
    names = re.findall(r"siglip_jax/assets/examples/([\w ]+)\.png", "\n".join(shown))
    siglip = siglip_jax.load()
    labels = read_lines(EXAMPLES / "labels.txt", "labels")
    assert len(names) == 7 and f"and {len(labels) - 7} more" in words
    for name, found in zip(names, siglip.classify([EXAMPLES / f"{n}.png" for n in names], labels), strict=True):
        line = f"{found[0]['label']} {percent(found[0]['score'])}"
        assert line.replace(" ", "") in re.sub("[ ▏▎▍▌▋▊▉█]", "", "".join(shown)), f"the image says otherwise of {name}"


def test_the_install_cell_falls_back_to_the_repository(monkeypatch):
    import importlib.util
    import subprocess

    code = "".join(json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))["cells"][1]["source"])
    tried = []
    monkeypatch.setattr(subprocess, "call", lambda words: tried.append(words[1:]) or 1)
    monkeypatch.setattr(subprocess, "check_call", lambda words: tried.append(words[1:]))
    exec(compile(ast.parse(code), "cell", "exec"), {})
    assert tried == []  # it is importable here
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        exec(compile(ast.parse(code), "cell", "exec"), {})
    install = ["-m", "pip", "install", "--quiet"]
    assert tried == [[*install, "siglip_jax[plot]"], [*install, f"siglip_jax[plot] @ git+{REPOSITORY}"]]
