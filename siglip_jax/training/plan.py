"""The plan of a run: what `train` would do with each parameter, its schedule, and the memory on each device."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from siglip_jax.configs.configuration import Siglip2Config
from siglip_jax.data.example import Example, Source
from siglip_jax.data.flexible import FlexibleTransform
from siglip_jax.data.pipeline import unreadable_of
from siglip_jax.data.transform import Transform
from siglip_jax.evaluation.embeddings import spread
from siglip_jax.models.cost import Placement, estimate, placements
from siglip_jax.parallel.mesh import AXES, batch_shards
from siglip_jax.params import flatten
from siglip_jax.training.assembly import flops_of
from siglip_jax.training.costs import ADAM, GROUPS, further_flops, group_bytes
from siglip_jax.training.joint import GROUPS as JOINT_GROUPS
from siglip_jax.training.memory import device_memory
from siglip_jax.training.naflex import kinds_of
from siglip_jax.training.prepare import Model, make_transform
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.setup import Data, Path_, Sources, open_sources, recipe_with, set_up, whole_model
from siglip_jax.training.stages import config_of_stage
from siglip_jax.training.timetable import Timetable, timetable_of

SCHEDULE_POINTS = 60  # values of the schedule that a dry run returns
TRIED = 128  # examples of each data set that a dry run reads, or all of a smaller one


def dry_run(
    data: Data,
    model: Path_,
    recipe: str | Recipe = "finetune",
    *,
    image_key: str | None = None,
    text_key: str | None = None,
    label_key: str | None = None,
    kind: str | None = None,
    root: Path_ | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Returns the plan of a run: what `train` would do with each parameter, without a step.

    Args:
      data: data to train on: a path as `siglip_jax.data.open_source` takes it, a list of paths or of pairs
        (path or opened source, weight), a mapping from paths to weights, or an opened source. A weight is a share of
        the examples that are drawn; without one it is the length of the source.
      model: checkpoint with the sizes, the processor and the initial weights: a Hub name, directory or file.
      recipe: name of a recipe in `siglip_jax.training.RECIPES`, or a `Recipe`.
      image_key: column, key or ending of the images; None: one of the usual names.
      text_key: column, key or ending of the captions; None: one of the usual names.
      label_key: column, key or ending of the labels; None: one of the usual names.
      kind: which kind of data set to open in a folder of several, as `siglip_jax.data.open_source` takes it; None:
        there must be only one.
      root: folder that the images of a table must be in, for absolute paths and `..`; None: that of the table.
      **fields: fields of the recipe to change; nested ones as `optimizer=dict(rate=1e-5)` or
        `**{"optimizer.rate": 1e-5}`.

    Returns:
      A dict that JSON can hold: `steps`, `batch_size`, `lengths` (for a model of variable resolution a row
      for each length of sequences: `patches`, `examples` of a step, and `padding`, the share of padding in the examples
      that were tried; else []), `examples` of an epoch, `images` (the different ones that they
      name; None where only reading them shows it), `classes` (names in the order of the logits; [] for pairs),
      `epochs`, `trained_parameters`, `all_parameters`, `mesh`, `memory_per_device` in bytes (None where no estimate
      applies), `peak_rate`, `schedule` (factors of the rate, evenly spaced over the run), `device_memory`, the bytes
      that a device has (None where unknown), `smaller`, the fields of the recipe with which a step would fit if it does
      not (None where it does, or nothing helps), `tried` (number of examples that were read, evenly spaced in each data
      set), `unreadable` (name and reason of those that could not be), `stages` (a row for each: `start` and `end` in
      steps, its `losses`, and where images change `resolution`, `patch_size`, `batch_size` or `patches`, the lengths),
      `losses` (a row for each, and for a teacher: `loss`, its `weight`, `flops` of a step on all devices beside those
      of the towers' own pass, and `bytes` of what it trains, moments and gradients included, on all devices), and
      `parameters`, a row for each: `parameter` (its path), `shape`, `rate`, `decay`, `frozen` and `sharding`.

    Raises:
      FileNotFoundError: if data or checkpoint do not exist.
      ValueError: if data, checkpoint and recipe do not fit together.

    Example:
      >>> import pathlib, tempfile, siglip_jax
      >>> from siglip_jax.training import dry_run
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     table = pathlib.Path(folder, "pairs.csv")
      ...     _ = table.write_text("image,caption\\n" + "horse.png,a horse\\nlemon.png,a lemon\\n" * 4)
      ...     frozen = {"optimizer.rates": (("vision_model/.*", 0.0), (".*", 1.0))}
      ...     plan = dry_run(table, siglip_jax.assets.BUNDLED_MODEL, batch_size=8, duration="5 steps", **frozen)
      >>> plan["steps"], plan["peak_rate"], {row["frozen"] for row in plan["parameters"]} == {False, True}
      (5, 1e-05, True)
    """
    recipe = recipe_with(recipe, fields)
    keys = {"image_key": image_key, "text_key": text_key, "label_key": label_key, "kind": kind, "root": root}
    setup = set_up(open_sources(data, keys), model, recipe, 0)
    plan, examples, whole = setup.plan, setup.pipeline.examples, whole_model(recipe, setup.model)
    sizes = {"data": recipe.mesh.data, "fsdp": recipe.mesh.fsdp, "tensor": recipe.mesh.tensor}
    if setup.mesh is not None:
        sizes = {axis: setup.mesh.shape[axis] for axis in AXES}
    sizes = {axis: max(size, 1) for axis, size in sizes.items()}
    shapes = {path: tuple(x.shape) for path, x in flatten(whole.params).items()}
    lora = {path: shape for path, shape in shapes.items() if path.startswith("lora/")}
    placed = placements({path: shape for path, shape in shapes.items() if path not in lora}, sizes)
    specs = {row.path: row.spec for row in placed} | dict.fromkeys(lora, "whole")
    rows = [_treatment_row(recipe, whole, path, shapes[path], spec) for path, spec in specs.items()]
    trained = sum(int(np.prod(row["shape"])) for row in rows if not row["frozen"])
    memory = functools.partial(_memory, model=whole, placed=placed, sizes=sizes, examples=examples)
    available = device_memory()
    transform = make_transform(recipe, setup.model.processor)
    chosen = [(source, spread(len(source), TRIED)) for source, _ in setup.sources]
    tried = sum(len(indices) for _, indices in chosen)
    unreadable = [reason for source, indices in chosen for reason in unreadable_of(source, indices, transform)]
    kinds = kinds_of(recipe.naflex, recipe.batch_size, setup.model.module.config)
    points = np.linspace(0, plan.steps, SCHEDULE_POINTS).round().astype(int)
    return {
        "steps": plan.steps,
        "batch_size": recipe.batch_size,
        "examples": examples,
        "images": _images(setup.sources),
        "classes": list(setup.sources[0][0].classes) if recipe.task == "labels" else [],
        "epochs": round(setup.times.examples / examples, 3),
        "lengths": _lengths(transform, kinds, chosen),
        "trained_parameters": trained,
        "all_parameters": sum(int(np.prod(shape)) for shape in shapes.values()),
        "mesh": sizes,
        "memory_per_device": memory(recipe),
        "device_memory": available,
        "smaller": _smaller(recipe, memory, available, setup.mesh),
        "peak_rate": recipe.optimizer.rate,
        "schedule": [setup.times.factor(int(step)) for step in points],
        "tried": tried,
        "unreadable": unreadable,
        "stages": _stages(setup.times),
        "losses": _losses(recipe, whole),
        "parameters": rows,
    }


def _stages(times: Timetable) -> list[dict[str, Any]]:
    """Returns a row for each stage of a run: its steps, its losses, and what changes the images and the steps."""
    rows = []
    for stage in times.stages:
        recipe = stage.recipe
        changes: dict[str, Any] = {}
        if len({other.recipe.resolution for other in times.stages}) > 1:
            changes |= {"resolution": recipe.resolution, "batch_size": recipe.batch_size}
        for name in ("resolution", "patch_size"):
            if getattr(recipe.late, name) is not None:
                changes[name] = getattr(recipe.late, name)
        if recipe.late.naflex:
            changes["patches"] = list(recipe.naflex.lengths)
        rows.append({"start": stage.start, "end": stage.end, "losses": list(_weights(recipe)), **changes})
    return rows


def _weights(recipe: Recipe, width: int = 0) -> dict[str, float]:
    """Returns the weight of each loss of a recipe."""
    if recipe.task == "labels":
        return {"cross-entropy": 1.0}
    own = recipe.self_distillation
    factor = own.factor_of(width)
    found = {recipe.loss: 1.0, "captioning": recipe.captioning.weight}
    found["boxes"] = recipe.captioning.weight * recipe.captioning.boxes
    found |= {"distillation": factor * own.weight, "masked": factor * own.masked_weight}
    return {name: weight for name, weight in found.items() if weight}


def _losses(recipe: Recipe, model: Model) -> list[dict[str, Any]]:
    """Returns a row for each loss, and for a teacher: weight, operations of a step, and bytes of what it trains."""
    config = model.module.config
    sizes = {path: x.size for path, x in flatten(model.params).items()}
    further = further_flops(recipe, config)
    weights = _weights(recipe, config.vision_config.hidden_size)
    rows = []
    for name in [name for name in weights if name not in further] + list(further):
        own = sum(x for path, x in sizes.items() if path.partition("/")[0] not in JOINT_GROUPS)
        flops = further.get(name) or flops_of(recipe, config, model.table) - sum(further.values())
        size = group_bytes(sizes, GROUPS[name]) if name in further else 4 * ADAM * own
        rows.append({"loss": name, "weight": weights.get(name), "flops": flops, "bytes": size})
    return rows


def _lengths(transform: Transform, kinds: Sequence[Any], chosen: Sequence[tuple[Any, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each length of sequences: its examples of a step, and the padding of the examples tried."""
    if not isinstance(transform, FlexibleTransform):
        return []
    tried = [example for source, indices in chosen for example in _readable(source, indices)]
    return [
        {"patches": length, "examples": count, "padding": round(transform.at(length).padding(tried), 4)}
        for length, count in kinds
    ]


def _readable(source: Source, indices: Sequence[int]) -> Iterator[Example]:
    """Yields the examples of a source that can be read."""
    for index in indices:
        with contextlib.suppress(OSError, ValueError):
            yield source[index]


def _images(sources: Sources) -> int | None:
    """Returns how many different images the examples name; None if a source does not know it before it reads them."""
    numbers = [getattr(source, "image_numbers", None) for source, _ in sources]
    return sum(int(x.max()) + 1 for x in numbers if x is not None) if all(x is not None for x in numbers) else None


def _treatment_row(recipe: Recipe, model: Model, path: str, shape: tuple[int, ...], spec: str) -> dict[str, Any]:
    """Returns the row of a parameter in the plan of a dry run."""
    entry = model.table[path]
    return {
        "parameter": path,
        "shape": list(shape),
        "rate": recipe.optimizer.rate * entry.rate,
        "decay": recipe.optimizer.weight_decay * entry.decay,
        "frozen": entry.frozen,
        "sharding": spec,
    }


def _smaller(
    recipe: Recipe, memory: Callable[[Recipe], int | None], available: int | None, mesh: Mesh | None
) -> dict[str, Any] | None:
    """Returns the fields to change for a step to fit on the device: the first that do, of those that cost least."""
    needed = memory(recipe)
    if needed is None or available is None or needed <= available:
        return None
    each = recipe.batch_size // batch_shards(mesh)
    more = [n for n in range(recipe.micro_batches + 1, each + 1) if each % n == 0]
    changes: list[dict[str, Any]] = [{"dtype": "bfloat16"}, {"dtype": "bfloat16", "remat": "full"}]
    changes += [changes[-1] | {"micro_batches": n} for n in more]
    for change in changes:
        found = memory(dataclasses.replace(recipe, **change))
        if found is not None and found <= available:
            return {name: value for name, value in change.items() if value != getattr(recipe, name)}
    return None


def _memory(
    recipe: Recipe, model: Model, placed: Sequence[Placement], sizes: dict[str, int], examples: int
) -> int | None:
    """Returns bytes on each device in the stage that needs most, as `siglip-jax info --mesh` estimates them.

    None where no estimate applies.
    """
    if recipe.task != "pairs" or recipe.locked_images or recipe.remat not in (None, "full"):
        return None
    options: Any = {"training": True, "remat": recipe.remat, "dtype": recipe.dtype}
    config: Any = model.module.config
    before, totals = None, []
    for stage in timetable_of(recipe, examples, isinstance(config, Siglip2Config)).stages:
        config = config if before is None else config_of_stage(config, stage.recipe, before)
        before = stage.recipe
        for length, rows in kinds_of(before.naflex, before.batch_size, config):
            own = config
            if length is not None:  # the estimate takes the next square number of patches
                square = (math.isqrt(length - 1) + 1) ** 2
                own = config.replace(vision_config=config.vision_config.replace(num_patches=square))
            totals.append(estimate(own, placed, sizes, rows // recipe.micro_batches, **options).total)
    frozen = sum(row.bytes for row in placed if model.table[row.path].frozen)
    return max(totals) - 3 * frozen  # frozen parameters have no gradient and no moments
