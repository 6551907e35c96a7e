"""Stages of a run: what they make, and that a killed run ends with the bits of one that was not."""

import json

import numpy as np
import pytest

import siglip_jax
from siglip_jax.models.positions import sincos_positions
from siglip_jax.training import Captioning, Growth, Late, Naflex, Optimizer, Recipe, train
from tests.support.pairs import write_pairs
from tests.support.staged_run import STEPS, TEACHER_FROM, run_until_done
from tests.support.tiny_checkpoint import write_checkpoint

KILLS = 1


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A model, data, compiled programs, and the uninterrupted run."""
    home = tmp_path_factory.mktemp("stages")
    model, data = write_checkpoint(home / "model", text_length=16), write_pairs(home / "pairs", 1)
    assert run_until_done((model, data, home / "whole"), home / "cache") == 0
    return home, model, data


@pytest.mark.slow
def test_killed_runs_end_like_the_whole_one(setting):
    home, model, data = setting
    killed = run_until_done((model, data, home / "killed"), home / "cache", KILLS, longest=0.8)
    assert killed == KILLS
    with np.load(home / "whole" / "final.npz") as whole, np.load(home / "killed" / "final.npz") as found:
        assert whole.files == found.files
        for name in whole.files:
            np.testing.assert_array_equal(found[name], whole[name], name)
        groups = {name.split("['")[1].partition("']")[0] for name in whole.files if name.count("['")}
    expected = {"decoder", "distillation_head", "masked_head", "mask_token", "teacher", "vision_model"}
    assert expected <= groups
    assert (home / "killed" / "log.jsonl").read_text().count(f'"step": {STEPS},') == 1


@pytest.mark.slow
def test_what_the_stages_made(setting):
    home, _, _ = setting
    lines = (home / "whole" / "log.jsonl").read_text().splitlines()
    with_teacher = [number for number, line in enumerate(lines, 1) if "distillation_loss" in line]
    assert with_teacher == list(range(TEACHER_FROM + 1, STEPS + 1))
    assert all("captioning_loss" in line for line in lines)
    with np.load(home / "whole" / "final.npz") as arrays:
        table = "['vision_model']['embeddings']['position_embedding']['embedding']"
        tables = {name: arrays[name].shape[0] for name in arrays.files if name.endswith(table)}
        counts = {int(arrays[name]) for name in arrays.files if name.endswith(".count")}
    assert list(tables.values()) == [9] * 5  # of the tower, its moving average, its teacher, and both moments
    assert counts == {STEPS}
    model = siglip_jax.load(home / "whole" / "model")
    assert model.config.vision_config.image_size == 24
    assert sorted(model.params) == ["logit_bias", "logit_scale", "text_model", "vision_model"]
    assert model.processor.image_processor.size == {"height": 24, "width": 24}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model and data for runs on one device of this process, which compile fast."""
    home = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("siglip_jax.training.setup.mesh_of", lambda recipe: None)
        yield write_checkpoint(home / "model", text_length=16), write_pairs(home / "pairs", 1), home


GROWN = Recipe(
    loss="softmax",
    fresh=".*",
    positions="sincos",
    average_pooling=True,
    resolution=16,
    batch_size=16,
    duration="4 steps",
    optimizer=Optimizer(rate=1e-3, weight_decay=1e-4, average=0.9),
    growth=Growth((24,), durations=("3 steps",), batch_sizes=(8,), rates=(1e-4,), warmups=("1 step",)),
    scan_layers=True,
)


@pytest.mark.slow
def test_a_run_of_growing_images(small):
    model, data, home = small
    run = train(data, model, home / "grown", GROWN, log_every=1)
    vision = run.model.config.vision_config
    assert (vision.image_size, vision.vision_use_head, vision.average_pooling) == (24, False, True)
    # Positions are those of nine patches, although the checkpoint had sixteen, and are not trained.
    table = run.params["vision_model"]["embeddings"]["position_embedding"]["embedding"]
    np.testing.assert_array_equal(table, sincos_positions((3, 3), 32))
    assert "head" not in run.params["vision_model"]
    rates = [line["rate"] for line in run.metrics if "rate" in line]
    assert rates[:4] == pytest.approx([5e-4 * (1 + np.cos(np.pi * i / 4)) for i in range(1, 5)], abs=1e-9)
    assert rates[4:] == pytest.approx([1e-4, 5e-5, 0.0], abs=1e-9)
    opened = siglip_jax.load(run.directory / "model")
    assert opened.encode_image([np.zeros((30, 30, 3), np.uint8)]).shape == (1, 32)


def test_boxes_of_data_without_them_are_refused(small):
    model, data, home = small
    with pytest.raises(ValueError, match="captioning.boxes must be 0 for data without boxes, got 1; give data with"):
        train(data, model, home / "none", "finetune", captioning={"weight": 1.0, "boxes": 1.0}, batch_size=8)
    assert not (home / "none").exists()


FLEXIBLE = Recipe(
    batch_size=8,
    duration="5 steps",
    optimizer=Optimizer(rate=1e-3, average=0.9),
    captioning=Captioning(weight=1.0, layers=1, boxes=0.5),
    late=Late(start="80 percent", naflex=True, stretch=3.75),
    naflex=Naflex(lengths=(9, 20), full_batch=9),
    scan_layers=True,
)


@pytest.mark.slow
def test_a_run_that_ends_at_variable_resolution(small):
    """Every other image has boxes; the losses of boxes go on with those of captions."""
    _, pairs, home = small
    model, data = write_checkpoint(home / "digits", text_length=24, digits=True), pairs.with_name("boxes.jsonl")
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    for line in lines[::2]:
        line |= {"boxes": [[0.1, 0.2, 0.8, 0.9], [0.4, 0.4, 0.6, 0.6]], "box_captions": ["a form", "its middle"]}
    data.write_text("\n".join(map(json.dumps, lines)))
    run = train(data, model, home / "flexible", FLEXIBLE, log_every=1)
    assert (run.total_steps, type(run.model)) == (8, siglip_jax.Siglip2Model)
    lengths = [line["patches"] for line in run.metrics if "patches" in line]
    assert sorted(lengths) == [9, 9, 20, 20]
    for name in ("captioning", "referring", "grounded"):
        assert all(0 < line[f"{name}_loss"] < 20 for line in run.metrics), name
    opened = siglip_jax.load(run.directory / "model")
    assert opened.config.vision_config.num_patches == 16
    assert opened.encode_image([np.zeros((16, 40, 3), np.uint8)]).shape == (1, 32)
