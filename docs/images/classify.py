"""Writes classify.svg beside this file: what the first command of README prints, on a terminal of 88 columns.

python docs/images/classify.py
"""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

from rich.console import Console
from rich.text import Text

from siglip_jax.cli import main

ROOT = Path(__file__).parents[2]
SHOWN = 7  # images; the others are counted
COLUMNS = 88


def command() -> str:
    """Returns the command, as README has it."""
    found = re.search(r"\.venv/bin/(siglip-jax classify .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert found is not None, "README has lost its first command"
    return found[1]


def printed() -> list[str]:
    """Returns the lines that the command prints."""
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(shlex.split(command())[1:]) == 0
    return out.getvalue().splitlines()


def styled(line: str) -> Text:
    """Returns a line as a terminal shows it: names bold, bars in colour."""
    text = Text(line, style="" if line.startswith("  ") else "bold")
    text.highlight_regex(r"[▏▎▍▌▋▊▉█]+", "cyan")
    text.highlight_regex(r"[\d.]+ %$", "bold")
    return text


def drawn() -> str:
    """Returns the image."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    lines = printed()
    console.print(Text.assemble(("$ ", "green"), command()), soft_wrap=False)
    for line in lines[: 3 * SHOWN]:
        console.print(styled(line))
    console.print(f"... and {(len(lines) + 1) // 3 - SHOWN} more", style="dim")
    svg = console.export_svg(title="siglip-jax", unique_id="classify")
    # A page must not fetch fonts from elsewhere; each line has its length, whatever the font.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    os.environ["COLUMNS"] = str(COLUMNS)
    Path(__file__).with_suffix(".svg").write_text(drawn(), encoding="utf-8")
