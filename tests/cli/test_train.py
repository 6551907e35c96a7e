"""`siglip-jax train`: what it prints, what it writes, and one line for each mistake."""

import json

import pytest

from tests.support.pairs import write_classes, write_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 1)


@pytest.mark.slow
def test_dry_run_shows_every_parameter_and_stops(run, checkpoint, pairs, tmp_path):
    words = ("train", "finetune", "--data", pairs, "--model", checkpoint, "--out", tmp_path / "out", "--dry-run")
    ran = run(*words, "--batch-size", 8, "--duration", "2 epochs", "--optimizer.rates", "vision_model/.*", 0, ".*", 0.5)
    assert ran.status == 0, ran.err
    assert "vision_model/encoder/layers_*/mlp/fc1/kernel  x 2" in ran.out and "frozen" in ran.out
    assert "5e-06" in ran.out and "4 steps of 8 examples, 2 epochs of 16" in ran.out and "█" in ran.out
    assert not (tmp_path / "out").exists()
    facts = json.loads(run(*words, "--json", "--batch-size", 8, "--lora.rank", 2).out)
    assert facts["all_parameters"] == sum(_size(row["shape"]) for row in facts["parameters"])
    assert facts["steps"] == 20 and facts["memory_per_device"] > 0 and len(facts["schedule"]) == 60


def _log(out, name):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if name in line]


def _size(shape):
    size = 1
    for n in shape:
        size *= n
    return size


@pytest.mark.slow
def test_trains_evaluates_and_leaves_a_model(run, checkpoint, pairs, tmp_path):
    test = write_classes(tmp_path / "test", 1, colours=True)
    out = tmp_path / "out"
    words = ("train", "finetune", "--data", f"{pairs}=2", f"{pairs}=1", "--model", checkpoint, "--out", out)
    words += ("--batch-size", 16, "--micro-batches", 2, "--scan-layers", "--duration", "4 steps", "--log-every", 2)
    words += ("--evaluate", test, "--save-every", 2, "--best", "top1", "--json")
    ran = run(*words)
    assert ran.status == 0, ran.err
    result = json.loads(ran.out)
    assert result["steps"] == 4
    said = ran.err.splitlines()
    assert said[0] == "siglip-jax: compiling the training step, step 1 of 4"
    assert [line.partition(",")[0] for line in said if ": loss" in line] == [
        f"siglip-jax: step {line['step']} of 4: loss {line['loss']:.4g}" for line in _log(out, "loss")
    ]
    assert [line for line in said if "top1" in line] == [
        f"siglip-jax: step {line['step']}: " + ", ".join(f"{k} {v:.4g}" for k, v in line.items() if k != "step")
        for line in _log(out, "top1")
    ]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [2, 4]
    assert {"examples_per_second", "teraflops_per_second", "rate", "data_wait", "temperature"} <= log[0].keys()
    assert [line["step"] for line in log if "top1" in line] == [2, 4]
    assert json.loads((out / "recipe.json").read_text())["micro_batches"] == 2
    scored = run("eval", "zero-shot", test, "--model", result["model"], "--json")
    assert scored.status == 0, scored.err
    assert json.loads(scored.out)["metrics"]["top1"] == pytest.approx(log[-1]["top1"])
    again = run(*words)
    assert again.status == 0 and json.loads(again.out)["steps"] == 4
    other = run(*words, "--seed", 1)
    assert other.status == 2 and "to resume the run, seed must be 0, got 1" in other.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train",), "the recipe must be one of acid, classification, finetune, high-resolution, linear-probe"),
        (("train", "finetun"), "got 'finetun'; see siglip-jax train --help"),
        (("train", "finetune"), "Missing from siglip-jax train finetune"),
        (("train", "finetune", "--data", "nowhere.jsonl", "--model", "{m}", "--out", "o"), "nowhere.jsonl"),
        (("train", "finetune", "--data", "{d}", "--model", "nowhere", "--out", "o"), "nowhere: no such"),
        (("train", "finetune", "--data", "{d}", "--model", "{m}", "--out", "o", "--batch-sze", "4"), "--batch-sze"),
        (("train", "finetune", "--data", "{d}", "--model", "{m}", "--out", "o", "--batch-size", "many"), "many"),
        (("train", "finetune", "--data", "{d}", "--model", "{m}", "--out", "o", "--duration", "soon"), "'soon'"),
        (
            ("train", "finetune", "--data", "{d}", "--model", "{m}", "--out", "o", "--lr", "1e-3"),
            "there is no option --lr; did you mean --optimizer.rate? see siglip-jax train finetune --help",
        ),
        (
            ("train", "finetune", "--data", "{d}", "--model", "{m}", "--out", "o", "--mesh", "fspd=2"),
            "axes must be sizes of at least 1 for data, fsdp, tensor, got 'fspd=2'; write data=4,fsdp=2",
        ),
        (
            ("train", "finetune", "--data", "{d}", "--modle", "{m}", "--out", "o"),
            "there is no option --modle; did you mean --model?",
        ),
        (
            ("train", "finetune", "--data", "{d}", "--model", "{m}", "--out", "o", "--best", "top1"),
            "best must be used with evaluate, got 'top1' alone; add evaluate (--evaluate DATA)",
        ),
        (
            ("train", "lora", "--data", "{d}", "--model", "{m}", "--out", "o", "--lora.rank", "0"),
            "lora.rank must be 1 or more where optimizer.rates train low-rank additions, got 0",
        ),
        (
            ("train", "finetune", "--data", "{d}", "--model", "{m}", "--out", "o", "--batch-size", "1000000000"),
            "batch_size must be one whose images fit in memory, got 1000000000",
        ),
        (
            ("train", "finetune", "--data", "{d}", "--model", "{m}", "--out", "gs://bucket/run"),
            "--out must be a path on this machine, got the URL gs://bucket/run",
        ),
        (
            ("train", "classification", "--data", "{d}", "--model", "{m}", "--out", "o"),
            "images must have labels to train a classifier, got captions; give data with labels",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(run, checkpoint, pairs, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    ran = run(*(word.format(m=checkpoint, d=pairs) for word in words))
    assert ran.status == 2 and said in ran.err
    assert ran.err.count("\n") == 1 and "│" not in ran.err and not ran.out
    assert not list(tmp_path.iterdir())


class TestMemory:
    @pytest.fixture
    def plan(self, run, checkpoint, pairs, monkeypatch):
        """A function that returns what a dry run prints on a device of so many bytes."""

        def printed(available, *words):
            monkeypatch.setattr("siglip_jax.training.plan.device_memory", lambda: available)
            words = ("--out", "o", "--dry-run", "--batch-size", 16, *words)
            ran = run("train", "finetune", "--data", pairs, "--model", checkpoint, *words)
            assert ran.status == 0, ran.err
            return ran.out.strip()

        return printed

    def test_a_step_that_fits_is_left_alone(self, plan):
        assert plan(2**40).endswith("GiB on each device, the batch included")

    def test_a_mesh_is_spelled_as_for_info_and_plan(self, plan):
        sizes = [json.loads(plan(2**40, *words, "--json"))["mesh"] for words in (("--mesh", "data=2,fsdp=4"),)]
        sizes += [json.loads(plan(2**40, "--mesh=fsdp=4", "--mesh.data", "2", "--json"))["mesh"]]
        assert sizes == [{"data": 2, "fsdp": 4, "tensor": 1}] * 2

    def test_a_smaller_step_is_proposed(self, plan):
        narrow = json.loads(plan(2**40, "--dtype", "bfloat16", "--json"))["memory_per_device"]
        assert plan(narrow).endswith("GiB; a step fits with --dtype bfloat16")
        least = json.loads(plan(2**40, "--dtype", "bfloat16", "--remat", "full", "--json"))["memory_per_device"]
        assert plan(least).endswith("GiB; a step fits with --dtype bfloat16 --remat full")
        assert plan(least - 1).endswith("GiB; a step fits with --dtype bfloat16 --remat full --micro-batches 2")

    def test_nothing_is_proposed_where_nothing_fits(self, plan):
        assert plan(1000).endswith("use a smaller batch, or more devices with --mesh fsdp=N")
