"""Classifiers and single towers through `load` and `pipeline("image-classification")`, against `transformers`."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest

import siglip_jax
from siglip_jax import load, pipeline
from tests.support.images import encoded
from tests.support.spiece import quiet_reference
from tests.support.tiny_checkpoint import picture, write_checkpoint, write_classifier

TASK = "image-classification"
NAMES = {i: name for i, name in enumerate(["tench", "great shark", "cock", "ostrich", "brambling", "jay", "magpie"])}


@pytest.fixture(scope="module")
def pictures() -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray(picture(seed, (25 + 20 * seed, 64))) for seed in range(3)]


@pytest.fixture(scope="module")
def flexible(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("flexible"), flexible=True)


def compare(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert [entry["label"] for entry in ours] == [entry["label"] for entry in theirs]
        scores = [[entry["score"] for entry in ranked] for ranked in (ours, theirs)]
        np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6)
        assert all(type(entry["score"]) is float and set(entry) == {"label", "score"} for entry in ours)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the reference emits warnings
@pytest.mark.parametrize(
    "fields",
    [
        {"id2label": NAMES},
        {"num_labels": 1},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"num_labels": 2, "problem_type": "regression"},
    ],
    ids=["several", "one", "multi label", "regression"],
)
def test_same_as_the_reference(checkpoint, tmp_path, pictures, fields):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    directory = write_classifier(checkpoint, tmp_path, **fields)
    processor = transformers.SiglipImageProcessorPil.from_pretrained(directory)
    reference = transformers.pipeline(TASK, str(directory), image_processor=processor, dtype=torch.float32)
    ours = pipeline(TASK, directory)
    compare(ours(pictures), reference(pictures))
    compare([ours(pictures[0], top_k=2)], [reference(pictures[0], top_k=2)])
    for function in ("sigmoid", "softmax", "NONE"):
        options = {"function_to_apply": function, "top_k": 100}
        compare(ours(images=pictures, batch_size=2, **options), reference(pictures, batch_size=2, **options))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_variable_resolution_is_the_reference_s(flexible, tmp_path, pictures):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    directory = write_classifier(flexible, tmp_path, id2label=NAMES)
    with quiet_reference():
        processor = transformers.Siglip2ImageProcessorPil.from_pretrained(directory)
        reference = transformers.pipeline(TASK, str(directory), image_processor=processor, dtype=torch.float32)
        compare(pipeline(TASK, directory)(pictures), [reference(image) for image in pictures])


def test_a_classifier_embeds_images_and_ranks_its_labels(checkpoint, shared_siglip, tmp_path, pictures):
    siglip = load(write_classifier(checkpoint, tmp_path / "classifier", id2label=NAMES))
    np.testing.assert_array_equal(siglip.encode_image(pictures), shared_siglip.encode_image(pictures))
    pictures[0].save(tmp_path / "a.png")
    every = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        np.asarray(pictures[0]),
        encoded(np.asarray(pictures[0]), "PNG"),
    ]
    pipe = pipeline(TASK, siglip, batch_size=2)
    first, *others = pipe(every)
    assert others == [first] * 3 and len(first) == 5
    assert siglip.classify(pictures[0]) == pipe(pictures[0], top_k=7)
    assert siglip.label_logits(pictures).shape == (3, 7)
    lines = []
    assert np.isnan(siglip.label_logits([b"no image"], on_unreadable=lambda i, error: lines.append(i))).all()
    assert lines == [0]
    halved = siglip.with_params(
        {**siglip.params, "classifier": {k: x / 2 for k, x in siglip.params["classifier"].items()}}
    )
    np.testing.assert_allclose(2 * halved.label_logits(pictures), siglip.label_logits(pictures), rtol=1e-5)
    siglip.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").classify(pictures[0]) == siglip.classify(pictures[0])
    with pytest.raises(ValueError, match="^the model must have both towers to compare .* got a SiglipForImageClass"):
        siglip.classify(pictures[0], ["a cat"])
    with pytest.raises(ValueError, match="^the model must have a text tower, got a SiglipForImageClassification; load"):
        siglip.encode_text("a cat")
    with pytest.raises(ValueError, match="^the model must have both towers"):
        _ = siglip.temperature
    with pytest.raises(ValueError, match="^function_to_apply must be one of 'sigmoid', 'softmax', 'none', got 'tanh'"):
        pipe(pictures[0], function_to_apply="tanh")
    with pytest.raises(ValueError, match="^inputs must be an image or an iterable of images, got None"):
        pipe()
    with pytest.raises(ValueError, match="^top_k must be an integer of at least 1 or None, got 0"):
        pipe(pictures[0], top_k=0)


def test_a_model_without_a_classifier_is_refused(shared_siglip, checkpoint, tmp_path, pictures):
    with pytest.raises(
        ValueError, match=f"^model must be an image classifier for '{TASK}', got a SiglipModel; use 'zero"
    ):
        pipeline(TASK, shared_siglip)
    with pytest.raises(ValueError, match="^the model must have a classifier, got a SiglipModel"):
        shared_siglip.label_logits(pictures)
    without = load(write_classifier(checkpoint, tmp_path, num_labels=0))
    with pytest.raises(ValueError, match="^num_labels must be at least 1 to classify images, got 0"):
        without.classify(pictures)


@pytest.mark.parametrize("kind", ["fixed", "flexible"])
def test_an_image_tower_needs_no_tokenizer(kind, checkpoint, flexible, tmp_path, pictures):
    source, name = (checkpoint, "SiglipVisionModel") if kind == "fixed" else (flexible, "Siglip2VisionModel")
    model, params = getattr(siglip_jax, name).from_pretrained(source)
    model.save_pretrained(tmp_path, params)
    shutil.copy(source / "preprocessor_config.json", tmp_path)
    siglip = load(tmp_path)
    assert name in repr(siglip) and siglip.choices.text_batch == 0
    np.testing.assert_array_equal(siglip.encode_image(pictures), load(source).encode_image(pictures))
    assert list(siglip.processor(images=pictures)) == siglip.processor.model_input_names
    with pytest.raises(ValueError, match=f"^the model must have a text tower, got a {name}; load another checkpoint"):
        siglip.encode_text("a cat")
    with pytest.raises(ValueError, match="the checkpoint must have a text tower to process texts, got the image tower"):
        siglip.processor(text="a cat")


def test_a_text_tower_needs_no_image_processor(checkpoint, shared_siglip, tmp_path, pictures):
    model, params = siglip_jax.SiglipTextModel.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path, params)
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, tmp_path)
    siglip = load(tmp_path)
    assert "SiglipTextModel(length=64, width=32, layers=2)" in repr(siglip)
    np.testing.assert_array_equal(siglip.encode_text(["a cat"]), shared_siglip.encode_text(["a cat"]))
    with pytest.raises(ValueError, match="^the model must have an image tower, got a SiglipTextModel"):
        siglip.encode_image(pictures)
    siglip.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "preprocessor_config.json").exists()
    np.testing.assert_array_equal(load(tmp_path / "again").encode_text(["a cat"]), siglip.encode_text(["a cat"]))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "siglip_text_model"
