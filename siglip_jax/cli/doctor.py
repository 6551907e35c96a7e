"""Examines this environment: versions, devices, extras, caches and settings, two computations, and what is wrong.

Multiplies two matrices and runs the bundled model once; nothing is changed, and nothing is downloaded. Put its output
into the report of a problem: it holds no secrets. The exit status is 0 if the environment is healthy, and 1 if not.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from siglip_jax.cli._output import print_table, shown, size

HELP = "examine this environment: versions, devices, extras, caches, and what is wrong"
EPILOG = """examples:
  siglip-jax doctor
  siglip-jax doctor --json > report.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status: 1 if something is wrong."""
    from siglip_jax.environment import examine

    found = examine()
    facts = found.to_dict()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 0 if found.healthy else 1


def _print(facts: dict[str, Any]) -> None:
    for rows in (facts["versions"].items(), _devices(facts), _extras(facts), _caches(facts), facts["settings"].items()):
        if rows := list(rows):
            print_table(None, rows, 2)
            print()
    width = max(len(check["name"]) for check in facts["checks"])
    for check in facts["checks"]:
        line = f"{'ok' if check['right'] else 'WRONG':<5}  {check['name']:<{width}}  {check['found']}"
        print(shown(line, sys.stdout.encoding))
    for problem in facts["problems"]:
        print(f"\n{shown(problem, sys.stdout.encoding)}")
    print(f"\n{'healthy' if facts['healthy'] else 'not healthy'}")


def _devices(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "backend", facts["backend"] or "none"
    for device in facts["devices"]:
        memory = f", {size(device['memory'])} each" if device["memory"] else ""
        yield "devices", f"{device['count']} x {device['kind']}{memory}"


def _extras(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for extra, missing in facts["extras"].items():
        yield f"extra {extra}", f"pip install {shlex.join(missing)}" if missing else "installed"
    if not facts["extras"]:
        yield "extras", "unknown: siglip_jax is on the path and not installed"


def _caches(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for cache in facts["caches"]:
        filled = f"{cache['path']}, {cache['files']:,} files, {size(cache['bytes'])}"
        yield f"cache: {cache['name']}", filled if cache["path"] else "not in use"
