"""Trains the bundled model: a SigLIP for 64-pixel pictograms, on a CPU, in a few hours.

    python -m research.pictograms.build DATA
    python -m research.pictograms.train DATA OUT

OUT receives the model in the layout of Hugging Face; checkpoints and logs (JSON lines) go to DATA/run, one folder for
each stage of `recipe.STAGES`. Running the command again resumes from the last checkpoint. The number of steps is fixed
and the weights are the moving average at the last step: no held-out image is used before the end. Needs the packages of
the README.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from research.pictograms.batches import Batches
from research.pictograms.dataset import load_split
from research.pictograms.objective import make_objective, random_params
from research.pictograms.recipe import SIZE, STAGES, Stage, blended, grown
from research.pictograms.scores import Scores, report
from research.pictograms.vocabulary import corpus, write_vocabulary
from siglip_jax.models import SiglipModel
from siglip_jax.models.elementwise import normalize
from siglip_jax.params import flatten
from siglip_jax.processing import SiglipImageProcessorPil, SiglipProcessor, SiglipTokenizer
from siglip_jax.training.assembly import make_plan, make_state
from siglip_jax.training.loop import LoopOptions, Outcome, run_loop
from siglip_jax.training.optimizer import treatments
from siglip_jax.training.step import make_step

DESCRIPTION = "Train the bundled model on the data of research.pictograms.build."
STOPPED = 143  # exit status of a run that a signal stopped


def train_stage(
    model: SiglipModel, stage: Stage, params: dict[str, Any], batches: Batches, run: LoopOptions
) -> Outcome:
    """Runs a stage, or the rest of it; takes ownership of `params`.

    Raises:
      ValueError: if the loss is not finite, or the directory holds a run of another stage or other data.
    """
    table = treatments(stage.recipe.optimizer, flatten(params))
    plan = make_plan(stage.recipe, table, make_objective(model, stage), len(batches.drawings), None)
    state = make_state(plan, params)
    identity = json.loads(json.dumps(dataclasses.asdict(stage)))
    return run_loop(make_step(plan.step, state), state, batches, plan.steps, run, identity=identity)


def make_processor(vocabulary: Path, positions: int) -> SiglipProcessor:
    """Returns the tokenizer and the image processor of the model: 64 pixels, values in [-1, 1]."""
    tokenizer = SiglipTokenizer(vocabulary, model_max_length=positions, model_input_names=["input_ids"])
    return SiglipProcessor(SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}), tokenizer)


def export(out: Path, model: SiglipModel, params: Any, processor: SiglipProcessor) -> None:
    """Writes the model directory: weights in float16, configuration, vocabulary, processor."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, jax.tree.map(lambda p: p.astype(jnp.float16), params))
    processor.save_pretrained(out)


def evaluate(directory: Path, data: Path) -> dict[str, Scores]:
    """Returns the zero-shot metrics of an exported model, computed in float32 (see `scores.report`)."""
    model, params = SiglipModel.from_pretrained(directory, param_dtype=jnp.float32)
    processor = SiglipProcessor.from_pretrained(directory)

    @functools.partial(jax.jit, static_argnames="method")
    def embed(inputs: Array, method: str) -> Array:
        features: Any = model.apply({"params": params}, inputs, method=method)
        return normalize(features)

    def encode_images(images: list[Any]) -> np.ndarray:
        pixels = processor(images=images)["pixel_values"]
        return np.asarray(embed(pixels, method="get_image_features"))

    def encode_texts(texts: list[str]) -> np.ndarray:
        return np.asarray(embed(processor(text=texts)["input_ids"], method="get_text_features"))

    return report(data, encode_images, encode_texts)


def run(data: Path, out: Path, work: Path, start: Path | None = None, stages: Sequence[Stage] = STAGES) -> bool:
    """Runs the stages, each from the averaged weights of the one before, and exports the final weights.

    Args:
      data: directory written by `research.pictograms.build`.
      out: directory for the model.
      work: directory for the vocabulary and, in a folder for each stage, checkpoints and log. Finished stages are not
        repeated.
      start: directory of a model with the same vocabulary, from which the first stage starts; None: random weights.
      stages: stages to run, all with the same text length; the last one uses images of full size.

    Returns:
      True if the run finished, False if a signal stopped it.

    Raises:
      ValueError: if `work` holds a run of another stage, or a loss is not finite.
    """
    pictograms = load_split(data, "train")
    work.mkdir(parents=True, exist_ok=True)
    write_vocabulary(corpus(pictograms.rows), work / "spiece.model")
    processor = make_processor(work / "spiece.model", stages[-1].positions)
    config, params = None, None
    if start is not None:
        before, params = SiglipModel.from_pretrained(start, param_dtype=jnp.float32)
        config = before.config
    for number, stage in enumerate(stages, start=1):
        model = SiglipModel(stage.config(processor.tokenizer.vocab_size))
        first = random_params(model, stage) if params is None or config is None else grown(config, params, stage)
        params, config = jax.tree.map(jnp.copy, first), model.config
        recipe = stage.recipe
        batches = Batches(
            pictograms,
            lambda texts: processor(text=texts, truncation=True)["input_ids"],
            recipe.batch_size,
            stage.texts,
            recipe.seed,
            stage.smallest,
        )
        outcome = train_stage(model, stage, first, batches, LoopOptions(work / f"stage{number}", save_every=100))
        if outcome.stopped:
            return False
        params = blended(params, outcome.state.average_params, stage.blend)
    export(out, SiglipModel(stages[-1].config(processor.tokenizer.vocab_size)), params, processor)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; see the module docstring."""
    parser = argparse.ArgumentParser("python -m research.pictograms.train", description=DESCRIPTION)
    parser.add_argument("data", type=Path, help="directory written by research.pictograms.build")
    parser.add_argument("out", type=Path, help="directory for the model")
    parser.add_argument("--work", type=Path, help="directory for checkpoints and logs (default: DATA/run)")
    options = parser.parse_args(arguments)
    if not run(options.data, options.out, options.work or options.data / "run"):
        print("stopped; the same command resumes the run", file=sys.stderr)
        return STOPPED
    print(json.dumps(evaluate(options.out, options.data), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
