"""Help pages: each has examples that parse, the same option means the same everywhere, and a shell completes all."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from siglip_jax.cli import _main as main
from siglip_jax.cli import train
from siglip_jax.cli._completion import FILES, SHELLS, completion
from siglip_jax.training.recipes import RECIPES


def commands():
    """Returns the parser of each command."""
    parser = main.build_parser()
    (found,) = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found


def examples(text):
    """Returns the words of each `siglip-jax` command in the examples of a help page."""
    block = re.search(r"^examples:\n((?:  .+\n?)+)", text or "", re.MULTILINE)
    lines = block[1].splitlines() if block else []
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("  siglip-jax ")]


def pages():
    yield "siglip-jax", main.build_parser().epilog
    yield from ((name, parser.epilog) for name, parser in commands().items())
    yield from ((f"train {name}", train._examples(name)) for name in RECIPES)


@pytest.mark.parametrize(("name", "text"), [pytest.param(*page, id=page[0]) for page in pages()])
def test_every_page_has_examples_that_parse(name, text):
    found = examples(text)
    assert found, f"the help of {name} has no examples"
    for words in found:
        words = words[: words.index(">")] if ">" in words else words
        arguments = main.build_parser().parse_args(words)
        assert arguments.print_completion or arguments.command in main.COMMANDS
        if arguments.command == "train":
            assert train.parse(arguments.recipe, arguments.rest).model
    if name != "siglip-jax":
        assert any(" ".join(words).startswith(name) for words in found)


def test_the_help_of_a_recipe_shows_its_examples(run):
    ran = run("train", "lora", "--help")
    lines = [" ".join(line.strip(" │").split()) for line in ran.out.splitlines()]
    assert "siglip-jax train lora --data shards/ --model google/siglip-base-patch16-224 --out run --dry-run" in lines


DIFFERENT = {
    "--out",  # a directory, but for `calibrate` a file
    "--images",
    "--image",
}


def test_the_same_option_takes_the_same_everywhere():
    """One metavar, one number of values, one type: an option that two commands have is the same option."""
    known = {}
    for command, parser in commands().items():
        for action in parser._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help") and option not in DIFFERENT:
                    parse = None if action.type is Path else action.type
                    kind = (action.metavar, action.nargs, type(action).__name__, parse, bool(action.choices))
                    known.setdefault(option, {})[command] = kind
    unlike = {option: kinds for option, kinds in known.items() if len(set(map(repr, kinds.values()))) > 1}
    assert not unlike


def test_one_thing_has_one_option():
    """An option that means what a field of a recipe does has the field's name, and no two names mean a model."""
    options = {option for parser in commands().values() for option in parser._option_string_actions}
    assert "--batch-size" in options and "--save-plot" in options
    assert not {option for option in options if "_" in option}
    assert not {"--contact-sheet", "--output", "--precision-dtype", "--checkpoint"} & options
    for parser in commands().values():
        models = [action for action in parser._actions if action.dest == "model"]
        assert all(action.metavar == "NAME_OR_PATH" for action in models)
        known = parser._option_string_actions  # `--batch`, as the argument of `siglip_jax.plan`, is --batch-size
        assert known.get("--batch") in (None, known.get("--batch-size"))


def test_what_is_completed_with_files_is_named_so():
    metavars = {action.metavar for parser in commands().values() for action in parser._actions}
    assert metavars >= FILES


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script that bash reads."""
    file = tmp_path_factory.mktemp("completion") / "siglip-jax"
    file.write_text(completion(main.build_parser(whole=True), "bash"))
    return file


def test_every_shell_has_a_script():
    parser = main.build_parser(whole=True)
    scripts = {shell: completion(parser, shell) for shell in SHELLS}
    assert len(set(scripts.values())) == len(SHELLS)
    for text in scripts.values():
        assert all(word in text for word in ("doctor", "high-resolution", "max-pixels", "open_clip"))


COMPLETIONS = [
    (["doc"], ["doctor"]),
    (["eval", "kn"], ["knn"]),
    (["classify", "--max"], ["--max-pixels"]),
    (["bench", "--dtype", "b"], ["bfloat16"]),
    (["convert", "--to", "o"], ["open_clip", "orbax"]),
    (["train", "li"], ["linear-probe", "lit"]),
    (["train", "lora", "--lora.r"], ["--lora.rank"]),
    (["train", "lora", "--dtype", "f"], ["float32"]),
    (["verify", "no"], ["notes.txt"]),
    (["calibrate", "--out", "no"], ["notes.txt"]),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="completion for bash is tried in bash")
@pytest.mark.parametrize(("words", "expected"), COMPLETIONS, ids=[" ".join(words) for words, _ in COMPLETIONS])
def test_bash_completes(script, tmp_path, words, expected):
    (tmp_path / "notes.txt").touch()
    line = ["siglip-jax", *words]
    code = f"""
source {shlex.quote(str(script))}
COMP_WORDS=({shlex.join(line)}); COMP_CWORD={len(words)}
COMP_LINE={shlex.quote(" ".join(line))}; COMP_POINT=${{#COMP_LINE}}
$(complete -p siglip-jax | sed -E 's/.*-F ([^ ]+).*/\\1/') siglip-jax {shlex.quote(words[-1])} {shlex.quote(line[-2])}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert sorted(word.strip() for word in done.stdout.split()) == expected, done.stderr


def test_without_shtab_one_line_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    ran = run("--print-completion", "bash")
    assert ran.status == 2 and ran.err.count("\n") == 1
    assert re.search(r"shell completion needs shtab, which is not installed: pip install '?shtab", ran.err)
