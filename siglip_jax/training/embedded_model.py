"""Trains the model that the package carries: a SigLIP for 64-pixel pictograms, on a CPU, in about an hour.

    python -m siglip_jax.training.pictograms DATA
    python -m siglip_jax.training.embedded_model DATA OUT

OUT receives the model in Hugging Face layout; checkpoint and log (JSON lines) go to DATA/run. An interrupted run goes
on from its last checkpoint when the command is given again. The number of steps is fixed and the weights are the moving
average at the last one: no held-out picture is looked at before the end. Needs the extra `train`.
"""

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32, Key, UInt8

from siglip_jax.configuration import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
from siglip_jax.losses.sigmoid import sigmoid_loss_of_logits
from siglip_jax.models import SiglipModel
from siglip_jax.models.siglip import normalize
from siglip_jax.processing import SiglipImageProcessorPil, SiglipProcessor, SiglipTokenizer
from siglip_jax.training.embedded_augmentation import restyle
from siglip_jax.training.embedded_batches import Batch, Batches
from siglip_jax.training.embedded_state import keep_log_until, restore_state, save_state
from siglip_jax.training.embedded_vocabulary import corpus, write_vocabulary
from siglip_jax.training.pictogram_scores import Scores, report
from siglip_jax.training.pictogram_set import load_split

DESCRIPTION = "Train the model that the package carries, from the data of siglip_jax.training.pictograms."


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything the result depends on, besides the data."""

    steps: int = 3000  # optimizer steps
    pictures: int = 384  # pictures in a step
    texts: int = 512  # texts in a step; the first ones describe the pictures, the others are negatives
    warmup: int = 150  # steps
    muon_rate: float = 0.02  # peak learning rate of the matrices
    adam_rate: float = 0.003  # peak learning rate of everything else
    final_rate: float = 0.02  # of the peak, reached at the last step along a cosine
    adam_b2: float = 0.95  # per step
    weight_decay: float = 0.02  # of the matrices, times the learning rate, per step
    average: float = 0.998  # decay of the moving average of the weights, per step
    temperature: float = 10.0  # at the start
    seed: int = 0  # of the weights, the draws and the augmentation
    vision_width: int = 192  # features
    vision_depth: int = 4  # layers
    text_width: int = 128  # features
    text_depth: int = 2  # layers
    head_width: int = 32  # features of one attention head
    patch_size: int = 16  # pixels
    positions: int = 16  # tokens, the closing one included

    def config(self, vocab_size: int) -> SiglipConfig:
        """The model's configuration for a vocabulary of the given size."""
        text = SiglipTextConfig(
            vocab_size=vocab_size,
            hidden_size=self.text_width,
            intermediate_size=4 * self.text_width,
            num_hidden_layers=self.text_depth,
            num_attention_heads=self.text_width // self.head_width,
            max_position_embeddings=self.positions,
            projection_size=self.vision_width,
            bos_token_id=None,
            eos_token_id=1,
        )
        vision = SiglipVisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=4 * self.vision_width,
            num_hidden_layers=self.vision_depth,
            num_attention_heads=self.vision_width // self.head_width,
            image_size=64,
            patch_size=self.patch_size,
        )
        return SiglipConfig(text_config=text, vision_config=vision)


def learning_rate(recipe: Recipe, peak: float) -> optax.Schedule:
    """Linear warm-up to `peak`, then a cosine down to `final_rate` of it at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=min(recipe.warmup, recipe.steps // 2),
        decay_steps=recipe.steps,
        end_value=recipe.final_rate * peak,
    )


def _muon_dimensions(params: Any) -> Any:
    """Muon for the dense kernels; Adam (None) for embeddings, the patch convolution, norms, biases and small heads."""

    def choose(path: tuple[Any, ...], leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
        is_matrix = path[-1].key == "kernel" and leaf.ndim == 2 and min(leaf.shape) >= 64
        return optax.contrib.MuonDimensionNumbers() if is_matrix else None

    return jax.tree_util.tree_map_with_path(choose, params)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Muon on matrices, Adam elsewhere (see `_muon_dimensions`)."""
    return optax.contrib.muon(
        learning_rate=learning_rate(recipe, recipe.muon_rate),
        weight_decay=recipe.weight_decay,
        adam_learning_rate=learning_rate(recipe, recipe.adam_rate),
        adam_b2=recipe.adam_b2,
        muon_weight_dimension_numbers=_muon_dimensions,
    )


def initial_state(model: SiglipModel, recipe: Recipe, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """Parameters, their moving average, the optimizer's state and the number of steps done."""
    ids = jnp.ones((1, recipe.positions), jnp.int32)
    pixels = jnp.zeros((1, 64, 64, 3), jnp.float32)
    params = dict(model.init(jax.random.key(recipe.seed), input_ids=ids, pixel_values=pixels)["params"])
    params["logit_scale"] = jnp.full((1,), math.log(recipe.temperature), jnp.float32)
    params["logit_bias"] = jnp.full((1,), -math.log(recipe.texts - 1), jnp.float32)
    average = jax.tree.map(jnp.copy, params)  # a copy: the step gives both away
    return {"params": params, "average": average, "optimizer": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def make_step(model: SiglipModel, recipe: Recipe, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """The jitted step: (state, pictures, input_ids) to (state, loss); the state passed in is given away."""

    def loss_of(params: Any, pixels: Float[Array, "n h w 3"], ids: Int32[Array, "m t"]) -> Float[Array, ""]:
        out: Any = model.apply({"params": params}, input_ids=ids, pixel_values=pixels)
        first = jnp.eye(len(pixels), len(ids), dtype=bool)  # match by row; the other texts match no picture
        return sigmoid_loss_of_logits(out.logits_per_image, first)

    def step(
        state: dict[str, Any], pictures: UInt8[Array, "n 64 64 4"], ids: Int32[Array, "m t"]
    ) -> tuple[dict[str, Any], Float[Array, ""]]:
        key: Key[Array, ""] = jax.random.fold_in(jax.random.key(recipe.seed + 1), state["step"])
        loss, gradients = jax.value_and_grad(loss_of)(state["params"], restyle(key, pictures), ids)
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        done = state["step"] + 1
        # The average of a young run must not remember the random start.
        decay = jnp.minimum(recipe.average, done.astype(jnp.float32) / (done.astype(jnp.float32) + 10))
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state["average"], params)
        return {"params": params, "average": average, "optimizer": optimizer_state, "step": done}, loss

    return jax.jit(step, donate_argnums=0)


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

    Raises:
      ValueError: the loss stopped being finite, or `work` holds a run of another recipe.
    """
    work.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(recipe)
    state, before = initial_state(model, recipe, optimizer), 0.0
    if (work / "state.npz").is_file():
        state, before = restore_state(work / "state.npz", state, recipe)
    step, last = make_step(model, recipe, optimizer), min(recipe.steps, stop_at or recipe.steps)
    first = int(state["step"])
    keep_log_until(work / "log.jsonl", first)
    losses: list[float] = []
    start = time.monotonic()
    batch = batches(first)
    with _progress(recipe.steps, first) as advance, open(work / "log.jsonl", "a", encoding="utf-8") as log:
        for done in range(first + 1, last + 1):
            state, loss = step(state, batch.pictures, batch.input_ids)
            if done < last:
                batch = batches(done)  # made while the step runs
            losses.append(float(loss))
            advance(losses[-1])
            seconds = before + time.monotonic() - start
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
    return SiglipProcessor(SiglipImageProcessorPil(size={"height": 64, "width": 64}), tokenizer)


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


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser("python -m siglip_jax.training.embedded_model", description=DESCRIPTION)
    parser.add_argument("data", type=Path, help="directory written by siglip_jax.training.pictograms")
    parser.add_argument("out", type=Path, help="directory for the model")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="directory for checkpoint and log (default: DATA/run)")
    options = parser.parse_args(arguments)
    recipe, work = Recipe(steps=options.steps), options.work or options.data / "run"

    pictograms = load_split(options.data, "train")
    work.mkdir(parents=True, exist_ok=True)
    write_vocabulary(corpus(pictograms.rows), work / "spiece.model")
    processor = make_processor(work / "spiece.model", recipe)

    def tokenize(texts: list[str]) -> np.ndarray:
        return processor(text=texts)["input_ids"]

    batches = Batches(pictograms, tokenize, recipe.pictures, recipe.texts, recipe.seed)
    model = SiglipModel(recipe.config(processor.tokenizer.vocab_size))
    state = train(model, batches, recipe, work)
    export(options.out, model, state["average"], processor)
    print(json.dumps(evaluate(options.out, options.data), indent=2))


if __name__ == "__main__":
    main()
