"""The command line `siglip-jax`: one module per command, which imports slow modules only when it runs."""

from siglip_jax.cli._main import main

__all__ = ["main"]
