"""The extension of the site: writes pages before a build, and reads docstrings as they are written here."""

import re
from typing import Any

import pages
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx


def write_pages(app: Sphinx) -> None:
    """Writes the pages that have changed."""
    for path, text in {**pages.reference(), "docs/benchmarks.md": pages.benchmarks()}.items():
        file = pages.ROOT / path
        file.parent.mkdir(exist_ok=True)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def code(name: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = ()) -> Any:
    """A role for `text` in single backticks: code, which links to a public name if it is one."""
    literal = nodes.literal(rawtext, nodes.unescape(text), classes=["code"])
    target = TARGETS.get(nodes.unescape(text).removeprefix("siglip_jax.").removesuffix("()"))
    if target is None:
        return [literal], []
    domain = {"refdomain": "py", "reftype": "obj", "reftarget": target, "refexplicit": True, "refwarn": True}
    return [pending_xref(rawtext, literal, **domain)], []


TARGETS: dict[str, str] = {}


def escape_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Escapes a docstring before its sections are read, except its examples."""
    example = False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            lines[i] = pages.escaped(line)


def move_links(app: Sphinx, name: str, content: list[str]) -> None:
    """Makes README the first page of the site, and leads links to README there."""
    if name == app.config.root_doc:
        readme = (pages.ROOT / "README.md").read_text(encoding="utf-8")
        content[0] = content[0].replace("<!-- README.md -->", re.sub(r"\]\((?![\w+]+:|#)", "](/", readme))
    content[0] = re.sub(r"\]\((/siglip_jax/[^)]*\.md)", r"](path:\1", content[0])  # a file that is no page
    content[0] = re.sub(r"\]\((?:\.\./)*README\.md", f"](/{app.config.root_doc}.md", content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    for full in pages.public():
        package, _, name = full.rpartition(".")
        TARGETS.setdefault(name, full)
        TARGETS[full.removeprefix("siglip_jax.")] = full
    app.add_role("code_or_name", code)
    app.connect("builder-inited", write_pages)
    app.connect("source-read", move_links)
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
