"""Where the answer is known the trainer reaches it: each recipe, by its command, on images it has not seen.

Sixteen kinds of images, four colours by four forms; chance is 6 % and 31 % among five, and 25 % of the forms alone.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.support.pairs import FORMS, write_classes, write_pairs
from tests.support.processes import compiled_in
from tests.support.tiny_checkpoint import write_checkpoint

pytestmark = pytest.mark.slow

FROM_NOTHING = ("--fresh", ".*", "--scan-layers", "--batch-size", 16, "--optimizer.rate", 0.005)


class Trainer:
    """Runs `siglip-jax train` and returns the last metrics of its evaluation."""

    def __init__(self, home):
        self.home = home
        self.model = write_checkpoint(home / "fresh", text_length=16)
        self.pairs = write_pairs(home / "pairs", 20)
        self.kinds = write_classes(home / "kinds", 2, seed=9, colours=True)

    def __call__(self, name, recipe, steps, *options, model=None, data=None, test=None):
        out = self.home / name
        words = ["train", recipe, "--data", data or self.pairs, "--model", model or self.model, "--out", out]
        words += ["--duration", f"{steps} steps", "--evaluate", test or self.kinds, "--save-every", steps, *options]
        # In a process of its own: here every call would be type-checked, and each image costs hundreds of them.
        environment = os.environ | compiled_in(self.home / "cache")
        command = [sys.executable, "-m", "siglip_jax", *map(str, words)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return lines[-1], out / "model"


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return Trainer(tmp_path_factory.mktemp("reaches"))


@pytest.fixture(scope="module")
def sigmoid(train):
    return train("sigmoid", "finetune", 1000, *FROM_NOTHING)


@pytest.mark.slow
def test_sigmoid_loss_from_nothing(sigmoid):
    assert sigmoid[0]["top1"] >= 0.3 and sigmoid[0]["top5"] >= 0.9


@pytest.mark.slow
def test_softmax_loss_from_nothing(train):
    metrics, _ = train("softmax", "finetune", 1000, *FROM_NOTHING, "--loss", "softmax")
    assert metrics["top1"] >= 0.3 and metrics["top5"] >= 0.9


@pytest.mark.slow
def test_lit_learns_a_new_text_tower_on_embeddings(train, sigmoid):
    options = ("--batch-size", 16, "--optimizer.rate", 0.005, "--scan-layers")
    metrics, model = train("lit", "lit", 500, *options, model=sigmoid[1])
    assert metrics["top1"] >= 0.3 and metrics["top5"] >= 0.9
    assert len(list((train.home / "lit" / "image_embeds" / "0").glob("*/000000000000.npy"))) == 1


@pytest.mark.slow
def test_lora_learns_other_words(train, sigmoid):
    """The names of the forms are dealt out anew: before, at most chance is right."""
    rows = [json.loads(line) for line in train.pairs.read_text().splitlines()]
    other = dict(zip(FORMS, (*FORMS[1:], FORMS[0]), strict=True))

    def renamed(text):
        return " ".join(other.get(word, word) for word in text.split())

    data = train.pairs.with_name("renamed.jsonl")
    rows = [row | {"captions": [renamed(text) for text in row["captions"]]} for row in rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = train.home / "renamed"
    for folder in train.kinds.iterdir():
        (test / renamed(folder.name)).mkdir(parents=True)
        for path in folder.iterdir():
            (test / renamed(folder.name) / path.name).write_bytes(path.read_bytes())
    options = ("--batch-size", 16, "--optimizer.rate", 0.01)
    metrics, _ = train("lora", "lora", 500, *options, model=sigmoid[1], data=data, test=test)
    assert metrics["top1"] >= 0.3 and metrics["top5"] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["linear-probe", "classification"])
def test_labels(train, sigmoid, recipe):
    data, test = train.home / "forms", train.home / "forms-test"
    if not data.exists():
        write_classes(data, 20)
        write_classes(test, 3, seed=9)
    options = ("--batch-size", 32, "--augment", "none", "--optimizer.rate", 0.02)
    metrics, model = train(recipe, recipe, 200, *options, model=sigmoid[1], data=data, test=test)
    assert metrics["accuracy"] >= 0.9
    assert json.loads((model / "config.json").read_text())["id2label"] == {
        str(i): n for i, n in enumerate(sorted(FORMS))
    }
