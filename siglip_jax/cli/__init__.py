"""The command line `siglip-jax`: one module per command, which imports slow modules only when it runs."""

from collections.abc import Sequence

from siglip_jax._tpu import describe_no_tpu
from siglip_jax.cli import _signals

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    0: the job is done. 2: a mistake, reported in one line on stderr. 130: interrupted by Ctrl-C. 143: ended by SIGTERM.
    141: the reader of the output closed the pipe, as `head` does. `verify`, `convert` and `doctor` also return 1.

    Args:
      argv: arguments after the name of the program; None: those of the process.
    """
    if argv is None:
        _signals.end_at_once()  # before jax is imported, which takes a second
        describe_no_tpu()
    from siglip_jax.cli._main import run

    return run(argv)
