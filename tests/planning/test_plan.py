"""What the compiler of TPUs says of small programs, for machines that are not there."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from siglip_jax import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel, SiglipVisionModel
from siglip_jax.checkpoints.keymap import architecture_of, key_table
from siglip_jax.cli.plan import rows_of
from siglip_jax.models.cost import estimate, image_flops, placements, step_flops
from siglip_jax.parallel.mesh import mesh_over
from siglip_jax.planning import Plan, plan
from siglip_jax.planning.program import read_program, refused_bytes
from siglip_jax.planning.topology import open_topology
from siglip_jax.planning.work import inputs_of
from siglip_jax.training import Captioning, Late, Naflex, Recipe, SelfDistillation
from siglip_jax.training.costs import further_flops
from siglip_jax.training.flexible import late_config
from tests.support import plans
from tests.support.plans import CONFIG, FORWARD, TRAINED, compiled, facts_of, versions_of

SIZES = {"data": 2, "fsdp": 4}


def check_golden(program, found):
    """Compares a program with the facts that are held fixed: all for known versions, else those of any."""
    golden, facts = json.loads(plans.FILE.read_text())[program], facts_of(found)
    known = golden.get(versions_of(found))
    if known is not None:
        assert facts == known, "the program has changed; if that is meant, run python -m tests.support.plans"
        return
    other = next(iter(golden.values()))
    assert (facts["arguments"], facts["flops"]) == (other["arguments"], other["flops"])


@pytest.mark.slow
def test_a_training_step_over_eight_chips():
    found = compiled("step")
    check_golden("step", found)
    assert found.fits and found.work == "training step" and found.chips == 8 and found.mesh == {**SIZES, "tensor": 1}
    assert found.steps == round(3e9 / TRAINED) and found.days == pytest.approx(found.steps * found.seconds / 86_400)
    assert found.chip_hours == pytest.approx(8 * 24 * found.days)

    # Operations: loops multiplied out, on all chips, against the model's own count; no product is repeated.
    assert found.model_flops == step_flops(CONFIG, TRAINED, TRAINED)
    assert found.flops * 8 == pytest.approx(found.model_flops, rel=0.02)
    assert found.mfu == pytest.approx(found.model_flops / (found.seconds * 8 * 197e12))

    # Memory: what `info --mesh` estimates without a compiler.
    table = placements({row.path: row.shape for row in key_table(CONFIG, architecture_of(CONFIG))}, SIZES)
    memory = estimate(CONFIG, table, SIZES, TRAINED, training=True, dtype=jnp.bfloat16)
    exact = memory.parameters + memory.moments
    pixels, ids = 56 * 56 * 3, 4 * 16
    # On top come scalars, and the padding of rows of 144 and 544 numbers to multiples of 128.
    assert 1 <= found.arguments / (exact + TRAINED // 8 * (pixels + ids)) < 2
    temporaries = memory.gradients + memory.activations + memory.workspace + memory.loss
    assert 0.5 < temporaries / found.temporaries < 2.0

    # Traffic: parameters are gathered over fsdp, the batch never; the ring computes while it passes texts on.
    gathers = [c for c in found.collectives if c.kind == "all-gather"]
    assert gathers and {c.over for c in gathers} == {"fsdp"}
    rows = {TRAINED, TRAINED // 2}  # of the whole batch, and of what would be gathered over fsdp alone
    assert not any(rows & set(c.largest) for c in gathers)
    ring = [c for c in found.collectives if c.kind == "collective-permute"]
    assert ring and all(c.asynchronous for c in ring)
    embeddings = [c for c in ring if c.largest == (TRAINED // 8, 144)]
    assert max(c.count for c in embeddings) >= 6 and all(c.product for c in embeddings if c.count > 1)
    assert {c.over for c in ring} == {"ring"}
    assert sum(row["bytes"] for row in found.traffic()) == sum(c.count * c.bytes for c in found.collectives)
    exposed = sum(row["exposed_seconds"] for row in found.traffic())
    assert found.exposed_seconds == pytest.approx(exposed) and exposed < found.seconds


@pytest.mark.slow
def test_a_scan_is_planned_like_its_layers():
    stacked, separate = compiled("stacked"), compiled("separate")
    check_golden("stacked", stacked)
    check_golden("separate", separate)
    assert 0.5 < stacked.seconds / separate.seconds < 2.0
    assert stacked.flops == separate.flops
    assert stacked.model_flops == FORWARD * image_flops(CONFIG.vision_config)
    assert stacked.flops * 4 == pytest.approx(stacked.model_flops, rel=0.02)
    assert stacked.work == "forward pass" and stacked.steps is None and stacked.days is None


@pytest.mark.slow
def test_bytes_are_those_of_the_compiler(monkeypatch):
    machine = open_topology("v5e:2x2")
    mesh = mesh_over(machine.devices, 4)
    where = NamedSharding(mesh, PartitionSpec(("data",)))
    x = jax.ShapeDtypeStruct((4 * 1000, 300), jnp.bfloat16, sharding=where)
    made = jax.jit(lambda x: (jnp.tanh(x) @ x.T).sum(0), out_shardings=where).lower(x).compile()
    found, memory = read_program(made, mesh), made.memory_analysis()
    assert found.arguments == memory.argument_size_in_bytes and found.temporaries == memory.temp_size_in_bytes
    assert found.outputs == memory.output_size_in_bytes
    together = found.arguments + found.outputs + found.temporaries
    assert found.peak == together <= memory.peak_memory_in_bytes
    sizes = {name: getattr(memory, name) for name in dir(memory) if name.endswith("_in_bytes")}
    less = SimpleNamespace(**sizes | {"peak_memory_in_bytes": together - 1})
    monkeypatch.setattr(type(made), "memory_analysis", lambda self: less)
    assert read_program(made, mesh).peak == together - 1
    assert found.flops == 2 * 1000 * 4000 * 300 and found.cycles > 0
    (gathered,) = (c for c in found.collectives if c.kind == "all-gather")
    assert gathered.over == "data" and gathered.count == 1 and gathered.bytes == 3 * 1000 * 300 * 2


@pytest.mark.slow
def test_what_does_not_fit_says_how_much_it_would_need():
    tower = SiglipVisionModel(CONFIG.vision_config.replace(num_hidden_layers=1), scan_layers=True)
    found = plan(tower, "v5e:2x2", 2**21)
    assert not found.fits and found.needed > found.memory == round(15.75 * 2**30)
    assert (found.seconds, found.temporaries, found.collectives, found.mfu) == (None, None, (), None)
    assert json.loads(json.dumps(found.to_dict()))["fits"] is False


def test_the_messages_of_the_compiler_are_understood():
    gib = 2**30
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded hbm"
    assert refused_bytes(used) == (17.5 * gib, 15.75 * gib)
    total = (
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (512.00M) exceeds available HBM (15.75G)."
    )
    assert refused_bytes(total) == (gib // 2, 15.75 * gib)
    assert refused_bytes("INVALID_ARGUMENT: Used 17.50G of 15.75G hbm") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, "v8:2x2"), "topology must be one of v5e, v5p, v6e with a shape, .* got 'v8:2x2'"),
        ((None, "v5e"), "topology must be one of .* got 'v5e'"),
        ((None, "h100:8"), "topology must be one of TPUs, .* got 'h100:8'; .* 'jax\\[cuda12\\]'"),
        ((None, "v5e:3x5"), "topology must be a shape that the compiler knows, got 'v5e:3x5' .*; change it"),
        ((None, "v5e:2x2", 6), "batch_size must be a multiple of 4 devices"),
        ((None, "v5e:2x2", 8, "lora-all"), "recipe must be one of"),
    ],
)
def test_what_cannot_be_planned(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        plan(*arguments)
    assert "\n" not in str(error.value)


def test_a_recipe_needs_a_whole_model():
    tower = SiglipVisionModel(CONFIG.vision_config)
    with pytest.raises(
        ValueError, match="the model of a recipe must be a whole SigLIP model, got a SiglipVisionConfig"
    ):
        plan(tower, "v5e:2x2", 8, "finetune")
    flexible = Siglip2Model(Siglip2Config())
    with pytest.raises(ValueError, match="late must not be used with a model of variable resolution"):
        plan(flexible, "v5e:2x2", 8, "finetune", **{"late.resolution": 384})


@pytest.mark.slow
def test_steps_of_several_lengths_are_planned_one_by_one():
    late = Late(start="50 percent", naflex=True)
    recipe = Recipe(duration="12 steps", late=late, naflex=Naflex((20, 40, 20), full_batch=20), scan_layers=True)
    found = plan(SiglipModel(CONFIG), "v5e:2x2", 64, recipe)
    rows = [(row["patches"], row["examples"], row["fits"]) for row in found.lengths]
    assert rows == [(20, 64, True), (40, 32, True)]
    assert [row["share"] for row in found.lengths] == pytest.approx([2 / 3, 1 / 3])
    short, long = found.lengths
    assert found.needed == max(short["needed"], long["needed"])
    assert found.seconds == pytest.approx((2 * short["seconds"] + long["seconds"]) / 3)
    assert found.examples_per_second == pytest.approx((2 * 64 + 32) / 3 / found.seconds)
    assert (found.steps, found.days) == (12, pytest.approx(12 * found.seconds / 86_400))
    flops = [step_flops(late_config(CONFIG, late), n, n, patches=length) for length, n in ((20, 64), (40, 32))]
    assert found.model_flops == round((2 * flops[0] + flops[1]) / 3)
    assert 4 * found.flops == pytest.approx(found.model_flops, rel=0.03)
    assert Plan.from_dict(json.loads(json.dumps(found.to_dict()))).lengths == found.lengths
    assert [name for name, _ in rows_of(found)].count("  patches") == 2


def test_the_inputs_are_those_of_the_module():
    for config in (SiglipConfig(), Siglip2Config()):
        shapes = {name: x.shape for name, x in inputs_of(config, 3).items()}
        assert shapes["input_ids"] == (3, config.text_config.max_position_embeddings)
        assert set(shapes) >= {"pixel_values"} and all(shape[0] == 3 for shape in shapes.values())
    assert set(inputs_of(CONFIG.text_config, 2)) == {"input_ids"}
    assert inputs_of(CONFIG.vision_config, 2)["pixel_values"].shape == (2, 56, 56, 3)


JOINT = Recipe(
    batch_size=32,
    duration="10 steps",
    dtype="bfloat16",
    scan_layers=True,
    captioning=Captioning(weight=1.0),
    self_distillation=SelfDistillation(
        weight=1.0, masked_weight=0.25, start="80 percent", views=2, prototypes=256, hidden=128, bottleneck=64
    ),
)


@pytest.mark.slow
def test_the_losses_of_a_teacher_and_of_captions_take_the_operations_that_are_counted():
    found = plan(SiglipModel(CONFIG), "v5e:2x2", recipe=JOINT)
    further = further_flops(JOINT, CONFIG)
    assert sorted(further) == ["captioning", "distillation", "masked", "teacher"]
    assert found.model_flops == step_flops(CONFIG, 32, 32) + sum(further.values())
    assert 4 * found.flops == pytest.approx(found.model_flops, rel=2e-3)
    assert "all-gather" not in {c.kind for c in found.collectives}  # neither of the batch nor of what is compared


def test_a_stage_must_be_one_of_the_recipe():
    with pytest.raises(ValueError, match="stage must be from 1 to 2, the stages of this recipe, got 3"):
        plan(SiglipModel(CONFIG), "v5e:2x2", recipe=JOINT, stage=3)
    with pytest.raises(ValueError, match="curation.teacher must be None in a plan, which reads no weights, got ''"):
        plan(SiglipModel(CONFIG), "v5e:2x2", recipe="acid")
