"""README, the other pages of the root and the site: links, commands, examples, and where their numbers come from."""

import contextlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from siglip_jax.cli import main, train
from siglip_jax.cli._main import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BUILT = {ROOT / "docs" / "benchmarks.md"}  # written by the build
PAGES = [page for page in PAGES if page not in BUILT and "_build" not in page.parts and "reference" not in page.parts]
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))

FENCE = re.compile(r"^( *)(```+|~~~+)([^\n]*)\n(.*?)^\1\2$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(<?([^)#\s>]*)(?:#([^)\s>]*))?>?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def prose(text: str) -> str:
    """Returns a page without its blocks of code, every line where it was."""
    return FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page: its headings, as GitHub and the site name them, and its targets."""
    text = prose(path.read_text(encoding="utf-8"))
    words = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in HEADING.findall(text)]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in words} | {
        *re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)
    }


@page
def test_links_lead_somewhere(page):
    wrong = []
    for target, anchor in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if ":" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        if path not in BUILT and not (path.exists() and path.is_relative_to(ROOT)):
            wrong.append(target)
        elif anchor and path.suffix == ".md" and anchor not in anchors(path):
            wrong.append(f"{target}#{anchor}")
    assert not wrong, f"{page.name} links to {', '.join(wrong)}"


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """Yields (number of the first line, text) of each block of code in one of some languages."""
    text = page.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        if block[3].strip() in languages:
            yield text.count("\n", 0, block.start()) + 2, block[4]


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields (where, words) of each command in a page's shell blocks, of those joined by && and pipes too."""
    for line, text in blocks(page, "sh", "bash"):
        for number, command in enumerate(text.replace("\\\n", " ").splitlines(), line):
            words: list[str] = []
            for word in [*shlex.split(command, comments=True), "&&"]:
                if word not in ("&&", "|", ";", "||"):
                    words.append(word)
                elif words:
                    yield f"{page.relative_to(ROOT)}:{number}", words
                    words = []


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def check_siglip_jax(words: list[str]) -> None:
    """Parses a command as the command line does."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # --help
        arguments = build_parser().parse_args(words)
        if arguments.command == "train" and arguments.recipe:
            train.parse(arguments.recipe, arguments.rest)


def check_pip(words: list[str]) -> None:
    """Checks that the extras exist."""
    for word in words:
        if found := re.search(r"\[([\w,]+)\]", word) if word.startswith((".", "siglip_jax")) else None:
            assert not set(found[1].split(",")) - EXTRAS.keys()


def check_python(words: list[str]) -> None:
    """Checks that a script of the repository, or a module that is run, exists."""
    if words[0] == "-m" and words[1] == "pip":
        check_pip(words[2:])
    elif words[0].partition("/")[0] in ("benchmarks", "convert", "research", "notebooks"):
        assert (ROOT / words[0]).is_file()


CHECKS = {"siglip-jax": check_siglip_jax, "pip": check_pip, "python": check_python, "python3": check_python}
# Commands of others, which nothing here can check.
FOREIGN = {"cd", "export", "git", "gcloud", "hf", "jupyter", "make", "source", "srun"}


@page
def test_commands_parse(page):
    for where, words in commands(page):
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        words = words[: words.index(">")] if ">" in words else words
        name = words[0].rpartition("/")[2]
        assert name in CHECKS or name in FOREIGN, f"{where}: {name} must be a command that is known here"
        if name in CHECKS:
            try:
                CHECKS[name](words[1:])
            except (ValueError, AssertionError) as error:
                raise AssertionError(f"{where}: {shlex.join(words)}: {error}") from error


def needs_nothing(words: list[str]) -> bool:
    """Returns whether a command reads at most files of the repository and the bundled model, and writes none."""
    paths = [word for word in words[2:] if not word.startswith("-") and ("/" in word or Path(word).suffix)]
    reads = words[0].endswith("siglip-jax") and words[1:2] in (["classify"], ["info"])
    return reads and "--save-plot" not in words and all((ROOT / path).exists() for path in paths)


RUNNABLE = sorted({shlex.join(words[1:]) for page in PAGES for _, words in commands(page) if needs_nothing(words)})


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNNABLE)
def test_commands_run(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)) == 0, capsys.readouterr().err


# A measured number: one with a unit of time, memory or rate, a share, or a ratio.
NUMBER = r"(?<![\w./-])(?<![<>=] )\d[\d,]*(?:\.\d+)?"
UNIT = r"(?:%|(?:[KMGT]i?B|ms|s|minutes|hours|days|times|million cycles)\b|/s\b)"
MEASURED = re.compile(rf"({NUMBER}) ?{UNIT}")
RESULTS = re.compile(r"benchmarks/results/([\w-]+\.txt)")
NO_RESULTS = re.compile(r"<!-- no results file: \S.* -->")


def paragraphs(text: str) -> Iterator[str]:
    """Yields each paragraph and list item of a page; a table belongs to the paragraph above it."""
    yield from re.split(r"\n\n(?!\|)|\n(?=[-*] )", prose(text))


def number(text: str) -> float:
    return float(text.replace(",", ""))


def is_in(text: str, results: str) -> bool:
    """Returns whether a number is one of the results, rounded to its decimals."""
    half = 0.5 * 10.0 ** -len(text.partition(".")[2]) + 1e-9
    return any(abs(number(found) - number(text)) <= half for found in re.findall(r"\d[\d,]*(?:\.\d+)?", results))


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in ("CHANGELOG.md", "CONTRIBUTING.md")], ids=str)
def test_measured_numbers_come_from_results(page):
    """A paragraph with one names its file of results, or says in a comment that there is none."""
    for paragraph in paragraphs(page.read_text(encoding="utf-8")):
        measured = MEASURED.findall(paragraph)
        files = RESULTS.findall(paragraph)
        start = " ".join(paragraph.split())[:80]
        if files:
            results = "\n".join((ROOT / "benchmarks" / "results" / f).read_text(encoding="utf-8") for f in files)
            text = re.sub(r"\]\([^)]*\)|`[^`]*`|<!--.*?-->", "", paragraph)
            decimals = re.findall(rf"{NUMBER}(?=[^\w.]|\.\s|$)", text)
            decimals = [found for found in decimals if "." in found]
            missing = [found for found in {*measured, *decimals} if not is_in(found, results)]
            assert not missing, f"{start}: {', '.join(missing)} must be in {', '.join(files)}"
        elif measured:
            assert NO_RESULTS.search(paragraph), (
                f"{start}: {', '.join(measured)} must name a file of benchmarks/results"
            )
