"""Options and help of the commands that read data sets."""

import argparse
import os
import textwrap
from typing import Any

from siglip_jax._files import read_lines
from siglip_jax.cli._output import say
from siglip_jax.data import columns


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


def add_key_arguments(parser: argparse.ArgumentParser, *whats: str) -> None:
    """Declares the options that name the columns of a data set.

    Args:
      parser: parser of the command.
      whats: "image", "text" and "label", those that the command reads.
    """
    for what in whats:
        parser.add_argument(f"--{what}-key", metavar="NAME", help=f"column, or ending in a tar file, of the {what}s")


def add_wording_arguments(parser: argparse._ActionsContainer) -> None:
    """Declares the options that say how the names of classes are written as prompts.

    Args:
      parser: parser of the command, or a group of it.
    """
    parser.add_argument(
        "--templates", metavar="NAME_OR_FILE", help="names, photo, clip, or a file with one template per line"
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help='file with the name of each class, one per line, in class order; or lines such as "n01440764 tench"',
    )
    parser.add_argument("--keep-punctuation", action="store_true", help="keep class names and templates as written")
    parser.add_argument(
        "--first-name-only",
        action=argparse.BooleanOptionalAction,
        help='use only the first name, "tench" of "tench, Tinca tinca" (default), or all names',
    )


def wording_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what the options of `add_wording_arguments` say, as arguments of an evaluation.

    Args:
      arguments: parsed arguments.

    Raises:
      OSError: if a file does not exist.
      ValueError: if it is not text.
    """
    from siglip_jax.evaluation.prompts import find_templates

    return {
        "templates": find_templates(arguments.templates or "names"),
        "classes": None if arguments.classes is None else read_lines(arguments.classes, "class names"),
        "canonicalize": not arguments.keep_punctuation,
        "first_name_only": arguments.first_name_only is not False,
    }


def column_names(*whats: str) -> str:
    """Returns the names of columns that are found without an option, as lines of a help text.

    Args:
      whats: "image", "text" and "label", those that the command reads.
    """
    names = {"image": columns.IMAGE, "text": columns.TEXT, "label": columns.LABEL}
    lines = [textwrap.fill(f"  {what}s: {', '.join(names[what])}", 100, subsequent_indent="    ") for what in whats]
    return "\n".join(["columns of tables that are found by themselves, in upper or lower case:", *lines])


def opened(path: str | os.PathLike[str], **keys: Any) -> Any:
    """Opens a data set, and prints how many files of its folder are left out and which.

    Args:
      path: path of the data set.
      **keys: arguments of `siglip_jax.data.open_source`.
    """
    from siglip_jax.data.open import open_source

    source = open_source(path, **keys)
    say_left_out(path, source)
    return source


def say_left_out(path: str | os.PathLike[str], source: Any) -> None:
    """Prints how many files are left out of a folder and which, if any are.

    Args:
      path: path of the folder.
      source: opened source, or items of a collection; only those of a folder know it.
    """
    if left_out := getattr(source, "left_out", None):
        say(f"{os.fspath(path)}: {left_out}")
