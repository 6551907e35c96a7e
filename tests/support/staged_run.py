"""A run of two stages as a program of its own, to be killed: captions, then a teacher and another resolution too.

    python -m tests.support.staged_run MODEL DATA OUT

Its end is `OUT/final.npz`: every array of the last checkpoint.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from siglip_jax.training import Captioning, Late, Optimizer, Recipe, SelfDistillation, train
from tests.support import killing

STEPS, TEACHER_FROM, LATE_FROM, SAVE_EVERY = 8, 4, 4, 3


RECIPE = Recipe(
    batch_size=8,
    duration=f"{STEPS} steps",
    augment="flip",
    scan_layers=True,
    optimizer=Optimizer(rate=1e-3, average=0.9),
    captioning=Captioning(weight=1.0, layers=1),
    self_distillation=SelfDistillation(
        weight=1.0,
        masked_weight=0.25,
        factor=1.0,
        start=f"{TEACHER_FROM} steps",
        views=2,
        prototypes=8,
        hidden=8,
        bottleneck=4,
    ),
    late=Late(start=f"{LATE_FROM} steps", resolution=24, patch_size=8),
)


def main(model: str, data: str, out: str) -> None:
    """Runs, or goes on with the run in `out`."""
    train(data, model, out, RECIPE, save_every=SAVE_EVERY, log_every=1)
    with ocp.CheckpointManager(Path(out, "checkpoints").resolve()) as manager:
        arrays = manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    np.savez(Path(out, "end.npz"), **{name: np.asarray(x) for name, x in arrays.items()})
    os.replace(Path(out, "end.npz"), Path(out, "final.npz"))


def run_until_done(
    arguments: tuple[object, ...], cache: Path, kills: int = 0, longest: float = 1.0, seed: int = 0
) -> int:
    """Starts the program until it ends by itself, killing it `kills` times; returns how often it was killed."""
    log = Path(str(arguments[2]), "log.jsonl")
    command = [sys.executable, "-m", "tests.support.staged_run", *arguments]
    return killing.run_until_done(
        command, lambda: log.stat().st_size if log.exists() else 0, cache, kills, longest, seed
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)  # most of the time is compilation
    main(*sys.argv[1:])
