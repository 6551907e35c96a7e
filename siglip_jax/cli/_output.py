"""Output of the commands: lines on stderr, tables, bars, progress bars, and text that is safe on any terminal."""

import argparse
import contextlib
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from siglip_jax._files import MAX_PIXELS

Item = TypeVar("Item")

PATIENCE = 2.0  # seconds before a progress bar appears
EIGHTHS = " ▏▎▍▌▋▊▉"


def say(line: str) -> None:
    """Prints one line on stderr, prefixed with the name of the program."""
    print(f"siglip-jax: {shown(line, sys.stderr.encoding)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Prints each warning as one line on stderr, without the line of source code that Python adds.

    The package's own warnings are printed however Python was told to treat warnings.
    """

    def show(message: Warning | str, *rest: Any, **named: Any) -> None:
        say(" ".join(str(message).split()))

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"siglip_jax\b")
        warnings.showwarning = show
        yield


def printable(error: Exception) -> str:
    """Returns an error as one line; an `OSError` of the operating system starts with its file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def shown(text: str, encoding: str | None) -> str:
    """Escapes what the encoding lacks, and control characters, which a file name could send to the terminal."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    encoding = encoding or "utf-8"
    return safe.encode(encoding, "backslashreplace").decode(encoding)


def blocks(encoding: str | None) -> bool:
    """Returns whether the encoding has block characters."""
    try:
        EIGHTHS.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def bar(share: float, width: int, fine: bool = True) -> str:
    """Returns a bar of `share` times `width` characters, in eighths of a block if `fine`; a NaN share has no bar."""
    if not fine:
        return "#" * max(round(share * width), int(share >= 0.01)) if share == share else ""
    eighths = round(share * width * 8) if share == share else 0
    return "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def percent(share: float) -> str:
    """Returns a share as a percentage, with one decimal, or two significant digits below 0.1 %."""
    hundred = 100 * share
    return f"{hundred:.1f} %" if hundred >= 0.1 or hundred == 0 else f"{hundred:.2g} %"


def size(count: int) -> str:
    """Returns a number of bytes in MiB or GiB, with three significant digits."""
    unit, value = ("GiB", count / 2**30) if count >= 1000 * 2**20 else ("MiB", count / 2**20)
    if value < 0.01:
        return "< 0.01 MiB" if count else "-"
    digits = min(max(2 - math.floor(math.log10(value)), 0), 2)
    return f"{value:,.{digits}f} {unit}"


def print_table(
    headers: Sequence[str] | None, rows: Sequence[Sequence[str]], words: int, caption: str | None = None
) -> None:
    """Prints a table, in colour on a terminal; the first `words` columns are aligned left, the others right.

    Without headers the first column holds names, and a narrow terminal wraps the other columns.
    """
    encoding = sys.stdout.encoding
    rows = [[shown(cell, encoding) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        styles: dict[str, Any] = {"caption": caption, "caption_justify": "left", "header_style": "cyan"}
        table = Table(box=None, pad_edge=False, show_header=headers is not None, **styles)
        for i, header in enumerate(headers or rows[0]):
            name, folded = headers is None and i == 0, headers is None and i > 0
            side: Any = "left" if i < words else "right"
            table.add_column(header, justify=side, style="cyan" if name else None, no_wrap=not folded, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console = Console(markup=False, highlight=False)
        if headers is not None:  # long lines are better than truncated names
            widest = console.measure(table, options=console.options.update(width=1000)).maximum
            console.width = max(console.width, widest)
        console.print(table)
        return
    lines = [headers, *rows] if headers else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{x:<{w}}" if i < words else f"{x:>{w}}" for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        print("  ".join(cells).rstrip())
    if caption:
        print(caption)


def report_unreadable(index: int, error: Exception) -> None:
    """Prints the error: an `OnUnreadable` callback."""
    say(printable(error))


def whole_number(text: str) -> int:
    """Parses an option that is a count."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"the value must be a whole number of at least 1, got {text!r}")
    return int(text)


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Declares the limit of pixels, which all commands that read images share."""
    parser.add_argument(
        "--max-pixels",
        type=whole_number,
        default=MAX_PIXELS,
        metavar="N",
        help=f"leave out images of more than N pixels as unreadable (default: {MAX_PIXELS:,})",
    )


def with_progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yields the items and shows their progress, as `progress` does."""
    with progress(what) as on_progress:
        on_progress(0, len(items))
        for done, item in enumerate(items, 1):
            yield item
            on_progress(done, len(items))


class Bar:
    """Shows a bar on stderr once the job takes longer than `PATIENCE`: an `OnProgress` callback."""

    def __init__(self, what: str, in_bytes: bool, rate: bool) -> None:
        self.what, self.note = what, ""
        self._in_bytes, self._rate = in_bytes, rate
        self._start = time.monotonic()
        self._shown: Any = None

    def __call__(self, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if self._shown is None:
            self._shown = _rich_bar(self._in_bytes, self._rate)
            self._task = self._shown.add_task(self.what, total=total, completed=done)
        self._shown.update(self._task, completed=done, total=total, description=f"{self.what} {self.note}".rstrip())
        if not self._shown.live.is_started and time.monotonic() - self._start > PATIENCE:
            self._shown.start()

    def stop(self) -> None:
        """Removes the bar."""
        if self._shown is not None:
            self._shown.stop()


@contextlib.contextmanager
def progress(what: str, *, in_bytes: bool = False, rate: bool = False) -> Iterator[Bar]:
    """Yields an `OnProgress` callback that shows a bar on a terminal, and nothing elsewhere.

    Args:
      what: name of the items counted, in the plural.
      in_bytes: whether the amounts are bytes.
      rate: whether the bar shows the items per second.
    """
    bar = Bar(what, in_bytes, rate)
    try:
        yield bar
    finally:
        bar.stop()


def _rich_bar(in_bytes: bool, rate: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.1f}/s")

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    rates = (Rate(),) if rate else ()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, *rates, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
