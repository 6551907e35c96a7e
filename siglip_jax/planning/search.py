"""The largest batch that fits, for each policy of recomputation and shape of the mesh."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from siglip_jax._callbacks import OnProgress
from siglip_jax.checkpoints.keymap import architecture_of, key_table
from siglip_jax.models.cost import estimate, placements, shapes_of
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.parallel.mesh import AXES
from siglip_jax.params import Shape
from siglip_jax.planning.plan import Plan, plan
from siglip_jax.planning.topology import Topology, open_topology
from siglip_jax.training.recipe import Recipe

REMATS = (None, "dots_with_no_batch_dims", "full")
COMPILES = 4  # of each policy and mesh, at most
SHARE = 0.98  # of the memory that a predicted batch fills
CLOSE = 0.95  # of the largest batch that is predicted: near enough


def largest_batches(
    model: str | os.PathLike[str] | PretrainedModule | None,
    topology: str,
    recipe: str | Recipe,
    *,
    meshes: Sequence[Mapping[str, int]] | None = None,
    remats: Sequence[str | None] = REMATS,
    on_progress: OnProgress | None = None,
    **fields: Any,
) -> list[Plan]:
    """Returns a plan for each policy of recomputation and mesh, with the largest batch that fits, the fastest first.

    Memory grows by the same amount with each example, so a few compilations of stacked layers find each batch: 2 to 4.

    Args:
      model: Hub name, directory or file; a module; None: the bundled model.
      topology: generation and shape of the machine, as `plan` takes it.
      recipe: recipe of the training step, by name or as `siglip_jax.training.Recipe`.
      meshes: sizes of the axes of each mesh; the axis `data` takes what the others leave. None: parameters whole on
        every chip, sharded over 8 chips, and over all.
      remats: values of the recipe's field `remat`.
      on_progress: called with (cases done, cases in all); None: nothing is called.
      **fields: further fields of the recipe to change, as `dtype="bfloat16"`.

    Returns:
      Plans, in descending order of examples per second; cases in which not even the smallest batch fits are left out.

    Raises:
      FileNotFoundError: if the model does not exist.
      ValueError: if the topology is unknown, its compiler is not installed, or nothing fits together.

    No example: it compiles for minutes; `siglip-jax plan --search` shows its result.
    """
    machine = open_topology(topology)
    chips = len(machine.devices)
    if meshes is None:
        meshes = [{"fsdp": n} for n in sorted({1, min(8, chips), chips})]
    compiled = functools.partial(plan, model, topology, recipe=recipe, **{**fields, "scan_layers": True})
    if isinstance(model, PretrainedModule):
        config: Any = model.config
        shapes = {row.path: row.shape for row in key_table(config, architecture_of(config))}
    else:
        _, config, shapes = shapes_of(model)
    cases = [(remat, dict(mesh)) for mesh in meshes for remat in remats]
    found: list[Plan] = []
    for done, (remat, mesh) in enumerate(cases, 1):
        sizes = {axis: mesh.get(axis, 1) for axis in AXES}
        sizes["data"] = mesh.get("data") or max(chips // (sizes["fsdp"] * sizes["tensor"]), 1)
        shards = sizes["data"] * sizes["fsdp"] * fields.get("micro_batches", 1)
        fixed, each = _guess(config, shapes, sizes, remat)

        def at(rows: int, remat: str | None = remat, sizes: Any = sizes, shards: int = shards) -> Plan:
            return compiled(rows * shards, remat=remat, mesh=sizes)

        if fixed < machine.chip.memory and (best := _largest(at, machine, fixed, each)) is not None:
            found.append(best)
        if on_progress is not None:
            on_progress(done, len(cases))
    return sorted(found, key=lambda p: -(p.examples_per_second or 0.0))


def _guess(config: Any, shapes: Mapping[str, Shape], sizes: dict[str, int], remat: str | None) -> tuple[float, float]:
    """Returns the bytes on a chip that no batch changes, and those of each example, without a compiler."""
    shards, table = sizes["data"] * sizes["fsdp"], placements(shapes, sizes)
    options: Any = {"training": True, "remat": None if remat is None else "full", "dtype": "bfloat16"}
    few, many = (estimate(config, table, sizes, n * shards, **options) for n in (8, 16))
    # Adafactor keeps a moment of two bytes for each parameter of four.
    return 2.0 * few.parameters, max((many.total - few.total) / 8, 1.0)


def _largest(at: Any, machine: Topology, fixed: float, each: float) -> Plan | None:
    """Returns the plan of the largest number of examples on a chip that fits, of those that are tried."""
    memory, best, fitting, refused = machine.chip.memory, None, 0, None
    rows = _rounded((memory - fixed) / each / 2)
    known: list[tuple[int, int]] = []
    for _ in range(COMPILES):
        tried = at(rows)
        known.append((rows, tried.needed))
        if tried.fits and rows > fitting:
            best, fitting = tried, rows
        elif not tried.fits:
            refused = min(rows, refused or rows)
        limit = _predicted(known, memory, fixed)
        if refused is not None:
            limit = min(limit, _rounded(refused - 1) if refused > 1 else 0)
        if limit <= fitting / CLOSE or limit < 1:
            break
        rows = limit
    return best


def _predicted(known: Sequence[tuple[int, int]], memory: int, fixed: float) -> int:
    """Returns the rows that fill the memory, by a line through the two nearest compilations, or one and `fixed`."""
    (a, low), (b, high) = (sorted(set(known), key=lambda x: abs(x[1] - memory))[:2] + [(0, round(fixed))])[:2]
    slope = (high - low) / (b - a) if a != b else 0.0
    if slope <= 0:
        return 2 * max(a, b)
    return _rounded(SHARE * (memory - low) / slope + a)


def _rounded(rows: int | float) -> int:
    """Rounds down to a multiple of 8, of which a TPU loses nothing to padding, and small numbers to whole ones."""
    return max(int(rows) // 8 * 8 if rows >= 8 else int(rows), 1)
