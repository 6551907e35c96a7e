"""The calibration of a label set: what the engine makes of it, its file, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from siglip_jax.inference import Calibration
from siglip_jax.inference.calibration import FORMAT
from tests.support.tiny_checkpoint import picture

LABELS = ("a cat", "two dogs")
MADE = Calibration(LABELS, (("a cat", "one cat"), ("two dogs",)), 12.5, -3.0, 0.25, 0.9, "tiny", "0" * 64)


@pytest.fixture
def made(shared_siglip) -> Calibration:
    return dataclasses.replace(MADE, fingerprint=shared_siglip.fingerprint)


@pytest.mark.slow
def test_probabilities_are_those_of_the_mean_prompt(shared_siglip, made):
    images = [picture(seed) for seed in range(3)]
    texts = shared_siglip.encode_text(["a cat", "one cat", "two dogs"]).astype(np.float64)
    cat = texts[:2].sum(axis=0)
    classes = np.stack([cat / np.linalg.norm(cat), texts[2]])
    logits = 12.5 * (shared_siglip.encode_image(images) @ classes.T) - 3.0
    found = shared_siglip.similarity(images, calibration=made)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    for row, ranked in zip(found, shared_siglip.classify(images, calibration=made, top_k=1), strict=True):
        best = int(row.argmax())
        assert ranked == [{"label": LABELS[best], "score": float(row[best]), "accepted": bool(row[best] >= 0.25)}]
    without = dataclasses.replace(made, threshold=None)
    assert [set(entry) for entry in shared_siglip.classify(images[0], calibration=without)] == [{"label", "score"}] * 2


@pytest.mark.slow
def test_labels_and_other_models_are_refused(shared_siglip, made):
    image = picture(0)
    for arguments, name in (
        ({"labels": ["a"]}, "labels"),
        ({"hypothesis_template": "a {}"}, "hypothesis_template"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be None with a calibration, which has its own labels"):
            shared_siglip.classify(image, calibration=made, **arguments)
    with pytest.raises(ValueError, match="texts must be None with a calibration"):
        shared_siglip.similarity(image, "a", calibration=made)
    changed = shared_siglip.with_params({**shared_siglip.params, "logit_bias": np.zeros(1, np.float32)})
    assert changed.fingerprint != shared_siglip.fingerprint
    with pytest.raises(
        ValueError, match="the model must be the one that the calibration was fitted for, 'tiny' with fi"
    ):
        changed.classify(image, calibration=made)


def test_a_file_gives_the_calibration_back(tmp_path):
    MADE.save(tmp_path / "a.json")
    assert Calibration.read(tmp_path / "a.json") == MADE
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    names = Calibration(("naïve 日本",), (("x",),), 1.0, 0.0, None, 1.0, "m", "f")
    names.save(tmp_path / "a.json")
    assert Calibration.read(tmp_path / "a.json") == names
    with pytest.raises(
        FileNotFoundError, match="b.json: no such file; a calibration is made with siglip-jax calibrate"
    ):
        Calibration.read(tmp_path / "b.json")


DAMAGE = {
    "no JSON": ("{", "the file must hold a JSON object, got invalid JSON"),
    "a list": ("[]", "the file must hold a JSON object, got a list"),
    "another file": ('{"labels": []}', "format must be 'siglip-jax calibration 1', got another file"),
    "a field too few": ({"bias": ...}, "the fields must be labels, prompts, temperature"),
    "a field too many": ({"more": 1}, "the fields must be labels, prompts, .*, got "),
    "labels that are text": ({"labels": "a cat"}, "labels must be one or more names, got 'a cat'"),
    "no labels": ({"labels": []}, "labels must be one or more names, got ()"),
    "a blank label": ({"labels": ["a cat", " "]}, "labels must be one or more names"),
    "too few prompts": ({"prompts": [["a"]]}, "prompts must be one or more texts for each of 2 labels"),
    "prompts of numbers": ({"prompts": [[1], ["a"]]}, "prompts must be one or more texts for each of 2 labels"),
    "prompts of nothing": ({"prompts": [[], ["a"]]}, "prompts must be one or more texts for each of 2 labels"),
    "a temperature of zero": ({"temperature": 0}, "temperature must be a finite number above 0, got 0"),
    "an infinite temperature": ({"temperature": 1e39}, "temperature must be a finite number above 0, got 1e"),
    "a temperature that is none": ({"temperature": True}, "temperature must be a finite number above 0, got True"),
    "a bias of NaN": ({"bias": float("nan")}, "bias must be a finite number, got nan"),
    "a huge bias": ({"bias": 10**400}, "bias must be a finite number, got 1000"),
    "a bias that is text": ({"bias": "-3"}, "bias must be a finite number, got '-3'"),
    "a threshold above 1": ({"threshold": 1.5}, "threshold must be a number from 0 to 1 or None, got 1.5"),
    "no precision": ({"precision": None}, "precision must be a number above 0 and up to 1, got None"),
    "a model that is none": ({"model": 7}, "model must be a string, got 7"),
    "no fingerprint": ({"fingerprint": []}, "fingerprint must be a string, got"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line(damage, tmp_path):
    change, message = DAMAGE[damage]
    text = change
    if isinstance(change, dict):
        facts = {"format": FORMAT, **dataclasses.asdict(MADE), **change}
        text = json.dumps({name: value for name, value in facts.items() if value is not ...})
    file = tmp_path / "damaged.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"damaged.json: {message}") as raised:
        Calibration.read(file)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
