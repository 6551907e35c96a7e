"""`siglip_jax.training.train` from Python: its result, its callbacks, interruption, and fields of a recipe."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

import siglip_jax
from siglip_jax._lock import locked
from siglip_jax.data import open_source
from siglip_jax.training import RECIPES, Recipe, dry_run, train
from siglip_jax.training.setup import recipe_with
from tests.support.pairs import write_classes, write_pairs

pytestmark = pytest.mark.slow

FIELDS = {"batch_size": 8, "duration": "4 steps", "optimizer": {"rate": 1e-3}}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 1)


@pytest.fixture(scope="module")
def done(checkpoint, pairs, tmp_path_factory):
    """A whole run, with what it called back."""
    said: dict[str, list] = {"metrics": [], "progress": []}
    out = tmp_path_factory.mktemp("run") / "out"
    run = train(
        pairs,
        checkpoint,
        out,
        log_every=2,
        on_metrics=said["metrics"].append,
        on_progress=lambda *seen: said["progress"].append(seen),
        **FIELDS,
    )
    return run, said


@pytest.mark.slow
def test_returns_the_model_that_it_wrote(done):
    run, _ = done
    assert (run.steps, run.total_steps, run.stopped) == (4, 4, False)
    written = siglip_jax.load(run.directory / "model")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), run.params, written.params)
    ids = run.processor(text=["a cat"])["input_ids"]
    features = run.model.apply({"params": run.params}, ids, method="get_text_features")
    embeds = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(embeds, written.encode_text("a cat"), atol=1e-5)


def test_metrics_are_the_lines_of_the_log(done):
    run, said = done
    assert run.metrics == said["metrics"]
    assert run.metrics == [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in run.metrics] == [2, 4]
    assert said["progress"] == [(0, 4), (2, 4), (4, 4)]


def test_a_finished_run_is_not_run_again(done, checkpoint, pairs):
    run, _ = done
    again = train(pairs, checkpoint, run.directory, log_every=2, **FIELDS)
    assert (again.steps, again.stopped, again.metrics) == (4, False, [])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), run.params, again.params)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_bits(done, checkpoint, pairs, tmp_path):
    """As in a notebook: the cell is interrupted, the same call again goes on."""

    def interrupt(line):
        if line["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    part = train(pairs, checkpoint, tmp_path / "out", log_every=2, on_metrics=interrupt, **FIELDS)
    assert part.stopped and 2 <= part.steps < 4
    assert not (tmp_path / "out" / "model").exists()
    rest = train(pairs, checkpoint, tmp_path / "out", log_every=2, **FIELDS)
    assert not rest.stopped and rest.steps == 4
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), rest.params, done[0].params)


def test_changed_captions_are_other_data_and_nothing_is_written(done, checkpoint, pairs, tmp_path):
    data = shutil.copytree(pairs.parent, tmp_path / "pairs") / pairs.name
    assert train(data, checkpoint, done[0].directory, **FIELDS).steps == 4  # a copy in another folder is the same
    data.write_text(data.read_text().replace("red", "tan"))
    before = (done[0].directory / "recipe.json").read_bytes()
    with pytest.raises(ValueError, match="to resume the run, the data must be those of this run, got others"):
        train(data, checkpoint, done[0].directory, **FIELDS)
    with pytest.raises(ValueError, match="seed must be 0, got 1, the data must be those"):
        train(data, checkpoint, done[0].directory, seed=1, **FIELDS)
    with pytest.raises(ValueError, match="to resume the run, batch_size must be 8, got 16; give another"):
        train(pairs, checkpoint, done[0].directory, **FIELDS | {"batch_size": 16})
    assert (done[0].directory / "recipe.json").read_bytes() == before


def test_a_changed_processor_is_another_run(checkpoint, done, pairs, tmp_path):
    changed = shutil.copytree(checkpoint, tmp_path / "model")
    path = changed / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.4, 0.4, 0.4]}))
    with pytest.raises(ValueError, match="the processor must be that of this run, got another"):
        train(pairs, changed, done[0].directory, **FIELDS)


def test_other_fields_are_another_run(done, checkpoint, pairs):
    with pytest.raises(ValueError, match="to resume the run, seed must be 0, got 1"):
        train(pairs, checkpoint, done[0].directory, seed=1, **FIELDS)


def test_a_second_run_into_the_same_directory_is_refused(checkpoint, pairs, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / ".train.lock", "a training run"):
        with pytest.raises(BlockingIOError, match=rf"out: a training run must be .* got process {os.getpid()} on "):
            train(pairs, checkpoint, tmp_path / "out", **FIELDS)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".train.lock"]


def test_a_batch_larger_than_the_data_warns(checkpoint, pairs):
    with pytest.warns(UserWarning, match=r"^batch_size is 80, more than the 16 examples of the data: .* are 2 steps;"):
        facts = dry_run(pairs, checkpoint, batch_size=80, duration="10 epochs")
    assert facts["steps"] == 2


def test_losses_that_start_later_are_in_the_plan_and_refused_at_once(checkpoint, pairs):
    teacher = {"weight": 1.0, "masked_weight": 0.25, "start": "50 percent", "prototypes": 8, "hidden": 8}
    facts = dry_run(pairs, checkpoint, self_distillation=teacher | {"bottleneck": 4, "views": 2}, **FIELDS)
    assert [stage["losses"] for stage in facts["stages"]] == [["sigmoid"], ["sigmoid", "distillation", "masked"]]
    rows = {row["loss"]: row for row in facts["losses"]}
    assert set(rows) == {"sigmoid", "teacher", "distillation", "masked"}
    for row in rows.values():
        assert row["bytes"] > 0 and row["flops"] > 0, row
    assert {row["parameter"].partition("/")[0] for row in facts["parameters"]} >= {"teacher", "masked_head"}
    frozen = {"rate": 1e-3, "rates": (("vision_model/.*", 0.0), (".*", 1.0))}
    with pytest.raises(ValueError, match="optimizer.rates must train vision_model/.* with self_distillation"):
        dry_run(pairs, checkpoint, self_distillation=teacher, **FIELDS | {"optimizer": frozen})


def test_memory_is_that_of_the_stage_that_needs_most(checkpoint, pairs):
    def needed(**fields):
        return dry_run(pairs, checkpoint, **FIELDS | fields)["memory_per_device"]

    small, large = needed(), needed(resolution=128)
    late = needed(late={"resolution": 128, "start": "50 percent"})
    growth = {"durations": ["2 steps"], "batch_sizes": [8], "rates": [1e-4], "warmups": ["1 step"]}
    grown = needed(growth={"resolutions": [128], **growth})
    shrunk = needed(growth={"resolutions": [16], **growth})
    assert small < 0.7 * large
    assert shrunk == small
    table = 4 * 4 * (256 - 16) * 32  # bytes of positions, gradient and moments that large images have from the start
    assert late == grown == large - table


def test_best_is_a_metric_of_an_evaluation(checkpoint, pairs, tmp_path):
    with pytest.raises(ValueError, match="best must be used with evaluate, got 'top1' alone"):
        train(pairs, checkpoint, tmp_path / "out", best="top1", **FIELDS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["list", "weights", "mapping", "source"])
def test_every_kind_of_data(checkpoint, pairs, kind):
    data = {
        "list": [pairs, pairs],
        "weights": [(pairs, 2.0), (pairs, 1.0)],
        "mapping": {pairs: 1.0},
        "source": open_source(pairs),
    }[kind]
    facts = dry_run(data, checkpoint, **FIELDS)
    assert (facts["steps"], facts["batch_size"], facts["peak_rate"]) == (4, 8, 1e-3)
    json.dumps(facts, allow_nan=False)


def test_rows_of_the_same_image_are_counted(checkpoint, pairs, tmp_path):
    """Before the run where the table names them, and in each line of the log."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()][:4]
    lines = [f"{row['image']},{caption}" for row in rows for caption in row["captions"]]
    table = pairs.with_name("rows.csv")
    table.write_text("\n".join(["image,caption", *lines]))
    facts = dry_run(table, checkpoint, **FIELDS)
    assert (facts["examples"], facts["images"]) == (8, 4)
    assert facts["classes"] == []
    run = train(table, checkpoint, tmp_path / "out", log_every=4, **FIELDS)
    assert [line["repeated_images"] for line in run.metrics] == [4.0]


@pytest.mark.slow
def test_evaluates_on_an_opened_source(checkpoint, pairs, tmp_path):
    test = open_source(write_classes(tmp_path / "test", 1, colours=True))
    run = train(pairs, checkpoint, tmp_path / "out", evaluate=test, save_every=2, log_every=4, **FIELDS)
    assert [line["step"] for line in run.metrics if "top1" in line] == [2, 4]


class TestFields:
    def test_nested_and_dotted_are_the_same(self):
        nested = recipe_with("finetune", {"optimizer": {"rate": 2.0, "beta1": 0.5}, "batch_size": 4})
        assert nested == recipe_with("finetune", {"optimizer.rate": 2.0, "optimizer.beta1": 0.5, "batch_size": 4})
        assert nested.optimizer.rate == 2.0 and nested.optimizer.beta2 == RECIPES["finetune"].optimizer.beta2
        assert recipe_with(nested, {}) is not None and recipe_with(nested, {}) == nested

    def test_rules_may_be_lists(self):
        changed = recipe_with(Recipe(), {"optimizer": {"rates": [[".*/bias", 0.0], [".*", 1.0]]}})
        assert changed.optimizer.rates == ((".*/bias", 0.0), (".*", 1.0))
        hash(changed)

    @pytest.mark.parametrize(
        ("recipe", "fields", "message"),
        [
            ("finetun", {}, "recipe must be one of .*'finetune'.*, got 'finetun'"),
            ("finetune", {"batchsize": 4}, "unknown argument 'batchsize'; did you mean 'batch_size'"),
            ("finetune", {"optimizer": {"rat": 1.0}}, "recipe.optimizer: unknown argument 'rat'; did you mean 'rate'"),
            ("finetune", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ],
    )
    def test_mistakes(self, recipe, fields, message):
        with pytest.raises(ValueError, match=message):
            recipe_with(recipe, fields)
