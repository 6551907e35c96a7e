"""What the pages of the site say: their Python runs, and their tables are those of the package."""

import ast
import re
from pathlib import Path

import pytest

from siglip_jax.configs import VARIANTS
from tests.test_docs import ROOT, blocks

DOCS = ROOT / "docs"
FOLDERS = ("start", "guides", "coming_from", "how_it_works")
ELSEWHERE = {DOCS / "meshes.md", DOCS / "training.md"}  # slow, and their examples are run by the tests of their subject
FILES = [ROOT / "README.md", *(file for folder in (".", *FOLDERS) for file in sorted((DOCS / folder).glob("*.md")))]
RUN = [file for file in FILES if file not in ELSEWHERE and any(blocks(file, "python"))]
LEFT_OUT = re.compile(r"# needs (the Hub|a )")  # the first line of a block that takes a download, long, or a file


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* parameters to be trained must be float32, got float16")  # of the bundled model
@pytest.mark.parametrize("page", [pytest.param(file, id=str(file.relative_to(ROOT))) for file in RUN])
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for line, block in blocks(page, "python"):
        code = compile("\n" * (line - 1) + block, str(page), "exec")
        if not LEFT_OUT.match(block):
            exec(code, namespace)


def test_the_table_of_checkpoints_is_that_of_the_registry():
    text = (DOCS / "start" / "which_checkpoint.md").read_text(encoding="utf-8")
    expected = [
        f"| `{v.short_name}` | {v.parameters / 1e6:,.0f} | {v.image_size or 'any'} | {v.text_length} | {v.imagenet}"
        f" | {v.coco_text_to_image} | {v.coco_image_to_text} |"
        for v in VARIANTS
    ]
    assert re.findall(r"^\| `siglip.*", text, re.MULTILINE) == expected


def strings() -> str:
    """Returns all strings of the package with zeros between them; `…` stands for what an f-string inserts."""
    found = []
    for file in (ROOT / "siglip_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\0".join(found)


def test_messages_of_the_page_of_troubleshooting_are_those_of_the_package():
    table = Path(DOCS, "troubleshooting.md").read_text(encoding="utf-8").split("## Error messages")[1]
    listed = [
        text for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for text in re.findall(r"`(.*?)`", cell)
    ]
    source = strings()
    assert len(listed) > 60
    for message in listed:
        assert re.search(r"[^\0]*".join(re.escape(part.strip()) for part in message.split("…")), source), message
