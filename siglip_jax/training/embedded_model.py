"""Trains the model that the package carries: a SigLIP for 64-pixel pictograms, on a CPU, in about an hour.

    python -m siglip_jax.training.pictograms DATA
    python -m siglip_jax.training.embedded_model DATA OUT

OUT receives the model in Hugging Face layout; checkpoints and logs (JSON lines) go to DATA/run, one folder for each
stage of `embedded_recipe`. An interrupted run goes on from its last checkpoint when the command is given again. The
number of steps is fixed and the weights are the moving average at the last one: no held-out picture is looked at before
the end. Needs the extra `train`.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from siglip_jax.models import SiglipModel
from siglip_jax.models.siglip import normalize
from siglip_jax.processing import SiglipImageProcessorPil, SiglipProcessor, SiglipTokenizer
from siglip_jax.training.embedded_batches import Batch, Batches
from siglip_jax.training.embedded_recipe import SIZE, STAGES, Recipe, blended, grown
from siglip_jax.training.embedded_state import keep_log_until, restore_state, save_state
from siglip_jax.training.embedded_step import initial_state, make_optimizer, make_step
from siglip_jax.training.embedded_vocabulary import corpus, write_vocabulary
from siglip_jax.training.pictogram_scores import Scores, report
from siglip_jax.training.pictogram_set import load_split

DESCRIPTION = "Train the model that the package carries, from the data of siglip_jax.training.pictograms."


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[float], None]]:
    """A bar with loss and time left on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda loss: None
        return
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=total, completed=done)
        yield lambda loss: bar.update(task, advance=1, description=f"loss {loss:.3f}")


def train(
    model: SiglipModel,
    batches: Callable[[int], Batch],
    recipe: Recipe,
    work: Path,
    *,
    log_every: int = 20,
    save_every: int = 250,
    stop_at: int | None = None,
    start: Any = None,
) -> dict[str, Any]:
    """Runs the recipe, or the rest of it, and returns the final state.

    Args:
      model: the module to train.
      batches: gives the batch of a step.
      recipe: what to run.
      work: where `state.npz` and `log.jsonl` are kept.
      log_every: steps between lines of the log.
      save_every: steps between checkpoints.
      stop_at: leave after this many steps, as an interruption would; the schedule is not changed by it.
      start: parameters to start from (default: random ones).

    Raises:
      ValueError: the loss stopped being finite, or `work` holds a run of another recipe.
    """
    work.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(recipe)
    state, before = initial_state(model, recipe, optimizer, start), 0.0
    if (work / "state.npz").is_file():
        state, before = restore_state(work / "state.npz", state, recipe)
    first, last = int(state["step"]), min(recipe.steps, stop_at or recipe.steps)
    step_at = functools.cache(lambda size: make_step(model, recipe, optimizer, size))
    keep_log_until(work / "log.jsonl", first)
    losses: list[float] = []
    since = time.monotonic()
    batch = batches(first)
    with _progress(recipe.steps, first) as advance, open(work / "log.jsonl", "a", encoding="utf-8") as log:
        for done in range(first + 1, last + 1):
            step = step_at(recipe.low_size if done <= recipe.low_steps else SIZE)
            state, loss = step(state, batch.pictures, batch.input_ids)
            if done < last:
                batch = batches(done)  # made while the step runs
            losses.append(float(loss))
            advance(losses[-1])
            seconds = before + time.monotonic() - since
            if done % log_every == 0 or done == last:
                line = {"step": done, "loss": round(float(np.mean(losses)), 5), "seconds": round(seconds, 1)}
                print(json.dumps(line), file=log, flush=True)
                if not np.isfinite(losses).all():
                    raise ValueError(f"the loss is no longer finite at step {done}: lower the learning rates")
                losses.clear()
            if done % save_every == 0 or done == last:
                save_state(work / "state.npz", state, recipe, seconds)
    return state


def make_processor(vocabulary: Path, recipe: Recipe) -> SiglipProcessor:
    """The tokenizer and the image processor of the model: 64 pixels, values in [-1, 1]."""
    tokenizer = SiglipTokenizer(vocabulary, model_max_length=recipe.positions, model_input_names=["input_ids"])
    return SiglipProcessor(SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}), tokenizer)


def export(out: Path, model: SiglipModel, params: Any, processor: SiglipProcessor) -> None:
    """Writes the model directory: float16 weights, configuration, vocabulary, processor."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, jax.tree.map(lambda p: p.astype(jnp.float16), params))
    processor.save_pretrained(out)


def evaluate(directory: Path, data: Path) -> dict[str, Scores]:
    """Zero-shot figures of an exported model, computed in float32 (see `pictogram_scores.report`)."""
    model, params = SiglipModel.from_pretrained(directory, param_dtype=jnp.float32)
    processor = SiglipProcessor.from_pretrained(directory)

    @functools.partial(jax.jit, static_argnames="method")
    def embed(inputs: Array, method: str) -> Array:
        features: Any = model.apply({"params": params}, inputs, method=method)
        return normalize(features)

    def encode_images(pictures: list[Any]) -> np.ndarray:
        pixels = processor(images=pictures)["pixel_values"]
        return np.asarray(embed(pixels, method="get_image_features"))

    def encode_texts(texts: list[str]) -> np.ndarray:
        return np.asarray(embed(processor(text=texts)["input_ids"], method="get_text_features"))

    return report(data, encode_images, encode_texts)


def run(data: Path, out: Path, work: Path, start: Path | None = None, stages: Sequence[Recipe] = STAGES) -> None:
    """Trains through the stages, each from the averaged weights of the one before, and exports the last ones.

    Args:
      data: directory written by `siglip_jax.training.pictograms`.
      out: directory for the model.
      work: directory for the vocabulary and, in a folder for each stage, checkpoint and log. Stages that are done
        are not done again.
      start: directory of a model with the same vocabulary, to start from instead of the first stage.
      stages: the recipes, at least two with a `start`, all with texts of one length.

    Raises:
      ValueError: `work` holds a run of another recipe, or a loss stopped being finite.
    """
    pictograms = load_split(data, "train")
    work.mkdir(parents=True, exist_ok=True)
    write_vocabulary(corpus(pictograms.rows), work / "spiece.model")
    processor = make_processor(work / "spiece.model", stages[-1])

    def tokenize(texts: list[str]) -> np.ndarray:
        return processor(text=texts)["input_ids"]

    config, params = None, None
    if start is not None:
        model, params = SiglipModel.from_pretrained(start, param_dtype=jnp.float32)
        config = model.config
    for number, recipe in enumerate(stages, start=1):
        if number == 1 and start is not None:
            continue
        params = params if config is None or params is None else grown(config, params, recipe)
        config = recipe.config(processor.tokenizer.vocab_size)
        batches = Batches(pictograms, tokenize, recipe.pictures, recipe.texts, recipe.seed, recipe.smallest)
        state = train(SiglipModel(config), batches, recipe, work / f"stage{number}", start=params)
        params = state["average"] if params is None else blended(params, state["average"], recipe.blend)
    export(out, SiglipModel(stages[-1].config(processor.tokenizer.vocab_size)), params, processor)


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser("python -m siglip_jax.training.embedded_model", description=DESCRIPTION)
    parser.add_argument("data", type=Path, help="directory written by siglip_jax.training.pictograms")
    parser.add_argument("out", type=Path, help="directory for the model")
    parser.add_argument("--work", type=Path, help="directory for checkpoints and logs (default: DATA/run)")
    parser.add_argument("--start", type=Path, help="directory of a model to start from instead of the first stage")
    options = parser.parse_args(arguments)
    run(options.data, options.out, options.work or options.data / "run", options.start)
    print(json.dumps(evaluate(options.out, options.data), indent=2))


if __name__ == "__main__":
    main()
