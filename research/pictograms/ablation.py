"""Do the further losses of SigLIP 2 help? One small model, trained for the same steps with and without each of them.

    python -m research.pictograms.build DATA
    python -m research.pictograms.other_styles DATA          # optional: more held-out styles
    python -m research.pictograms.ablation DATA OUT [--steps 600] [--seeds 0 1 2]

Writes OUT/table.txt, the mean and the standard deviation over the seeds, and a folder for each run with its
checkpoints, its log and its metrics. Running the command again resumes. Every run sees the same batches in the same
order, but for those with curation, which read twice as many pairs and train on half of them.

The metrics are the zero-shot accuracy on each held-out style, among 64 names, because short runs know little among all
1,600, and the share of the patches of held-out drawings whose group (animals, food, ...) is that of most of the nearest
patches of training drawings.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import siglip_jax
from research.pictograms.batches import Batches
from research.pictograms.dataset import Pictograms, load_split
from research.pictograms.objective import augmentation, random_params, shrunk
from research.pictograms.other_styles import ON_PHOTOGRAPHS
from research.pictograms.recipe import SIZE, Stage, make_recipe
from research.pictograms.sources import OTHER_STYLES
from siglip_jax._files import write_atomically
from siglip_jax.evaluation.neighbours import nearest_keys, vote
from siglip_jax.models import SiglipModel
from siglip_jax.models.elementwise import normalize
from siglip_jax.params import flatten
from siglip_jax.processing import SiglipProcessor
from siglip_jax.training import Captioning, SelfDistillation, keep_freed_memory
from siglip_jax.training.assembly import make_plan, make_state
from siglip_jax.training.curation import CURATOR, Curator
from siglip_jax.training.joint import JointPairs, placed_groups, without_groups
from siglip_jax.training.loop import LoopOptions, run_loop
from siglip_jax.training.objective import Pairs
from siglip_jax.training.prepare import make_table
from siglip_jax.training.step import make_step

KEEP = 0.5  # share of the pairs that curation trains on
CAPTIONING = Captioning(weight=1.0)
# Weights, temperatures and views are those of the recipe `siglip2`; the heads are as small as the model is. A short run
# has no late start: the losses with a teacher are on from the first step.
DENSE = SelfDistillation(
    weight=1.0, masked_weight=0.25, factor=0.25, prototypes=1024, hidden=256, bottleneck=64, momentum=0.99
)
CONDITIONS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "+ captioning": {"captioning": CAPTIONING},
    "+ self-distillation, masked prediction": {"self_distillation": DENSE},
    "+ all of these": {"captioning": CAPTIONING, "self_distillation": DENSE},
    "+ ACID": {"curated": True},
}
TRAIN_DRAWINGS = 1500  # drawings whose patches are the neighbours
NEIGHBOURS = 20
NAMES, GROUPS = 64, 100  # names of a zero-shot question, and questions
COVERED = 0.5  # share of a patch that the drawing must cover for the patch to count


def stage_of(steps: int, **terms: Any) -> Stage:
    """Returns the only stage of a run, of a model half as wide as the bundled one, on 36 patches of an image."""
    recipe = make_recipe(images=128, steps=steps, warmup=steps // 20, rate=0.02, seed=0)
    recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, average=0.98), **terms)
    return Stage(
        recipe,
        texts=recipe.batch_size,
        image_size=48,
        patch_size=8,
        vision_width=96,
        vision_depth=3,
        text_width=64,
    )


def train(
    train_split: Pictograms,
    processor: SiglipProcessor,
    seed: int,
    steps: int,
    directory: Path,
    condition: dict[str, Any],
) -> tuple[SiglipModel, Any] | None:
    """Trains a model under a condition, or resumes it; returns it with its averaged weights, None if it was stopped."""
    terms = dict(condition)
    curated = terms.pop("curated", False)
    stage = stage_of(steps, **terms)
    recipe, prepare = stage.recipe, augmentation(stage)
    model = SiglipModel(stage.config(processor.tokenizer.vocab_size))
    # The seed is that of the first weights and of the batches, so that one compiled step serves all seeds.
    seeded = dataclasses.replace(stage, recipe=dataclasses.replace(recipe, seed=seed))
    params = placed_groups(recipe, model, random_params(model, seeded), None)
    objective, curator = Pairs(model, prepare=prepare, block_size=None), None
    if terms:
        objective = JointPairs(model, prepare=prepare, block_size=None, **terms)
    if curated:
        teacher, params[CURATOR] = SiglipModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL, param_dtype=jnp.float32)
        whole_size = augmentation(dataclasses.replace(stage, image_size=SIZE))
        curator = Curator(objective, Pairs(teacher, prepare=whole_size, block_size=None), KEEP)
    images = round(recipe.batch_size / KEEP) if curated else recipe.batch_size
    batches = Batches(
        train_split, lambda texts: processor(text=texts, truncation=True)["input_ids"], images, images, seed
    )
    table = make_table(recipe, flatten(params))
    plan = make_plan(recipe, table, objective, len(train_split.rows), None, curator)
    state = make_state(plan, params)
    identity = json.loads(json.dumps(dataclasses.asdict(seeded) | {"curated": curated}))
    options = LoopOptions(directory, save_every=200)
    outcome = run_loop(make_step(plan.step, state), state, batches, plan.steps, options, identity=identity)
    return None if outcome.stopped else (model, without_groups(outcome.state.average_params))


def metrics_of(model: SiglipModel, params: Any, processor: SiglipProcessor, data: Path) -> dict[str, float]:
    """Returns the accuracies of a model in percent."""
    size = model.config.vision_config.image_size
    run: Callable[..., Any] = jax.jit(functools.partial(model.apply, {"params": params}), static_argnames="method")

    def pixels_of(images: Any) -> Any:
        return shrunk(jnp.asarray(processor(images=list(images))["pixel_values"]), size)

    def batched(encode: Callable[[Any], Any], items: list[Any]) -> np.ndarray:
        return np.concatenate([np.asarray(encode(items[i : i + 256])) for i in range(0, len(items), 256)])

    def images(items: list[Any]) -> np.ndarray:
        return batched(lambda part: normalize(run(pixels_of(part), method="get_image_features")), items)

    def texts(items: list[str]) -> np.ndarray:
        def encode(part: list[str]) -> Any:
            return normalize(run(processor(text=part, truncation=True)["input_ids"], method="get_text_features"))

        return batched(encode, items)

    styles = ["fluent3d", "clipart_test", *OTHER_STYLES, ON_PHOTOGRAPHS]
    styles = [style for style in styles if (data / f"{style}.npz").is_file()]
    found = {}
    for style in styles:
        split = load_split(data, style)
        captions = [row["caption"] for row in split.rows]
        found[style] = accuracy_among(images(list(split.images)) @ texts(captions).T, captions)

    def patches(split: Pictograms) -> tuple[np.ndarray, np.ndarray]:
        def encode(part: list[Any]) -> Any:
            return run(pixels_of(part), method="get_patch_features")

        features = batched(encode, list(split.images))
        covered = patch_cover(split.images, features.shape[1]) > COVERED
        labels = np.asarray([row["group"] for row in split.rows])
        x = features[covered]
        return x / np.linalg.norm(x, axis=-1, keepdims=True), np.repeat(labels, covered.sum(axis=(1, 2)))

    held_out, known = load_split(data, "fluent3d"), load_split(data, "train")
    groups = sorted({row["group"] for row in held_out.rows})
    known = known.subset(lambda row: row["group"] in groups)
    chosen = np.random.default_rng(0).permutation(len(known.rows))[:TRAIN_DRAWINGS]
    keys, of_keys = patches(Pictograms(known.images[chosen], [known.rows[i] for i in chosen]))
    queries, of_queries = patches(held_out)
    similarities, neighbours = nearest_keys(queries, keys, NEIGHBOURS)
    numbers = np.searchsorted(groups, of_keys)
    votes = vote(similarities, numbers[neighbours], top=1)[:, 0]
    found["patches"] = 100 * float(np.mean(votes == np.searchsorted(groups, of_queries)))
    return found


def accuracy_among(
    cosines: Float[np.ndarray, "n n"], names: Sequence[str], count: int = NAMES, groups: int = GROUPS
) -> float:
    """Returns the percentage of images with the largest cosine for their own name among a few, over random groups.

    Args:
      cosines: cosine of each image with each name, of which `names[i]` is that of image i.
      names: names of the images; a group has no name twice.
      count: names of a group.
      groups: number of groups.
    """
    rng, right = np.random.default_rng(0), []
    for _ in range(groups):
        first = {names[i]: i for i in rng.permutation(len(names))}
        group = list(first.values())[:count]
        own = cosines[np.ix_(group, group)]
        right.append(own.argmax(axis=1) == np.arange(len(group)))
    return 100 * float(np.mean(right))


def patch_cover(images: np.ndarray, rows: int) -> np.ndarray:
    """Returns the share of each patch that the drawing covers, (n, rows, rows), for images (n, h, h, 4) uint8."""
    n, size = images.shape[:2]
    edges = np.linspace(0, size, rows + 1)
    total = np.zeros((n, size + 1, size + 1))
    total[:, 1:, 1:] = (images[..., 3] / 255.0).cumsum(axis=1).cumsum(axis=2)
    at = np.minimum(edges.astype(int), size - 1)
    part = (edges - at)[:, None]
    total = total[:, at] * (1 - part) + total[:, at + 1] * part
    total = total[:, :, at] * (1 - part[:, 0]) + total[:, :, at + 1] * part[:, 0]
    return np.diff(np.diff(total, axis=1), axis=2) / (size / rows) ** 2


def table_of(results: dict[str, list[dict[str, float]]]) -> str:
    """Returns mean and standard deviation of each metric under each condition, as text."""
    names = list(next(iter(results.values()))[0])
    lines = [" " * 40 + "".join(f"{name[:15]:>17}" for name in names)]
    for condition, runs in results.items():
        cells = []
        for name in names:
            values = [run[name] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"{condition:<40}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; see the module docstring."""
    parser = argparse.ArgumentParser("python -m research.pictograms.ablation", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="directory written by research.pictograms.build")
    parser.add_argument("out", type=Path, help="directory of the runs and the table")
    parser.add_argument("--steps", type=int, default=600, help="steps of each run (default: 600)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs (default: 0 1 2)")
    options = parser.parse_args(arguments)
    processor = SiglipProcessor.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
    split = load_split(options.data, "train")
    jax.config.update("jax_compilation_cache_dir", str(options.out / "compiled"))
    results: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        for number, (name, condition) in enumerate(CONDITIONS.items()):
            directory = options.out / f"{number}-seed{seed}"
            record = directory / "metrics.json"
            if not record.is_file():
                trained = train(split, processor, seed, options.steps, directory, condition)
                if trained is None:
                    print("stopped; the same command resumes the run", file=sys.stderr)
                    return 143
                write_atomically(record, json.dumps(metrics_of(*trained, processor, options.data)).encode())
            results.setdefault(name, []).append(json.loads(record.read_text(encoding="utf-8")))
        write_atomically(options.out / "table.txt", table_of(results).encode())
    print(table_of(results), end="")
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
