"""A short training run as a program of its own, to be killed; and what kills it again and again.

    python -m tests.support.training_run MODEL DATA OUT WORKERS STEPS

Every batch that a step sees is written down, as is the step's number; the end is `OUT/final.npz`.
"""

import hashlib
import os
import sys
from pathlib import Path

import jax
import numpy as np

from siglip_jax.data.open import open_source
from siglip_jax.data.pipeline import Pipeline
from siglip_jax.params import flatten
from siglip_jax.training.assembly import make_objective, make_plan, make_state
from siglip_jax.training.loop import LoopOptions, run_loop
from siglip_jax.training.prepare import make_transform, prepare_model
from siglip_jax.training.recipe import Optimizer, Recipe, Schedule
from siglip_jax.training.saving import identity_of
from siglip_jax.training.step import make_step
from tests.support import killing as killed

SAVE_EVERY = 3


class Witness:
    """Passes batches on and writes down a digest of each."""

    def __init__(self, pipeline, path):
        self.pipeline, self.path, self.fingerprint = pipeline, path, pipeline.fingerprint

    def batches(self, start=0):
        with open(self.path, "a") as out:
            for step, batch in enumerate(self.pipeline.batches(start), start):
                digest = hashlib.sha256(b"".join(batch.arrays[name].tobytes() for name in sorted(batch.arrays)))
                print(step, digest.hexdigest(), file=out, flush=True)
                yield batch


def main(model, data, out, workers, steps):
    """Runs, or goes on with the run in `out`."""
    recipe = Recipe(
        batch_size=8,
        duration=f"{steps} steps",
        augment="crop_flip",
        scan_layers=True,
        optimizer=Optimizer(rate=1e-2, average=0.9),
        schedule=Schedule(warmup="3 steps"),
    )
    source = open_source(data)
    prepared = prepare_model(recipe, model)
    transform = make_transform(recipe, prepared.processor)
    pipeline = Pipeline([(source, 1.0)], transform, batch_size=8, workers=int(workers))
    plan = make_plan(recipe, prepared.table, make_objective(recipe, prepared, transform, None), pipeline.examples, None)
    state = make_state(plan, prepared.params)
    out = Path(out)
    out.mkdir(exist_ok=True)
    outcome = run_loop(
        make_step(plan.step, state),
        state,
        Witness(pipeline, out / "seen.txt"),
        plan.steps,
        LoopOptions(out, save_every=SAVE_EVERY, log_every=2),
        identity=identity_of(recipe, model),
    )
    arrays = {
        f"{kind}/{path}": np.asarray(x)
        for kind, tree in (("now", outcome.state.trained), ("average", outcome.state.average))
        for path, x in flatten(tree).items()
    }
    np.savez(out / "end.npz", **arrays)
    os.replace(out / "end.npz", out / "final.npz")


def run_until_done(arguments, cache, kills=0, longest=1.0, seed=0):
    """Starts the program until it ends by itself, killing it `kills` times; returns how often it was killed.

    Args:
      cache: folder for compiled programs.
      longest: seconds after its first step, within which it is killed.
    """
    seen = Path(arguments[2]) / "seen.txt"
    command = [sys.executable, "-m", "tests.support.training_run", *arguments]
    return killed.run_until_done(
        command, lambda: seen.stat().st_size if seen.exists() else 0, cache, kills, longest, seed
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(*sys.argv[1:])
