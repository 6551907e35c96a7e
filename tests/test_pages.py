"""The pages of docs/: their Python runs, their commands parse, their links lead somewhere, their tables are true."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from siglip_jax.cli import train
from siglip_jax.cli._main import build_parser
from siglip_jax.configs import VARIANTS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Pages for readers; the others have examples that other tests run, or none.
GUIDES = sorted(
    file for folder in ("start", "guides", "coming_from", "how_it_works") for file in (DOCS / folder).glob("*.md")
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *GUIDES]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"# needs (the Hub|a )")  # first line of a block that cannot run here


def pages(files: list[Path]) -> list:
    return [pytest.param(file, id=str(file.relative_to(ROOT))) for file in files]


def blocks(file: Path, language: str) -> Iterator[tuple[int, str]]:
    """Yields (number of the first line, text) of each fenced block of a language."""
    text = file.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start(2)) + 1, match[2]


def commands(file: Path) -> list[str]:
    """Returns the lines of shell blocks that call `siglip-jax`, without what follows a pipe."""
    lines = (line for _, block in blocks(file, "sh") for line in block.replace("\\\n", " ").splitlines())
    return [re.split(r" [|>&]", line)[0] for line in lines if line.startswith("siglip-jax ")]


@pytest.mark.slow
@pytest.mark.parametrize("file", pages([file for file in GUIDES if any(blocks(file, "python"))]))
def test_python_of_a_page_runs_from_top_to_bottom(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for line, block in blocks(file, "python"):
        code = compile("\n" * (line - 1) + block, str(file), "exec")
        if not NEEDS.match(block):
            exec(code, namespace)


@pytest.mark.parametrize("file", pages([file for file in PAGES if commands(file)]))
def test_commands_of_a_page_parse(file):
    for command in commands(file):
        words = shlex.split(command, comments=True)[1:]
        try:
            arguments = build_parser().parse_args(words)
            if arguments.command == "train" and "RECIPE" not in words:
                train.parse(arguments.recipe, arguments.rest)
        except SystemExit as end:
            assert not end.code, command


def anchors(file: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", pages(PAGES))
def test_links_of_a_page_lead_somewhere(file):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", FENCE.sub("", file.read_text(encoding="utf-8"))):
        if "://" not in target:
            found = file.parent / target if target else file
            assert found.exists(), target
            assert not anchor or found.suffix != ".md" or anchor in anchors(found), f"{target}#{anchor}"


def test_the_table_of_checkpoints_is_that_of_the_registry():
    text = (DOCS / "start" / "which_checkpoint.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in row.split("|")] for row in re.findall(r"^\| `(siglip2?-.*) \|$", text, re.MULTILINE)
    ]
    expected = [
        [
            f"{v.short_name}`",
            f"{v.parameters / 1e6:,.0f}",
            str(v.image_size or "any"),
            str(v.text_length),
            *map(str, (v.imagenet, v.coco_text_to_image, v.coco_image_to_text)),
        ]
        for v in VARIANTS
    ]
    assert rows == expected


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
    table = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").split("## Error messages")[1]
    listed = [
        text for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for text in re.findall(r"`(.*?)`", cell)
    ]
    source = strings()
    assert len(listed) > 60
    for message in listed:
        assert re.search(r"[^\0]*".join(re.escape(part.strip()) for part in message.split("…")), source), message
