"""The layout of the package: imports go down its floors only, nothing private is reached into, the API is declared."""

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import siglip_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "siglip_jax"

# The floors of CONTRIBUTING.md, lowest first: a file imports from its own floor and those below it.
FLOORS = (
    (
        "_bicubic",
        "_callbacks",
        "_checks",
        "_fields",
        "_files",
        "_hub",
        "_lazy",
        "_lock",
        "_npy",
        "_optional",
        "_progress",
        "_requirements",
        "_tpu",
        "_version",
        "assets",
        "params",
        "rules",
    ),
    ("configs",),
    ("losses", "parallel", "processing", "quantization"),
    ("data",),
    ("checkpoints",),
    ("models",),
    ("inference", "interop"),
    ("environment", "evaluation", "plots", "search"),
    ("planning", "training"),
    ("cli", "__main__"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
LAZY = re.compile(r"if TYPE_CHECKING:")

PACKAGES = (
    "siglip_jax",
    *(f"siglip_jax.{name}" for names in FLOORS for name in names if (PACKAGE / name / "__init__.py").is_file()),
)
EXPORTED = [
    (f"{package}.{name}", getattr(importlib.import_module(package), name))
    for package in PACKAGES
    if package != "siglip_jax.cli"
    for name in importlib.import_module(package).__all__
    if not inspect.ismodule(getattr(importlib.import_module(package), name))
]
CALLABLE = {id(value): pytest.param(value, id=name) for name, value in EXPORTED if callable(value)}


def modules() -> dict[str, ast.Module]:
    """Returns the syntax tree of every module, by its full name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, str | None]]:
    """Yields (module, name in it) for each import of the package within a module; the name is None for a module."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.partition(".")[0] == "siglip_jax")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: expected absolute imports only"
            if (node.module or "").partition(".")[0] == "siglip_jax":
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    yield (module, None) if module in MODULES else (node.module or "", alias.name)


def package_of(module: str) -> str:
    """Returns the part of the house that a module belongs to: the second part of its name."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down_the_floors(name):
    if name == "siglip_jax":
        return
    own = FLOOR[package_of(name)]
    for module, what in imports(name):
        assert module != "siglip_jax", f"{name} imports {what} from the top of the package"
        assert FLOOR[package_of(module)] <= own, f"{name} (floor {own}) imports {module} from a floor above"


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Returns a cycle of a graph; nothing if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_no_two_files_import_each_other():
    assert not cycle_in({name: {module for module, _ in imports(name)} - {name} for name in MODULES})


def test_no_two_packages_import_each_other():
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        if name not in ("siglip_jax", "siglip_jax.__main__"):
            own = package_of(name)
            graph.setdefault(own, set()).update({package_of(module) for module, _ in imports(name)} - {own, ""})
    assert not cycle_in(graph)


def test_a_cycle_would_be_found():
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_private_of_another_package_is_used(name):
    for module, what in imports(name):
        parts = [*module.split("."), *([what] if what else [])]
        private = next((i for i, part in enumerate(parts) if part.startswith("_") and not part.endswith("__")), None)
        if private is not None:
            owner = ".".join(parts[:private])
            home = owner if owner in PACKAGES or (PACKAGE.parent / owner.replace(".", "/")).is_dir() else owner
            if not (PACKAGE.parent / owner.replace(".", "/")).is_dir():  # a name of a module: its package owns it
                home = owner.rpartition(".")[0]
            assert name == home or name.startswith(f"{home}."), f"{name} uses the private {'.'.join(parts)}"


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "siglip_jax.cli"])
def test_the_names_of_each_package_are_there(package):
    module = importlib.import_module(package)
    assert len({*module.__all__}) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    assert all(not name.startswith("_") for name in module.__all__)


def test_every_name_is_in_the_reference(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    pages = importlib.import_module("pages").reference()  # raises for a name without a description
    for package in (name for name in PACKAGES if name != "siglip_jax.cli"):
        table = pages[f"docs/reference/{package.rpartition('.')[2]}.rst"]
        for name in importlib.import_module(package).__all__:
            target = re.search(rf"^   \* - :(?:py:obj|doc):`{name} <([\w./]+)>`\n     - \S", table, re.MULTILINE)
            assert target, f"{package}.{name} has no row"
            full = target[1].strip("/").replace("docs/reference/", "siglip_jax.")
            page = pages[f"docs/reference/{full.split('.')[1]}.rst"]
            entry = rf"^\.\. (?:autoclass|autofunction):: {full}$|^\.\. py:data:: {name}$|^\.\. automodule:: {full}$"
            assert re.search(entry, page, re.MULTILINE), f"{full} has no entry"


def test_dir_shows_what_a_user_needs():
    assert sorted(dir(siglip_jax)) == sorted([*siglip_jax.__all__, "__version__"])


def test_help_of_the_package_lists_every_public_name_once():
    listed = re.findall(r"(?<!\w)`(\w+)`", siglip_jax.__doc__ or "")
    assert sorted(listed) == sorted(siglip_jax.__all__)


# What linen gives every module besides its fields.
LINEN = {"parent", "name"}


def parameters_of(value: Any) -> list[str]:
    """Returns the names of the arguments of a function, or of the fields or arguments of a class."""
    if inspect.isclass(value) and not getattr(value.__init__, "__module__", "").startswith("siglip_jax"):
        names: list[str] = []  # that of an exception, a dictionary or a protocol; fields are below
    else:
        signature = inspect.signature(value.__init__ if inspect.isclass(value) else value)
        names = [name for name in signature.parameters if name not in {"self", "cls", *LINEN}]
    if inspect.isclass(value) and dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.init and field.name not in LINEN]
    if inspect.isclass(value) and hasattr(value, "_fields"):
        names = list(value._fields)
    return [name for name in names if not name.startswith("_")]


def described(text: str, section: str) -> set[str]:
    """Returns the names that a section of a docstring describes, each on a line of its own or as `a, b:`."""
    m = re.search(rf"^[ ]*{section}:\n((?:[ ]+.*\n|\n)+)", text + "\n", re.MULTILINE)
    if not m:
        return set()
    lines = inspect.cleandoc("\n" + m[1]).splitlines()
    heads = (re.match(r"([*\w, ]+):(?: |$)", line) for line in lines)
    return {name.strip(" *") for head in heads if head for name in head[1].split(",")}


def docs_of(value: Any) -> str:
    """Returns the docstring of a function, or those of a class and its constructor."""
    text = inspect.getdoc(value) or ""
    if inspect.isclass(value) and "__init__" in vars(value) and value.__init__.__doc__:
        text += "\n\n" + inspect.cleandoc(value.__init__.__doc__)
    return text


@pytest.mark.parametrize("value", CALLABLE.values())
def test_every_argument_of_what_is_exported_is_documented(value):
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return  # an alias of a type, described in the package's table
    text = docs_of(value)
    missing = set(parameters_of(value)) - described(text, "Args") - described(text, "Attributes")
    assert not missing, f"{value.__module__}.{value.__qualname__} documents nothing of {', '.join(sorted(missing))}"


METHODS = {
    f"{cls.__name__}.{name}": method
    for _, cls in EXPORTED
    if inspect.isclass(cls) and cls.__module__.startswith("siglip_jax")
    for base in cls.__mro__
    if base.__module__.startswith("siglip_jax")
    for name, method in vars(base).items()
    if not name.startswith("_") and inspect.isfunction(function := inspect.unwrap(getattr(method, "__func__", method)))
    if function.__module__.startswith("siglip_jax")
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_argument_of_a_public_method_is_documented(name):
    method = inspect.unwrap(getattr(METHODS[name], "__func__", METHODS[name]))
    text = inspect.getdoc(method) or ""
    assert text, f"{name} has no docstring"
    names = [n for n in inspect.signature(method).parameters if n not in {"self", "cls"} and not n.startswith("_")]
    missing = set(names) - described(text, "Args")
    assert not missing, f"{name} documents nothing of {', '.join(sorted(missing))}"


@pytest.mark.parametrize("value", CALLABLE.values())
def test_what_is_exported_has_an_example(value):
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return
    text = docs_of(value)
    if inspect.isclass(value):
        own = [m for n, m in vars(value).items() if not n.startswith("_")]
        text += "\n".join(inspect.getdoc(getattr(m, "__func__", m)) or "" for m in own)
    assert ">>> " in text or "No example: " in text, f"{value.__qualname__} has neither an example nor a reason"


# Prompts of others, whose published results are data.
PUBLISHED = ("a picture of an apple", "a picture of a laptop")
OLD_WORDS = (r"\bpictures?\b", r"\bfigures\b", r"cut over", r"is let go of", r"embedded model", r"is given away")


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_words_of_this_field_are_used(file):
    text = file.read_text(encoding="utf-8")
    for prompt in PUBLISHED:
        text = text.replace(prompt, "")
    found = [m[0] for word in OLD_WORDS for m in re.finditer(word, text, re.IGNORECASE)]
    assert not found, f"{file.relative_to(ROOT)} says {', '.join(sorted(set(found)))}"
