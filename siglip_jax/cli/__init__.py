"""The command line: `siglip-jax <command>`. One module per command; what is slow to import is imported on use."""

from siglip_jax.cli._main import main

__all__ = ["main"]
