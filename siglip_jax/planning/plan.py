"""The plan of a training step or forward pass on a machine that need not be there: does it fit, how fast, what travels.

TPUs are described by libtpu, the compiler of TPUs, which runs on a machine without one.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from siglip_jax import models
from siglip_jax._checks import check_choice
from siglip_jax.checkpoints.keymap import architecture_of
from siglip_jax.configs.configuration import Siglip2Config
from siglip_jax.models.cost import EXAMPLES_PER_DEVICE, shapes_of
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.parallel.mesh import AXES
from siglip_jax.planning.program import Collective, Program, read_program, refused_bytes
from siglip_jax.planning.topology import CHIPS, Topology, open_topology
from siglip_jax.training.recipe import Recipe

SECONDS_A_DAY, SECONDS_AN_HOUR = 86_400, 3_600
# Share of the peak at which the attention kernel is taken to run, of which XLA estimates no cycles. The compiler's own
# schedule of it for a v5e takes 25 % with 729 tokens and heads of 72, and 8 % with 196 tokens and heads of 64.
KERNEL_SHARE = 0.25
FORWARD = Recipe(dtype="bfloat16", scan_layers=True)  # how a forward pass is compiled unless told otherwise


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler says of a training step or a forward pass on a machine; every number is an estimate of XLA.

    Attributes:
      model: name of the model.
      work: "training step" or "forward pass".
      recipe: recipe of the step; for a forward pass its dtype, batch, mesh and scan.
      topology: name of the machine, as in "v5e:16x16".
      chips: number of its chips.
      mesh: number of chips along each axis of the mesh.
      estimated: by which compiler, of which version, everything is estimated, and for what.
      versions: versions of jax and of the compiler.
      fits: whether a chip has the memory.
      needed: bytes that a chip needs at once, arguments and results among them; of a program that does not fit, what
        the compiler says that it would need.
      memory: bytes that a program can use on a chip.
      arguments: bytes of parameters, optimizer and batch on a chip; None where it does not fit.
      temporaries: bytes of temporaries on a chip, of which not all may be in use at once; None where it does not fit.
      model_flops: operations of the model on all chips in one run, without those that are repeated.
      flops: operations of all matrix products on a chip in one run; None where it does not fit.
      cycles: cycles that XLA estimates for one run, loops multiplied out; None where it does not fit.
      seconds: time of one run: estimated cycles at the chip's clock, kernels at a quarter of its peak, and what of the
        collectives nothing hides; None where XLA estimates none.
      exposed_seconds: the part of `seconds` in which collectives travel while nothing is computed.
      mfu: share of the chips' peak that `model_flops` are in that time.
      examples_per_second: image-text pairs or images per second on all chips.
      steps: steps of the recipe; None where only the data tell.
      days: days of all steps.
      chip_hours: chips times hours of all steps.
      collectives: every collective of the program.
      lengths: for images of variable resolution a row for each length of sequences: `patches`, `examples` of a step,
        `needed`, `fits`, `seconds` and `share` of the steps; the times and operations of the plan are their means, and
        its bytes and collectives those of the length that needs most. () for images of one size.
      unknown: what the plan cannot know, a sentence each.

    Example:
      >>> from siglip_jax.planning import Plan
      >>> {"fits", "seconds", "collectives"} <= set(Plan.__dataclass_fields__)
      True
    """

    model: str
    work: str
    recipe: Recipe
    topology: str
    chips: int
    mesh: dict[str, int]
    estimated: str
    versions: dict[str, str]
    fits: bool
    needed: int
    memory: int
    arguments: int | None
    temporaries: int | None
    model_flops: int
    flops: int | None
    cycles: int | None
    seconds: float | None
    exposed_seconds: float | None
    mfu: float | None
    examples_per_second: float | None
    steps: int | None
    days: float | None
    chip_hours: float | None
    collectives: tuple[Collective, ...]
    unknown: tuple[str, ...]
    lengths: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as a dictionary that can be written as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Plan":
        """Returns the plan of a dictionary that `to_dict` made, as JSON holds it.

        Args:
          facts: the dictionary.
        """
        from siglip_jax.training.setup import recipe_with  # with optax, which is optional

        rows: list[dict[str, Any]] = [{**c, "largest": tuple(c["largest"])} for c in facts["collectives"]]
        fields: dict[str, Any] = {**facts, "collectives": tuple(Collective(**row) for row in rows)}
        fields |= {"recipe": recipe_with(Recipe(), facts["recipe"]), "unknown": tuple(facts["unknown"])}
        fields |= {"lengths": tuple(facts["lengths"])}
        return cls(**fields)

    def traffic(self) -> list[dict[str, Any]]:
        """Returns the collectives in groups, those that take longest on the links first.

        Returns:
          A row for each kind, mesh axes and way to overlap: `kind`, `over`, `asynchronous`, `product` (whether a matrix
          product runs meanwhile), `count` of all runs, `bytes` that a chip sends in all, `link_seconds` that they take
          on the links and `exposed_seconds` that nothing hides.
        """
        chip, rows = CHIPS[self.topology.partition(":")[0]], {}
        for c in self.collectives:
            key = (c.kind, c.over, c.asynchronous, c.product)
            row = rows.setdefault(key, dict(zip(("kind", "over", "asynchronous", "product"), key, strict=True)))
            sums = {
                "count": c.count,
                "bytes": c.count * c.bytes,
                "link_seconds": c.count * c.bytes / chip.links,
                "exposed_seconds": exposed_seconds(c, chip.links, chip.clock),
            }
            row.update({name: row.get(name, 0) + value for name, value in sums.items()})
        return sorted(rows.values(), key=lambda row: -row["link_seconds"])


def plan(
    model: str | os.PathLike[str] | PretrainedModule | None,
    topology: str,
    batch: int | None = None,
    recipe: str | Recipe | None = None,
    *,
    examples: int | None = None,
    classes: int | None = None,
    stage: int | None = None,
    **fields: Any,
) -> Plan:
    """Compiles the step of a recipe, or a forward pass, for a machine that need not be there, and says what it takes.

    Nothing is computed, no weights of a released model are read, and no TPU is needed; the extra `tpu` installs
    the compiler. A step of stacked layers (`scan_layers=True`) compiles in seconds to
    minutes, others in minutes.

    Args:
      model: Hub name, directory or file; a module; None: the bundled model.
      topology: generation and shape of the machine: "v5e:16x16", "v5p:8x8x8", "v6e:2x4".
      batch: image-text pairs, or images, over all chips; None: that of the recipe, or 32 for each shard.
      recipe: recipe of the training step, by name or as `siglip_jax.training.Recipe`; None: a forward pass to
        embeddings, in bfloat16 with stacked layers unless fields or a module say otherwise.
      examples: examples of an epoch, for the days of a recipe whose duration is in epochs; None: unknown.
      classes: classes of a recipe that trains a classifier; None: those of the model, or 1,000 if it has none.
      stage: number of the stage to plan, from 1, of a recipe whose losses or images change; None: the last.
      **fields: fields of the recipe to change, as `dtype="bfloat16"`, `remat="full"`, `scan_layers=True` or
        `mesh={"data": 32, "fsdp": 8}`.

    Returns:
      A `Plan`.

    Raises:
      FileNotFoundError: if the model does not exist.
      ValueError: if the topology is unknown, its compiler is not installed, or model, recipe, batch and mesh do not fit
        together.

    Example:
      >>> import siglip_jax
      >>> siglip_jax.plan("google/siglip-base-patch16-224", "v9:2x2")
      Traceback (most recent call last):
      ValueError: topology must be one of v5e, v5p, v6e with a shape, ..., got 'v9:2x2'; write it so
    """
    machine = open_topology(topology)
    from siglip_jax.planning.work import MANY, forward_pass, training_steps  # with optax, which is optional
    from siglip_jax.training.prepare import mesh_of
    from siglip_jax.training.timetable import timetable_of

    name, config, module = _model(model)
    chosen = _recipe(recipe, module, machine, batch, fields)
    if chosen.curation.teacher is not None:
        raise ValueError(
            f"curation.teacher must be None in a plan, which reads no weights, got {chosen.curation.teacher!r}; plan"
            " the recipe finetune, and a forward pass of the teacher"
        )
    mesh = mesh_of(chosen, machine.devices)
    assert mesh is not None
    if recipe is not None:
        flexible = isinstance(config, Siglip2Config)
        stages = timetable_of(chosen, examples or MANY * chosen.batch_size, flexible).stages
        if not 1 <= (stage or 1) <= len(stages):
            raise ValueError(f"stage must be from 1 to {len(stages)}, the stages of this recipe, got {stage}")
        chosen = stages[(stage or 0) - 1].recipe
        works = training_steps(config, chosen, mesh, examples, classes)
    else:
        options: Any = {"dtype": jnp.dtype(chosen.dtype), "scan_layers": chosen.scan_layers, "remat": chosen.remat}
        works = [forward_pass(module.clone(**options), chosen.batch_size, mesh)]
    what = "forward pass" if recipe is None else "training step"
    found = [planned(name, what, chosen, machine, mesh, work) for work in works]
    return found[0] if works[0].patches is None else _over_lengths(found, works, chosen)


def _over_lengths(plans: list[Plan], works: list[Any], recipe: Recipe) -> Plan:
    """Returns the plan of steps of several lengths, which a run draws as often as the recipe names them."""
    shares = [recipe.naflex.lengths.count(work.patches) / len(recipe.naflex.lengths) for work in works]
    largest = max(plans, key=lambda plan: plan.needed)
    rows = tuple(
        {
            "patches": work.patches,
            "examples": work.examples,
            "needed": plan.needed,
            "fits": plan.fits,
            "seconds": plan.seconds,
            "share": share,
        }
        for plan, work, share in zip(plans, works, shares, strict=True)
    )

    def mean(values: list[Any]) -> Any:
        return None if None in values else sum(x * share for x, share in zip(values, shares, strict=True))

    def whole(values: list[Any]) -> Any:
        found = mean(values)
        return None if found is None else round(found)

    seconds, flops = mean([plan.seconds for plan in plans]), whole([plan.model_flops for plan in plans])
    chip = CHIPS[largest.topology.partition(":")[0]]
    examples = mean([work.examples for work in works])
    return dataclasses.replace(
        largest,
        model_flops=flops,
        flops=whole([plan.flops for plan in plans]),
        cycles=whole([plan.cycles for plan in plans]),
        seconds=seconds,
        exposed_seconds=mean([plan.exposed_seconds for plan in plans]),
        lengths=rows,
        **_rates(seconds, flops, examples, largest.steps, largest.chips, chip.peak),
    )


def _rates(
    seconds: float | None, flops: int, examples: float | int, steps: int | None, chips: int, peak: float
) -> dict[str, Any]:
    """Returns the fields of a plan that follow from the seconds of a step; None where they are not known.

    Args:
      seconds: seconds of a step.
      flops: operations of the model in a step, on all chips.
      examples: examples of a step, on all chips.
      steps: steps of the run.
      chips: number of chips.
      peak: operations a second of a chip.
    """
    total = None if seconds is None or steps is None else seconds * steps
    return {
        "mfu": None if seconds is None else flops / (seconds * peak * chips),
        "examples_per_second": None if seconds is None else examples / seconds,
        "days": None if total is None else total / SECONDS_A_DAY,
        "chip_hours": None if total is None else total * chips / SECONDS_AN_HOUR,
    }


def planned(name: str, what: str, recipe: Recipe, machine: Topology, mesh: Mesh, work: Any) -> Plan:
    """Compiles work for a machine and returns its plan.

    Args:
      name: name of the model.
      what: "training step" or "forward pass".
      recipe: recipe of the work.
      machine: machine to compile for.
      mesh: mesh of its devices.
      work: function to compile, a `siglip_jax.planning.work.Work`.
    """
    compiled, refused = None, None
    try:
        compiled = work.function.lower(*work.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        refused = refused_bytes(str(error))
        if refused is None:
            raise
    program = None if compiled is None else read_program(compiled, mesh)
    return _plan(name, what, recipe, machine, mesh, work, program, refused)


def _model(model: str | os.PathLike[str] | PretrainedModule | None) -> tuple[str, Any, PretrainedModule]:
    """Returns name, configuration and module of a model."""
    if isinstance(model, PretrainedModule):
        return type(model).__name__, model.config, model
    name, config, _ = shapes_of(model)
    return name, config, getattr(models, architecture_of(config))(config, dtype=jnp.bfloat16, scan_layers=True)


def _recipe(
    recipe: str | Recipe | None, module: PretrainedModule, machine: Topology, batch: int | None, fields: dict[str, Any]
) -> Recipe:
    """Returns the recipe with the batch and the changed fields."""
    from siglip_jax.training.setup import recipe_with

    if recipe is None:
        dtype: Any = np.dtype(module.dtype).name
        own: dict[str, Any] = {"dtype": dtype, "remat": module.remat, "scan_layers": module.scan_layers}
        chosen = dataclasses.replace(FORWARD, **own)
        batch = batch or EXAMPLES_PER_DEVICE * len(machine.devices)
    else:
        chosen = recipe_with(recipe, {})
    chosen = recipe_with(chosen, {**({} if batch is None else {"batch_size": batch}), **fields})
    check_choice("dtype", chosen.dtype, ("float32", "bfloat16", "float16"))
    return chosen


def _plan(
    name: str,
    what: str,
    recipe: Recipe,
    machine: Topology,
    mesh: Mesh,
    work: Any,
    program: Program | None,
    refused: tuple[int, int] | None,
) -> Plan:
    """Returns the plan of a compiled or refused program."""
    chip, chips = machine.chip, len(machine.devices)
    seconds = exposed = None
    if program is not None and program.cycles:
        exposed = sum((exposed_seconds(c, chip.links, chip.clock) for c in program.collectives), 0.0)
        kernels = program.kernel_flops / (KERNEL_SHARE * chip.peak)
        seconds = program.cycles / chip.clock + kernels + exposed
    needed, memory = (program.peak, chip.memory) if program is not None else refused or (0, 0)
    return Plan(
        model=name,
        work=what,
        recipe=recipe,
        topology=machine.name,
        chips=chips,
        mesh={axis: mesh.shape[axis] for axis in AXES},
        estimated=machine.estimated,
        versions=machine.versions,
        fits=program is not None,
        needed=needed,
        memory=memory,
        arguments=None if program is None else program.arguments,
        temporaries=None if program is None else program.temporaries,
        model_flops=work.flops,
        flops=None if program is None else program.flops,
        cycles=None if program is None else program.cycles,
        seconds=seconds,
        exposed_seconds=exposed,
        steps=work.steps,
        collectives=() if program is None else program.collectives,
        unknown=_unknown(machine, program),
        **_rates(seconds, work.flops, work.examples, work.steps, chips, chip.peak),
    )


def exposed_seconds(collective: Collective, links: float, clock: float) -> float:
    """Returns the time in which a device waits for a collective, in all its runs.

    Args:
      collective: the collective.
      links: bytes per second that a device sends along one axis.
      clock: cycles per second.
    """
    return collective.count * max(collective.bytes / links - collective.hidden_cycles / clock, 0.0)


def _unknown(machine: Topology, program: Program | None) -> tuple[str, ...]:
    """Returns what a plan cannot know, in sentences."""
    found = [
        "reading and preparing data, start-up, checkpoints and evaluation are not in it",
        f"time on the links is bytes at {machine.chip.links / 1e9:g} GB/s, the published rate of one axis, without"
        " latency and traffic of others",
    ]
    if program is not None and program.kernels:
        found.append(
            f"Pallas kernels, of which XLA estimates no time, are taken to run at {KERNEL_SHARE:.0%} of the peak"
        )
    if program is not None and program.uncounted:
        found.append(f"{program.uncounted} loops have an unknown length and count as one iteration")
    return tuple(found)
