"""Options and help of the commands that read data sets."""

import argparse
import textwrap

from siglip_jax.data.sources import columns


def add_data_arguments(parser: argparse.ArgumentParser, data: str) -> None:
    """Declares the options that say how a data set is opened.

    Args:
      parser: parser of the command.
      data: name of the argument that the data set is given with.
    """
    parser.add_argument(
        "--kind",
        metavar="KIND",
        help=f"tar, parquet, arrow, table, texts or images: which to read if {data} is a folder of several kinds",
    )
    parser.add_argument(
        "--root", metavar="DIR", help="folder of a table's images, if paths lead out of the table's own"
    )


def column_names(*whats: str) -> str:
    """Returns the names of columns that are found without an option, as lines of a help text.

    Args:
      whats: "image", "text" and "label", those that the command reads.
    """
    names = {"image": columns.IMAGE, "text": columns.TEXT, "label": columns.LABEL}
    lines = [textwrap.fill(f"  {what}s: {', '.join(names[what])}", 100, subsequent_indent="    ") for what in whats]
    return "\n".join(["columns of tables that are found by themselves, in upper or lower case:", *lines])
