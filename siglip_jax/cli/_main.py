"""Entry point of `siglip-jax`: parses the arguments, runs a command, and reports a mistake in one line."""

import argparse
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from siglip_jax import _progress
from siglip_jax._version import __version__
from siglip_jax.cli._completion import SHELLS, completion
from siglip_jax.cli._output import printable, say, warnings_as_lines
from siglip_jax.cli._signals import INTERRUPTED, raised

COMMANDS = {
    "bench": "bench",
    "calibrate": "calibrate",
    "classify": "classify",
    "convert": "convert",
    "diagnose": "diagnose",
    "doctor": "doctor",
    "embed": "embed",
    "eval": "evaluate",
    "explain": "explain",
    "export": "export",
    "info": "info",
    "plan": "plan",
    "search": "search",
    "train": "train",
    "verify": "verify",
}
"""Module of each command; a command imports no other's, of which some need jax."""


EPILOG = """siglip-jax COMMAND --help describes the options of a command.

examples:
  siglip-jax classify cat.png --labels "a cat" "a dog"
  siglip-jax doctor
  siglip-jax --print-completion bash > ~/.local/share/bash-completion/completions/siglip-jax"""


class Parser(argparse.ArgumentParser):
    """Parser that raises its errors, so that `main` reports them like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the arguments, and refuses unknown ones here, where the options of the command are known."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [name for name in self._option_string_actions if name.startswith("--")]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1)
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + (f" (did you mean {near[0]}?)" if near else ""))
        return found, unknown


def build_parser(commands: Iterable[str] = COMMANDS, whole: bool = False) -> Parser:
    """Returns the parser, with a subparser for each command.

    Args:
      commands: names of the commands.
      whole: whether a command whose options depend on its first argument has a parser for each, which is for
        completion: `train`.
    """
    parser = Parser(
        prog="siglip-jax",
        description="Classify, search, train, evaluate, plan, convert and export with SigLIP models in JAX.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"siglip-jax {__version__}")
    parser.add_argument(
        "--print-completion", choices=SHELLS, help="print the script that completes commands and options in a shell"
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in commands:
        module = importlib.import_module(f"siglip_jax.cli.{COMMANDS[name]}")
        command = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            conflict_handler="resolve",  # `eval` has a help page for each task
        )
        declare = getattr(module, "add_all_arguments", module.add_arguments) if whole else module.add_arguments
        declare(command)
        command.set_defaults(run=module.run)
    return parser


def run(argv: Sequence[str] | None) -> int:
    """Runs the command line and returns its exit status, as `siglip_jax.cli.main` does."""
    words = sys.argv[1:] if argv is None else argv
    try:
        parser = build_parser(words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS)
    except (ImportError, RuntimeError) as error:  # of jax, flax or a package that does not fit to them
        say(
            f"siglip_jax must import, got {type(error).__name__}: {printable(error)}; siglip-jax doctor says what to do"
        )
        return 2
    try:
        arguments = parser.parse_args(argv)
        if arguments.print_completion:
            print(completion(build_parser(whole=True), arguments.print_completion))
            return 0
        if arguments.command is None:
            raise ValueError(f"the command must be one of {', '.join(COMMANDS)}, got none; see siglip-jax --help")
        _progress.allowed = False  # the commands have bars of their own
        with warnings_as_lines(), raised():
            status = arguments.run(arguments)
            sys.stdout.flush()
        return status
    except SystemExit as done:  # --help, --version and SIGTERM
        return int(done.code or 0)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The unwritten rest of the buffer would raise again when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        say(printable(error))
        return 2
    except (RuntimeError, AssertionError) as error:
        if not _lacks_device(error):
            raise
        wanted = os.environ.get("JAX_PLATFORMS", "")
        say(f"JAX_PLATFORMS must name a platform of this machine, got {wanted!r}; unset it, or install jax for it")
        return 2


def _lacks_device(error: BaseException) -> bool:
    """Returns whether an error is jax's answer to a platform without devices, for some of which it has no message."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1]
    return "Unable to initialize backend" in str(error) or raised_in.filename.endswith("xla_bridge.py")
