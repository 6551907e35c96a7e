"""Pages that the build writes: the reference, from each package's `__all__`, and the benchmarks, from their results."""

import ast
import importlib
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import siglip_jax

ROOT = Path(siglip_jax.__file__).parents[1]
PACKAGES = [name for name in siglip_jax.__all__ if inspect.ismodule(getattr(siglip_jax, name))]


def home(name: str, value: Any) -> str:
    """Returns the package on whose page a name is described: the one that defines it, else the first that has it."""
    own = [p for p in PACKAGES if getattr(value, "__module__", "").startswith(f"siglip_jax.{p}.")]
    return next(p for p in [*own, *PACKAGES] if name in getattr(siglip_jax, p).__all__)


def public() -> dict[str, Any]:
    """Returns every public object, by its full name on the page that describes it."""
    found = {}
    for package in PACKAGES:
        module = getattr(siglip_jax, package)
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.ismodule(value) and home(name, value) == package:
                found[f"siglip_jax.{package}.{name}"] = value
    return found


def full_name(package: str, name: str) -> str:
    """Returns the full name that the page of an object has it under."""
    value = getattr(importlib.import_module(package), name)
    return f"siglip_jax.{name}" if inspect.ismodule(value) else f"siglip_jax.{home(name, value)}.{name}"


def text_of_constant(package: str, name: str) -> str:
    """Returns the docstring below the definition of a constant, in whichever file of a package that is."""
    for file in sorted(Path(inspect.getfile(importlib.import_module(package))).parent.rglob("*.py")):
        for node, below in itertools.pairwise(ast.parse(file.read_text(encoding="utf-8")).body):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            defined = any(isinstance(target, ast.Name) and target.id == name for target in targets)
            if defined and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                return inspect.cleandoc(str(below.value.value))
    raise ValueError(f"{package}.{name} must have a docstring below its definition, got none; write one")


def text_of(package: str, name: str) -> str:
    """Returns the docstring of a public object."""
    value = getattr(importlib.import_module(package), name)
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        return inspect.getdoc(value) or ""
    return text_of_constant(package, name)


def methods(cls: type) -> list[str]:
    """Returns the public methods and properties of a class that this package defines, those of its bases too."""
    found: dict[str, None] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("siglip_jax"):
            for name, value in vars(base).items():
                shown = not name.startswith("_") or name == "__call__"
                function = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", None) or value))
                function = getattr(function, "func", function)  # of a cached property
                own = getattr(function, "__module__", None) or ""
                if shown and name != "setup" and inspect.isfunction(function) and own.startswith("siglip_jax"):
                    found.setdefault(name)
    return [name for name in found if inspect.getdoc(getattr(cls, name))]


def summary(text: str) -> str:
    """Returns the first sentence of a docstring."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def table(package: str) -> Iterator[str]:
    """Yields the table of a package's names."""
    yield from (".. list-table::", "   :widths: 30 70", "   :class: names", "")
    for name in importlib.import_module(package).__all__:
        target = full_name(package, name)
        role = ":doc:`{1} </docs/reference/{1}>`" if target.count(".") == 1 else ":py:obj:`{1} <{0}>`"
        yield f"   * - {role.format(target, name)}"
        yield f"     - {escaped(summary(text_of(package, name)))}"
    yield ""


def entry(full: str, value: Any) -> Iterator[str]:
    """Yields the entry of one object."""
    if inspect.isclass(value):
        yield f".. autoclass:: {full}"
        if members := [name for name in methods(value)]:
            yield f"   :members: {', '.join(name for name in members if name != '__call__')}"
            if "__call__" in members:
                yield "   :special-members: __call__"
    elif inspect.isroutine(value):
        yield f".. autofunction:: {full}"
    else:
        package, _, name = full.rpartition(".")
        yield from (f".. py:data:: {name}", f"   :module: {package}", "")
        yield from (f"   {line}".rstrip() for line in escaped(text_of_constant(package, name)).splitlines())
    yield ""


def heading(title: str) -> list[str]:
    return [title, "=" * len(title), ""]


def escaped(text: str) -> str:
    """Returns a docstring as reStructuredText: what its writers mean literally stays so."""
    return re.sub(r"([\\*|])|(?<=\w)(_)(?!\w)", r"\\\1\2", text)


def reference() -> dict[str, str]:
    """Returns the pages of the reference, by their paths."""
    objects = public()
    pages = {}
    for package in ("siglip_jax", *(f"siglip_jax.{name}" for name in PACKAGES)):
        lines = [*heading(package), f".. automodule:: {package}", "   :no-members:", "", *table(package)]
        for full, value in objects.items():
            if full.rpartition(".")[0] == package:
                lines += entry(full, value)
        pages[f"docs/reference/{package.rpartition('.')[2]}.rst"] = "\n".join(lines)
    return pages


def benchmarks() -> str:
    """Returns the page of all results."""
    lines = ["# Benchmarks", "", "What the scripts of `benchmarks/` printed, with the machine and the versions.", ""]
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.txt")):
        lines += [
            f"## {file.stem}",
            "",
            f"```{{literalinclude}} /{file.relative_to(ROOT)}",
            ":language: text",
            "```",
            "",
        ]
    return "\n".join(lines)
