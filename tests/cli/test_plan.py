"""`siglip-jax plan`: what it passes on, what it prints, and mistakes."""

import dataclasses
import json
import re
import sys

import pytest

from siglip_jax.assets import EXAMPLES
from siglip_jax.cli.plan import print_found
from siglip_jax.planning import Collective, Plan, largest_batches, plan
from siglip_jax.training import RECIPES, MeshShape

assert plan and largest_batches  # their modules are imported

NAME = "google/siglip-base-patch16-224"
GATHER = Collective("all-gather", "fsdp", 12, 3_000_000, True, 90_000, True, (768, 3072), "encoder/fc1")
WAITING = Collective("reduce-scatter", "fsdp", 12, 50_000_000, False, 0, False, (768, 3072), "encoder/fc1")
PLAN = Plan(
    model=NAME,
    work="training step",
    recipe=dataclasses.replace(RECIPES["scratch-b16"], batch_size=4096, mesh=MeshShape(data=4, fsdp=2)),
    topology="v5e:2x4",
    chips=8,
    mesh={"data": 4, "fsdp": 2, "tensor": 1},
    estimated="estimated by XLA for 8 v5e chips (jax 1, libtpu 2), not measured",
    versions={"jax": "1", "libtpu": "2"},
    fits=True,
    needed=9 * 2**30,
    memory=round(15.75 * 2**30),
    arguments=2**30,
    temporaries=8 * 2**30,
    model_flops=10**15,
    flops=2 * 10**14,
    cycles=2_991_000_000,
    seconds=2.0,
    exposed_seconds=0.006,
    mfu=0.317,
    examples_per_second=2048.0,
    steps=100_000,
    days=2.3148,
    chip_hours=444.4,
    collectives=(GATHER, WAITING),
    unknown=("start-up is not in it",),
)


@pytest.fixture
def asked(monkeypatch):
    """Answers with a plan, and returns what was asked for."""
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def plan(*arguments, **options):
        calls.append((arguments, options))
        return PLAN

    monkeypatch.setattr(sys.modules["siglip_jax.planning.plan"], "plan", plan)
    return calls


def test_options_become_fields_of_the_recipe(run, asked):
    words = ("--batch-size", 4096, "--recipe", "scratch-b16", "--mesh", "fsdp=2", "--remat", "none", "--no-scan-layers")
    assert run("plan", NAME, "--topology", "v5e:2x4", *words, "--examples", 10**6, "--stage", 1).status == 0
    fields = {"examples": 10**6, "stage": 1, "remat": None, "scan_layers": False, "mesh": {"fsdp": 2}}
    assert asked == [((NAME, "v5e:2x4", 4096, "scratch-b16"), fields)]
    run("plan", "--topology", "v6e:2x2", "--dtype", "float32", "--micro-batches", 2)
    assert asked[1] == (
        (None, "v6e:2x2", None, None),
        {"examples": None, "stage": None, "dtype": "float32", "micro_batches": 2},
    )


def test_in_words(run, asked):
    ran = run("plan", NAME, "--topology", "v5e:2x4")
    assert (ran.status, ran.err) == (0, "")
    facts, traffic, end = ran.out.split("\n\n")
    lines = dict(line.split("  ", 1) for line in facts.splitlines() if not line.startswith(" "))
    words = {name: text.strip() for name, text in lines.items()}
    assert words["work"] == "training step, bfloat16, remat full, stacked layers"
    assert words["machine"] == "v5e:2x4, 8 chips, data=4 x fsdp=2 x tensor=1"
    assert words["batch"] == "4,096, 512 a chip" and words["fits"] == "yes: 9.00 GiB of 15.8 GiB a chip"
    assert words["operations"] == "1e+15 of the model; 1.6e+15 in the program"
    assert words["time"] == "2 s, of which 6 ms waiting for the links"
    assert words["share of peak"].startswith("31.7 %") and words["speed"] == "2,048 examples/s, 256.0 a chip"
    assert words["run"] == "100,000 steps, 2.31 days, 444 chip-hours"
    first, second = traffic.splitlines()[1:]
    assert first.split() == ["reduce-scatter", "fsdp", "no", "12", "572", "MiB", "6", "ms", "6", "ms"]
    assert second.split() == ["all-gather", "fsdp", "yes", "12", "34.3", "MiB", "360", "µs", "0"]
    assert end.splitlines() == [*PLAN.unknown, PLAN.estimated]


def test_as_json(run, asked):
    facts = json.loads(run("plan", NAME, "--topology", "v5e:2x4", "--json").out)
    assert facts["estimated"] == PLAN.estimated and facts["recipe"]["mesh"]["fsdp"] == 2
    assert [c["kind"] for c in facts["collectives"]] == ["all-gather", "reduce-scatter"]
    assert Plan.from_dict(facts) == PLAN


def test_what_does_not_fit(run, monkeypatch):
    nothing = dict.fromkeys(("arguments", "temporaries", "flops", "cycles", "seconds", "exposed_seconds", "mfu"))
    nothing |= dict.fromkeys(("examples_per_second", "steps", "days", "chip_hours"))
    small = dataclasses.replace(PLAN, fits=False, needed=17 * 2**30, collectives=(), **nothing)
    monkeypatch.setattr(sys.modules["siglip_jax.planning.plan"], "plan", lambda *a, **k: small)
    out = run("plan", NAME, "--topology", "v5e:2x4").out
    assert "no: 17.0 GiB of 15.8 GiB a chip" in out and "time" not in out and "add --examples" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the following arguments are required: --topology"),
        (("--topology", "v4:2x2"), "topology must be one of v5e, v5p, v6e"),
        (("--topology", "v5e:2x2", "--mesh", "model=2"), "axes must be sizes of at least 1"),
        (("--topology", "v5e:2x2", "--recipe", "best"), "invalid choice"),
    ],
)
def test_mistakes(run, words, message):
    ran = run("plan", *words)
    assert (ran.status, ran.out) == (2, "") and message in ran.err and len(ran.err.splitlines()) == 1


def test_search_prints_the_fastest_first(run, monkeypatch, tmp_path):
    asked = []

    def largest_batches(*arguments, **options):
        asked.append((arguments, {k: v for k, v in options.items() if k != "on_progress"}))
        return [PLAN, dataclasses.replace(PLAN, recipe=dataclasses.replace(PLAN.recipe, remat=None))]

    search = sys.modules["siglip_jax.planning.search"]
    monkeypatch.setattr(search, "largest_batches", largest_batches)
    words = ("plan", NAME, "--topology", "v5e:2x4", "--recipe", "scratch-b16", "--search")
    ran = run(*words, "--mesh", "fsdp=2", "--remat", "full", "--save-plot", tmp_path / "p.png")
    assert (ran.status, ran.err) == (0, "")
    assert asked == [((NAME, "v5e:2x4", "scratch-b16"), {"meshes": [{"fsdp": 2}], "remats": ["full"]})]
    header, first, second, end = ran.out.splitlines()
    assert header.split()[:3] == ["remat", "mesh", "batch"] and end == PLAN.estimated
    cells = "full, data=4 x fsdp=2 x tensor=1, 4,096, 512, 9.00 GiB, 2 s, 31.7 %, 2,048"
    assert ", ".join(re.split(r"  +", first)) == cells
    assert second.split()[0] == "none"
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert len(json.loads(run(*words, "--json").out)) == 2
    monkeypatch.setattr(search, "largest_batches", lambda *a, **k: [])
    assert "must have the memory for one example a shard, got v5e:2x4" in run(*words).err
    for more, given in (((), "no --recipe"), (("--recipe", "lora", "--batch-size", 8), "--batch-size")):
        err = run("plan", NAME, "--topology", "v5e:2x4", "--search", *more).err
        assert "--search must be used with --recipe and without --batch-size" in err and err.strip().endswith(
            f"got {given}"
        )


def test_temporaries_that_are_not_there_at_once_are_said_to_be_so(capsys):
    for needed, words in ((PLAN.needed, "8.00 GiB"), (PLAN.needed - 2**30, "8.00 GiB, not all at once")):
        print_found(dataclasses.replace(PLAN, needed=needed), as_json=False)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  temporaries")]
        assert re.split(r"  +", line)[2] == words, line


def test_a_dry_run_of_training_plans_its_step(run, asked, checkpoint, tmp_path):
    table = tmp_path / "pairs.csv"
    (tmp_path / "a.png").write_bytes((EXAMPLES / "horse.png").read_bytes())
    table.write_text("image,caption\n" + "a.png,a horse\n" * 16)
    words = ("train", "finetune", "--data", table, "--model", checkpoint, "--out", tmp_path / "out", "--batch-size", 8)
    ran = run(*words, "--mesh.fsdp", 2, "--mesh.data", 4, "--dry-run", "--topology", "v5e:2x4")
    assert (ran.status, ran.err) == (0, "")
    ((arguments, options),) = asked
    assert arguments == (str(checkpoint), "v5e:2x4") and (options["examples"], options["classes"]) == (16, None)
    assert options["recipe"].mesh == MeshShape(data=4, fsdp=2)
    assert "mesh: data=4, fsdp=2, tensor=1" in ran.out and "about 9.00 GiB on each device" in ran.out
    assert "fsdp, -" in ran.out and ran.out.splitlines()[-1] == PLAN.estimated
    facts = json.loads(run(*words, "--dry-run", "--topology", "v5e:2x4", "--json").out)
    assert facts["topology"]["chips"] == 8 and facts["memory_per_device"] == PLAN.needed
    ran = run(*words, "--topology", "v5e:2x4")
    assert ran.status == 2 and "--topology must be used with --dry-run, got 'v5e:2x4' alone" in ran.err
