"""Embeddings of locked images are reused only for the weights, the processor and the data that made them."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from siglip_jax.data import open_source
from siglip_jax.processing import SiglipProcessor
from siglip_jax.training import run
from siglip_jax.training.assembly import make_objective
from siglip_jax.training.precomputed import precompute_image_embeds, tower_fingerprint
from siglip_jax.training.prepare import make_transform, prepare_model
from siglip_jax.training.processors import processor_fingerprint
from siglip_jax.training.recipes import RECIPES
from tests.support.pairs import write_pairs
from tests.support.processes import compiled_in

pytestmark = pytest.mark.slow

FIELDS = {"batch_size": 16, "duration": "2 steps", "fresh": None}
LIT = dataclasses.replace(RECIPES["lit"], fresh=None)


@pytest.fixture(scope="module")
def model(checkpoint):
    return prepare_model(LIT, checkpoint)


KILLED = """
import os, signal, sys
from siglip_jax.training import run
run.make_state = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # after the images, before the first checkpoint
run.train(*sys.argv[1:], "lit", **{fields})
"""


class Embedded(Exception):
    """Raised in place of the first step."""


def test_a_run_killed_before_its_first_checkpoint_leaves_nothing_to_other_data(checkpoint, tmp_path, monkeypatch):
    first, second = write_pairs(tmp_path / "a" / "pairs", 1, seed=0), write_pairs(tmp_path / "b" / "pairs", 1, seed=1)
    out = tmp_path / "out"
    words = (first, checkpoint, out)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED.format(fields=FIELDS), *map(str, words)],
        env=os.environ | compiled_in(tmp_path / "cache"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(out.rglob("image_embeds/**/*.npy"))) == 1 and not (out / "checkpoints").exists()

    def stop(step, state, data, *args, **kwargs):
        raise Embedded(next(data.batches()).arrays["image_embeds"])

    monkeypatch.setattr(run, "run_loop", stop)
    batches = []
    for directory in (out, tmp_path / "clean"):
        with pytest.raises(Embedded) as caught:
            run.train(second, checkpoint, directory, "lit", **FIELDS)
        batches.append(caught.value.args[0])
    np.testing.assert_array_equal(*batches)


class TestReuse:
    @pytest.fixture
    def embedded(self, model, tmp_path):
        """A function that embeds the images of a source and returns how many it had to."""

        def run(source, params=None, made_by="weights"):
            transform = make_transform(LIT, model.processor)
            objective = make_objective(LIT, model, transform, None)
            computed = []
            original = objective.prepare
            counted = dataclasses.replace(objective, prepare=lambda *args: computed.append(1) or original(*args))
            params = model.params if params is None else params
            precompute_image_embeds(counted, params, source, transform, tmp_path / "embeds", made_by=made_by)
            return len(computed)

        return run

    def test_the_same_data_and_weights_are_embedded_once(self, embedded, tmp_path):
        source = open_source(write_pairs(tmp_path / "pairs", 1))
        assert (embedded(source), embedded(source)) == (1, 0)

    def test_weights_that_have_diverged_are_refused_with_the_name_of_the_image(self, embedded, model, tmp_path):
        source = open_source(write_pairs(tmp_path / "pairs", 1))
        diverged = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), model.params)
        with pytest.raises(ValueError, match=f"^{re.escape(source.name(0))}: the embedding must be finite, got NaN"):
            embedded(source, diverged)
        assert not list((tmp_path / "embeds").rglob("*.npy"))

    def test_a_full_disk_is_told_with_the_path(self, embedded, tmp_path, monkeypatch):
        source, usage = open_source(write_pairs(tmp_path / "pairs", 1)), shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2000))
        with pytest.raises(OSError, match="the disk must have 2,048 bytes free, got 2,000") as caught:
            embedded(source)
        assert str(caught.value.filename).startswith(str(tmp_path / "embeds"))

    def test_other_weights_and_changed_images_are_embedded_anew(self, embedded, tmp_path):
        path = write_pairs(tmp_path / "pairs", 1)
        assert embedded(open_source(path)) == 1
        assert embedded(open_source(path), made_by="others") == 1
        write_pairs(tmp_path / "pairs", 1, seed=1)
        assert embedded(open_source(path), made_by="others") == 1
        assert len(list((tmp_path / "embeds").iterdir())) == 1  # those of earlier data are removed

    def test_the_fingerprint_of_the_tower_is_that_of_its_weights_and_processor(self, model):
        objective = make_objective(LIT, model, make_transform(LIT, model.processor), None)
        first = tower_fingerprint(objective, model.params, "p")
        assert first == tower_fingerprint(objective, model.params | {"text_model": {}}, "p")
        head = model.params["vision_model"] | {"post_layernorm": {"bias": np.ones(32, np.float32)}}
        assert first != tower_fingerprint(objective, model.params | {"vision_model": head}, "p")
        assert first != tower_fingerprint(objective, model.params, "q")


def test_the_fingerprint_of_a_processor(checkpoint):
    processor = SiglipProcessor.from_pretrained(checkpoint)
    images = type(processor.image_processor)
    changed = images.from_dict(processor.image_processor.to_dict() | {"image_mean": [0.4, 0.5, 0.5]})
    other = SiglipProcessor(changed, processor.tokenizer, max_length=processor.max_length)
    shorter = SiglipProcessor(processor.image_processor, processor.tokenizer, max_length=processor.max_length - 1)
    assert processor_fingerprint(processor) == processor_fingerprint(SiglipProcessor.from_pretrained(checkpoint))
    assert len({processor_fingerprint(p) for p in (processor, other, shorter)}) == 3
