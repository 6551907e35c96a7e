"""Trains, or goes on training: pairs of pictures and texts, or pictures with labels.

RECIPE is one of the names below; every field of it is an option. The same command goes on with an interrupted run.
OUT receives the model (a directory that `siglip_jax.load` and transformers read), checkpoints and log.jsonl.
"""

import argparse
import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HELP = "train a model, from a checkpoint or anew"
EPILOG = """recipes: scratch-b16, lit, finetune, high-resolution, lora, classification, linear-probe
all options of one: siglip-jax train finetune --help

examples:
  siglip-jax train finetune --data pairs.jsonl --model google/siglip-base-patch16-224 --out run --dry-run
  siglip-jax train finetune --data shards/ --model base/ --out run --batch-size 512 --duration "3 epochs"
  siglip-jax train lora --data pairs.parquet=2 more.csv=1 --model so400m/ --out run --lora.rank 8
  siglip-jax train classification --data flowers/ --model base/ --out run --evaluate flowers-test/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options: all after the recipe are read by tyro, from its fields."""
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="name of a recipe")
    parser.add_argument("rest", metavar="OPTIONS", nargs=argparse.REMAINDER, help="see siglip-jax train RECIPE --help")


def run(arguments: argparse.Namespace) -> int:
    """Does the job; returns the exit status: 0 at the end of the run, 143 where a signal stopped it before."""
    try:
        from siglip_jax.cli.training import do
        from siglip_jax.training.recipes import ABOUT, RECIPES
    except ImportError as error:
        raise ValueError(
            f"training needs {error.name}, which is not installed: pip install 'siglip_jax[train]'"
        ) from None
    if arguments.recipe not in RECIPES:
        raise ValueError(f"expected a recipe, one of {', '.join(RECIPES)}, found {arguments.recipe!r}")
    options = parse(RECIPES[arguments.recipe], ABOUT[arguments.recipe], arguments.recipe, arguments.rest)
    return do(options)


def parse(recipe: Any, about: str, name: str, words: Sequence[str]) -> Any:
    """Returns the options of a run, as `siglip_jax.cli.training.Options`.

    Raises:
      ValueError: with what tyro says of a mistake, in one line.
    """
    import tyro

    from siglip_jax.cli.training import Options

    said = io.StringIO()
    default = dataclasses.replace(Options(data=(), model="", out=Path("."), recipe=recipe))
    for field in ("data", "model", "out"):
        object.__setattr__(default, field, tyro.MISSING)
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                Options, args=list(words), default=default, prog=f"siglip-jax train {name}", description=about
            )
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise ValueError(one_line(said.getvalue())) from None


def one_line(boxed: str) -> str:
    """Returns the words of tyro's box of complaints."""
    lines = [line.strip(" │╭╮╰╯─\n") for line in boxed.splitlines()]
    return re.sub(r"\s+", " ", " ".join(line for line in lines[1:] if line))
