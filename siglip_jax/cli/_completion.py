"""Completion of commands, recipes, options, choices and files in a shell."""

import argparse
from collections.abc import Iterator
from typing import Any

from siglip_jax._optional import import_optional

SHELLS = ("bash", "zsh", "fish", "tcsh")
FILES = {"DATA", "DIR", "DST", "FILE", "IMAGE", "NAME_OR_FILE", "NAME_OR_PATH", "PATH", "SRC"}  # metavars


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Returns the script that completes a command line in a shell.

    Args:
      parser: parser of the whole command line; those of its arguments that name files are marked in it.
      shell: one of `SHELLS`.

    Raises:
      NotInstalledError: if shtab is not installed.
    """
    shtab: Any = import_optional("shtab", "shell completion", "completion")
    for action in _actions(parser):
        if action.metavar in FILES and action.choices is None:
            action.complete = shtab.FILE
    return shtab.complete(parser, shell=shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yields the arguments of a parser and of those of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
