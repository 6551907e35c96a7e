"""Trains a model on image-text pairs or labelled images.

RECIPE is one of the names below; every field of it is an option. The same command resumes an interrupted run. OUT
receives the model (a directory that siglip_jax.load and transformers read), the checkpoints and log.jsonl.
"""

import argparse
import contextlib
import dataclasses
import difflib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from siglip_jax._files import output_path
from siglip_jax._optional import import_optional
from siglip_jax.cli._data import column_names, opened
from siglip_jax.cli._mesh import axes
from siglip_jax.cli._output import progress, say
from siglip_jax.cli._signals import STOPPED
from siglip_jax.cli._training_progress import Report
from siglip_jax.training.recipe import MeshShape
from siglip_jax.training.recipes import ABOUT, RECIPES

HELP = "train a model, from a checkpoint or from random weights"
EPILOG = f"""recipes: {", ".join(RECIPES)}
options of a recipe: siglip-jax train RECIPE --help

examples:
  siglip-jax train finetune --data pairs.jsonl --model google/siglip-base-patch16-224 --out run --dry-run
  siglip-jax train finetune --data shards/ --model base/ --out run --batch-size 512 --duration "3 epochs"
  siglip-jax train finetune --data shards/ --model base/ --out run --mesh fsdp=4 --dry-run --topology v5e:4x4
  siglip-jax train lora --data pairs.parquet=2 more.csv=1 --model so400m/ --out run --lora.rank 8
  siglip-jax train classification --data flowers/ --model base/ --out run --evaluate flowers-test/

{column_names("image", "text", "label")}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the recipe; tyro parses everything after it."""
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="one of the recipes below")
    parser.add_argument("rest", metavar="OPTIONS", nargs=argparse.REMAINDER, help="see siglip-jax train RECIPE --help")


def add_all_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the recipes with their options, without a meaning, for completion."""
    try:
        from siglip_jax.cli._train_options import Options
    except ModuleNotFoundError:  # without the extra `train` no recipe can be run
        add_arguments(parser)
        return
    recipes = parser.add_subparsers(metavar="RECIPE")
    for name in RECIPES:
        about = ABOUT[name].splitlines()[0].replace("%", "%%")
        recipe = recipes.add_parser(name, help=about)  # shtab leaves out what has no help
        for option, kind in _options(Options):
            choices = [
                value for part in (kind, *get_args(kind)) if get_origin(part) is Literal for value in get_args(part)
            ]
            if kind is bool:
                recipe.add_argument(f"--{option}", action=argparse.BooleanOptionalAction)
            else:
                metavar = "PATH" if option in ("data", "evaluate", "model", "out", "root") else None
                recipe.add_argument(f"--{option}", choices=choices or None, metavar=metavar)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status: 143 if a signal stopped the run before its end."""
    if arguments.recipe not in RECIPES:
        found = "none" if arguments.recipe is None else repr(arguments.recipe)
        raise ValueError(f"the recipe must be one of {', '.join(RECIPES)}, got {found}; see siglip-jax train --help")
    import_optional("tyro", "siglip-jax train", "train")
    import_optional("optax", "training", "train")
    options = parse(arguments.recipe, arguments.rest)
    from siglip_jax.cli._training_plan import print_plan
    from siglip_jax.parallel import join_processes
    from siglip_jax.training.allocator import keep_freed_memory
    from siglip_jax.training.plan import dry_run
    from siglip_jax.training.run import train

    join_processes()
    import jax

    keys = {name: getattr(options, name) for name in ("image_key", "text_key", "label_key", "kind", "root")}
    out = output_path(options.out, "--out")
    named = [_path_and_weight(word) for word in options.data]
    data = [(opened(path, **keys), weight) for path, weight in named]
    if options.dry_run:
        recipe = options.recipe if options.topology is None else dataclasses.replace(options.recipe, mesh=MeshShape())
        facts = dry_run(data, options.model, recipe)
        for reason in facts["unreadable"]:
            say(reason)
        if options.topology is None:
            print_plan(facts, options.json)
        else:
            _print_on_topology(facts, options)
        return 0
    if options.topology is not None:
        raise ValueError(f"--topology must be used with --dry-run, got {options.topology!r} alone; add --dry-run")
    keep_freed_memory()
    evaluate = None if options.evaluate is None else opened(options.evaluate, **keys)
    names = ("best", "save_every", "keep", "log_every", "tensorboard", "workers")
    with progress("steps") as steps, progress("images embedded") as images:
        report = Report(steps, images, quiet=jax.process_index() > 0)
        done = train(
            data,
            options.model,
            out,
            options.recipe,
            on_metrics=report.on_metrics,
            on_progress=report.on_progress,
            on_precompute=report.on_precompute,
            evaluate=evaluate,
            **{name: getattr(options, name) for name in names},
        )
    if done.stopped:
        say(f"stopped after step {done.steps} of {done.total_steps}; the same command resumes the run")
        return STOPPED
    if jax.process_index() == 0:
        result = {"steps": done.steps, "model": str(done.directory / "model"), "log": str(done.directory / "log.jsonl")}
        print(json.dumps(result) if options.json else f"{done.steps} steps done; the model is in {result['model']}")
    return 0


def _print_on_topology(facts: dict[str, Any], options: Any) -> None:
    """Prints the plan of a run, with a step on another machine in place of what is known of this one."""
    from siglip_jax.cli._training_plan import print_plan
    from siglip_jax.cli.plan import print_found
    from siglip_jax.models.cost import placements
    from siglip_jax.planning import plan

    known = {"examples": facts["examples"], "classes": len(facts["classes"]) or None}
    found = plan(options.model, options.topology, recipe=options.recipe, **known)
    facts |= {"mesh": found.mesh, "memory_per_device": found.needed, "device_memory": found.memory, "smaller": None}
    shapes = {row["parameter"]: tuple(row["shape"]) for row in facts["parameters"]}
    placed = placements({path: shape for path, shape in shapes.items() if not path.startswith("lora/")}, found.mesh)
    specs = {row.path: row.spec for row in placed}
    facts["parameters"] = [row | {"sharding": specs.get(row["parameter"], "whole")} for row in facts["parameters"]]
    print_plan(facts | ({"topology": found.to_dict()} if options.json else {}), options.json)
    if not options.json:
        print()
        print_found(found, False)


def parse(name: str, words: Sequence[str]) -> Any:
    """Returns the options of a run, a `siglip_jax.cli._train_options.Options`.

    Args:
      name: name of the recipe.
      words: arguments after the recipe on the command line.

    Raises:
      ValueError: with the message of tyro in one line, if an option is wrong.
    """
    import tyro

    from siglip_jax.cli._train_options import Options

    words = _axis_by_axis(words)
    _refuse_unknown_options(name, words, Options)
    said = io.StringIO()
    about = f"{ABOUT[name].rstrip()}\n\n{_examples(name)}\n\n{column_names('image', 'text', 'label')}"
    default = dataclasses.replace(Options(data=(), model="", out=Path("."), recipe=RECIPES[name]))
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


def _examples(name: str) -> str:
    """Returns commands that train with a recipe."""
    data = "shards/" if RECIPES[name].task == "pairs" else "flowers/"
    model = f"google/{'siglip2-base-patch16-256' if 'SigLIP 2' in ABOUT[name] else 'siglip-base-patch16-224'}"
    command = f"siglip-jax train {name} --data {data} --model {model} --out run"
    if RECIPES[name].curation.teacher is not None:
        command += " --curation.teacher google/siglip2-so400m-patch14-384"
    return f"examples:\n  {command} --dry-run\n  {command} --batch-size 512"


def _axis_by_axis(words: Sequence[str]) -> list[str]:
    """Returns arguments with `--mesh data=4,fsdp=2`, as `info` and `plan` take it too, as one option for each axis."""
    left, found = iter(words), list[str]()
    for word in left:
        option, _, sizes = word.partition("=")
        if option != "--mesh":
            found.append(word)
            continue
        try:
            chosen = axes(sizes or next(left, ""))
        except argparse.ArgumentTypeError as error:
            raise ValueError(str(error)) from None
        found += [part for axis, size in chosen.items() for part in (f"--mesh.{axis}", str(size))]
    return found


_ALIASES = {
    "lr": "optimizer.rate",
    "learning-rate": "optimizer.rate",
    "epochs": "duration",
    "steps": "duration",
    "max-steps": "duration",
    "num-epochs": "duration",
    "wd": "optimizer.weight-decay",
    "bs": "batch-size",
    "rank": "lora.rank",
    "fp16": "dtype",
    "bf16": "dtype",
    "gradient-accumulation-steps": "micro-batches",
}


def _refuse_unknown_options(recipe: str, words: Sequence[str], options: Any) -> None:
    """Raises a `ValueError` with the option that was probably meant, for the first unknown one."""
    known = dict(_options(options))
    for word in words:
        option = word.removeprefix("--").partition("=")[0].replace("_", "-")
        if not word.startswith("--") or option in (*known, "help") or known.get(option.removeprefix("no-")) is bool:
            continue
        last = {path.rpartition(".")[2]: path for path in reversed(known)}
        near = difflib.get_close_matches(option, [*known, *last, *_ALIASES], n=1)
        meant = next((names[near[0]] for names in (_ALIASES, last) if near and near[0] in names), "".join(near))
        hint = f"did you mean --{meant}? " if near else ""
        raise ValueError(f"there is no option --{option}; {hint}see siglip-jax train {recipe} --help")


def _options(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (name, type) of each option; the fields of the recipe have no prefix."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            yield from _options(hint, "" if field.name == "recipe" else f"{name}.")
        else:
            yield name, hint


def one_line(boxed: str) -> str:
    """Returns the text inside the box that tyro draws around an error."""
    lines = [line.strip(" │╭╮╰╯─\n") for line in boxed.splitlines()]
    return re.sub(r"\s+", " ", " ".join(line for line in lines[1:] if line))


def _path_and_weight(word: str) -> tuple[str, float | None]:
    """Returns the parts of "path=weight"; the weight is None if there is none."""
    path, equals, weight = word.rpartition("=")
    if not equals or Path(word).exists():
        return word, None
    try:
        return path, float(weight)
    except ValueError:
        return word, None
