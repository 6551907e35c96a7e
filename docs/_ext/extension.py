"""The extension of the site: writes pages before a build, and reads docstrings as they are written here."""

import re
from pathlib import Path
from typing import Any

import pages
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

# The page of each public name, by the name alone and by its package.
NAMES: dict[str, str] = {}
for full in pages.public():
    NAMES.setdefault(full.rpartition(".")[2], full)
    NAMES[full.removeprefix("siglip_jax.")] = full


def write_pages(app: Sphinx) -> None:
    """Writes the pages that have changed, and removes those of packages that are gone."""
    written = {**pages.reference(), "docs/benchmarks.md": pages.benchmarks()}
    for file in (pages.ROOT / "docs" / "reference").glob("*.rst"):
        if f"docs/reference/{file.name}" not in written:
            file.unlink()
    for path, text in written.items():
        file = pages.ROOT / path
        file.parent.mkdir(exist_ok=True)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Links public names in code to the reference: whole words that are no words of English."""
    for literal in [*doctree.findall(nodes.literal), *doctree.findall(nodes.title_reference)]:
        text = literal.astext()
        target = NAMES.get(text.removeprefix("siglip_jax.").removesuffix("()"))
        node: nodes.Element = nodes.literal(literal.rawsource, text, classes=["code"])
        if (
            target
            and (not text.islower() or "_" in text)
            and not isinstance(literal.parent, nodes.reference | pending_xref)
        ):
            names = {"refdomain": "py", "reftype": "obj", "reftarget": target, "refexplicit": True, "refwarn": True}
            node = pending_xref("", node, refdoc=app.env.docname, **names)
        literal.replace_self(node)


def shorten(text: str | None) -> str | None:
    """Returns a part of a signature as Python, with types of others as they are imported."""
    if text is None:
        return None
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    text = re.sub(r"<[^<>]*>", "...", text)  # a default that is made anew
    return re.sub(r"(?<![\w.~])~?(?!siglip_jax\b)(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)


def shorten_signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Shortens the arguments and the result of a signature."""
    return shorten(signature), shorten(returns)


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


def lead_to_first_page(app: Sphinx, error: Exception | None) -> None:
    """Leads a reader of the folder to the first page, whose source is not at the root."""
    if error is None and app.builder.format == "html":
        address = f"{app.config.root_doc}.html"
        page = (
            f'<!doctype html><meta http-equiv="refresh" content="0; url={address}"><a href="{address}">siglip_jax</a>'
        )
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("builder-inited", write_pages)
    app.connect("source-read", move_links)
    app.connect("build-finished", lead_to_first_page)
    app.connect("doctree-read", link_names)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
