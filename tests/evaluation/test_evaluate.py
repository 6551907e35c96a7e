"""The evaluations of the bundled model on the example images, against metrics computed by other means."""

import json
import re
from functools import partial

import jax
import numpy as np
import pytest

from siglip_jax.data.example import Example, Source
from siglip_jax.data.open import open_source
from siglip_jax.evaluation import (
    Options,
    evaluate_retrieval,
    evaluate_zero_shot,
    knn,
    linear_probe,
)
from siglip_jax.evaluation.embeddings import embed_examples, embed_texts, spread
from siglip_jax.evaluation.evaluate import same_classes
from siglip_jax.evaluation.prompts import TEMPLATES
from siglip_jax.inference import Siglip
from siglip_jax.inference.preprocessing import describe, lines_of
from siglip_jax.processing import Siglip2ImageProcessor, SiglipProcessor
from tests.support.data_sets import write_tar
from tests.support.sources import Listed, pictograms


@pytest.fixture(scope="module")
def source():
    return pictograms()


@pytest.fixture(scope="module")
def mixed(source):
    """Two that cannot be read, one by the source and one by the decoder, one without a label, three good ones."""
    first, second, third, fourth = source.examples[:4]
    broken = second._replace(image=b"no image", name="broken.png")
    return Listed([OSError("disk"), first, broken, third._replace(label=None), fourth, first], source.classes)


def test_numbers_in_a_tar_are_indices_of_the_names_that_are_given(siglip, source, tmp_path):
    files = {}
    for i, example in enumerate(source.examples[:3]):
        files |= {f"{i}.png": example.image, f"{i}.cls": str(i).encode()}
    numbered = open_source(write_tar(tmp_path / "a.tar", files))
    result = evaluate_zero_shot(siglip, numbered, classes=source.classes[:3])
    assert result.classes == source.classes[:3] and result.metrics["top1"] == 1.0
    with pytest.raises(ValueError, match="labels must be below 2, the number of names, got 2; name every class"):
        evaluate_zero_shot(siglip, numbered, classes=source.classes[:2])
    with pytest.raises(ValueError, match="a data set must have classes, got none; .* with classes, or in classnames.t"):
        evaluate_zero_shot(siglip, numbered)


@pytest.mark.slow
def test_zero_shot_is_what_the_card_and_the_engine_say(siglip, source):
    result = evaluate_zero_shot(siglip, source)
    assert round(result.metrics["top1"] * 64) >= 51  # the card; tests/assets/test_bundled_model.py allows 50
    answers = siglip.classify([example.image for example in source.examples], source.classes, top_k=5)
    ranked = [[source.classes[i] for i in row] for row in result.ranked]
    assert ranked == [[entry["label"] for entry in answer] for answer in answers]
    assert result.metrics["mean_per_class"] == pytest.approx(result.metrics["top1"])
    assert (result.examples, result.unreadable) == (64, 0)


def test_zero_shot_with_templates_and_names(siglip, source):
    shouted = [name.upper().replace(" ", "_") + "!" for name in source.classes]
    same = evaluate_zero_shot(siglip, source, classes=shouted, templates=TEMPLATES["photo"])
    plain = evaluate_zero_shot(siglip, source, templates=TEMPLATES["photo"])
    np.testing.assert_array_equal(same.ranked, plain.ranked)
    assert same.classes[0] == "ALEMBIC!"
    with pytest.warns(UserWarning, match="more than the 16 of max_length, and is cut"):
        raw = evaluate_zero_shot(siglip, source, classes=shouted, templates=TEMPLATES["photo"], canonicalize=False)
    assert (raw.ranked != plain.ranked).any()  # the underscores are pieces of their own
    assert evaluate_zero_shot(siglip, source, templates=TEMPLATES["clip"]).metrics["top1"] > 0.5
    with pytest.raises(ValueError, match="names must be one for each of 64 classes, got 1"):
        evaluate_zero_shot(siglip, source, classes=["a"])


def test_classes_that_are_numbers_get_the_names_of_their_places(siglip, source, tmp_path):
    """Folders 0 ... 11 and labels such as 0.0 were sorted as text, and classes 2 to 11 got the names of others."""
    names, rows = source.classes[:12], ["image,label"]
    for i, example in enumerate(source.examples[:12]):
        (tmp_path / "folders" / str(i)).mkdir(parents=True)
        (tmp_path / "folders" / str(i) / "a.png").write_bytes(example.image)
        rows.append(f"folders/{i}/a.png, {i}.0")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    named = Listed(source.examples[:12], names)
    expected = evaluate_zero_shot(siglip, named).metrics["top1"]
    assert expected == 0.75  # 0.17 where the folders are in the order of text
    for path in ("folders", "labels.csv"):
        result = evaluate_zero_shot(siglip, open_source(tmp_path / path), classes=names)
        assert result.metrics["top1"] == expected
        assert result.settings["classes_in_data"] == [str(i) for i in range(12)]


def test_names_with_commas(siglip, source):
    """big_vision takes the first name of each class, or one sentence for each name; the result counts the others."""
    few = Listed(source.examples[:3], source.classes[:3])
    names = [f"{name}, thing, {name} of a kind" for name in few.classes]
    result = evaluate_zero_shot(siglip, few, classes=names, options=Options(limit=1))
    assert result.settings["other_names"] == 6
    assert result.preprocessing["text"]["first_name_only"] is True
    assert result.settings["classes_in_data"] == list(few.classes)
    every = evaluate_zero_shot(siglip, few, classes=names, first_name_only=False, options=Options(limit=1))
    texts = [[name, "thing", f"{name} of a kind"] for name in few.classes]
    means = np.stack([siglip.encode_text(own).mean(axis=0) for own in texts])
    scores = siglip.encode_image([few.examples[0].image]) @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    assert every.ranked[0, :3].tolist() == np.argsort(-scores[0]).tolist()
    assert dict(lines_of(every.preprocessing))["templates"] == "{}, all names"


def test_classes_named_by_wordnet_ids_are_refused(siglip, source):
    coded = Listed([e._replace(label=i) for i, e in enumerate(source.examples[:2])], ("n01440764", "n01443537"))
    with pytest.raises(ValueError, match="names of classes must be words, got WordNet ids such as 'n01440764'"):
        evaluate_zero_shot(siglip, coded)
    lines = [f"n01443537 {source.classes[1]}", f"n01440764 {source.classes[0]}"]
    result = evaluate_zero_shot(siglip, coded, classes=lines)
    assert result.classes == source.classes[:2]
    assert result.metrics["top1"] == 1.0


def test_labels_that_are_no_classes(siglip, source):
    with pytest.raises(ValueError, match="labels must be below 2, the number of classes, got 7"):
        evaluate_zero_shot(siglip, Listed([source.examples[7]], ("a", "b")))


@pytest.mark.slow
def test_retrieval(siglip, source):
    result = evaluate_retrieval(siglip, source)
    images = siglip.encode_image([example.image for example in source.examples])
    cosines = images @ siglip.encode_text(source.classes).T
    for way, matrix in (("image_to_text", cosines), ("text_to_image", cosines.T)):
        place = (matrix > np.diag(matrix)[:, None]).sum(axis=1)
        for k in (1, 5, 10):
            assert result.metrics[f"{way}_r{k}"] == (place < k).mean()
    several = Listed([source.examples[0]._replace(texts=("an alembic", "a bomb")), *source.examples[1:3]])
    result = evaluate_retrieval(siglip, several, ks=(1,))
    assert result.labels.tolist() == [0, 0, 1, 2]
    assert result.settings["texts"] == 4
    with pytest.raises(ValueError, match="images must have texts for retrieval, got images without any; .*text_key"):
        evaluate_retrieval(siglip, Listed([source.examples[0]._replace(texts=())]))


FIVE = ("{}", "a {}", "a photo of {}", "a drawing of a {}", "the {}")


@pytest.fixture(scope="module")
def by_row(tmp_path_factory, source):
    """A table of Flickr's form: five rows an image."""
    folder = tmp_path_factory.mktemp("flickr")
    lines = ["image,caption"]
    for example in source.examples[:16]:
        (folder / example.name).write_bytes(example.image)
        for i, template in enumerate(FIVE):
            place = f"./{example.name}" if i == 3 else example.name
            lines.append(f"{place},{template.format(example.texts[0])}")
    path = folder / "results.csv"
    path.write_text("\n".join(lines))
    return open_source(path)


class TestRepeatedImages:
    def test_rows_of_one_file_are_one_image(self, siglip, source, by_row):
        texts = [tuple(t.format(e.texts[0]) for t in FIVE) for e in source.examples[:16]]
        once = Listed([e._replace(texts=own) for e, own in zip(source.examples[:16], texts, strict=True)])
        result, expected = evaluate_retrieval(siglip, by_row), evaluate_retrieval(siglip, once)
        assert result.metrics == expected.metrics
        assert result.metrics["text_to_image_r1"] > 0.8  # 0.0 where each row counts as an image
        assert (result.examples, result.settings["texts"], result.settings["repeated_images"]) == (16, 80, 64)
        assert expected.settings["repeated_images"] == 0
        assert result.numbers.tolist() == list(range(0, 80, 5))

    def test_rows_of_the_same_bytes_are_one_image(self, siglip, source, monkeypatch):
        first, second = source.examples[:2]
        broken = first._replace(image=b"no image")
        rows = [first, broken, second, first._replace(texts=("a second text",)), broken]
        sizes = []
        encode = Siglip.encode_image
        counted = lambda self, images, **more: encode(self, [sizes.append(1) or i for i in images], **more)  # noqa: E731
        monkeypatch.setattr(Siglip, "encode_image", counted)
        result = evaluate_retrieval(siglip, Listed(rows), ks=(1,))
        assert len(sizes) == 3  # each different image is embedded once
        assert result.texts == (*first.texts, "a second text", *second.texts)
        assert result.labels.tolist() == [0, 0, 1]
        assert (result.examples, result.unreadable, result.numbers.tolist()) == (2, 2, [0, 2])

    def test_a_limit_counts_images(self, siglip, by_row):
        result = evaluate_retrieval(siglip, by_row, options=Options(limit=4))
        assert (result.examples, result.settings["texts"]) == (4, 20)
        assert result.numbers.tolist() == [0, 20, 40, 60]


@pytest.mark.slow
def test_nearest_and_linear_on_what_they_have_seen(siglip, source):
    """Classes in another order and with one more, so that labels have to be found by name."""
    turned = Listed(
        [example._replace(label=64 - example.label) for example in source.examples],
        ("something else", *source.classes[::-1]),
    )
    assert turned.classes[turned.examples[0].label] == source.classes[0]
    for result in (
        knn(siglip, source, turned, k=1),
        linear_probe(siglip, source, turned, probe="ridge", strength=1.0),
        linear_probe(siglip, source, turned, strength=1e-3, shots=1),
    ):
        assert result.metrics["top1"] == 1
        assert result.settings["train_examples"] == 64
        assert result.preprocessing["model"] == "this model"
        assert "text" not in result.preprocessing
        json.dumps(result.to_dict(), allow_nan=False)
    with pytest.raises(
        ValueError, match="classes must be among those of the training set, got 1 others: something else"
    ):
        same_classes(turned, source)
    with pytest.raises(ValueError, match="k must be from 1 to 64, the number of embeddings to choose from, got 65"):
        knn(siglip, source, turned, k=65)
    with pytest.raises(ValueError, match="probe must be one of logistic, ridge, got 'svm'"):
        linear_probe(siglip, source, turned, probe="svm")


def test_what_cannot_be_read_is_counted_and_named(siglip, source, mixed):
    assert isinstance(mixed, Source)
    said: list[tuple[int, str]] = []
    done: list[tuple[int, int]] = []
    options = Options(
        on_unreadable=lambda index, error: said.append((index, str(error))), on_progress=lambda *seen: done.append(seen)
    )
    result = evaluate_zero_shot(siglip, mixed, options=options)
    assert (result.examples, result.unreadable) == (3, 2)
    assert [index for index, _ in said] == [0, 2]
    assert "number 0" in said[0][1] and "broken.png" in said[1][1]
    assert done == [(i, 6) for i in range(7)]
    assert result.numbers.tolist() == [1, 4, 5]
    assert result.labels.tolist() == [0, 3, 0]
    whole = evaluate_zero_shot(siglip, source)
    np.testing.assert_array_equal(result.ranked, whole.ranked[[0, 3, 0]])
    facts = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert facts["classes"][1] == {"class": source.classes[1], "examples": 0, "recall": None}


def test_nothing_can_be_read(siglip):
    broken = Listed([OSError("disk"), Example(b"no image", (), 0, "x.png")], ("a", "b"))
    with pytest.raises(
        ValueError, match="one or more images must be readable, got none among 2; the first error: disk"
    ):
        evaluate_zero_shot(siglip, broken)
    with pytest.raises(ValueError, match="a data set must have classes, got none"):
        evaluate_zero_shot(siglip, Listed(broken.examples))
    with pytest.raises(ValueError, match="one or more images must be readable, got none among 0"):
        evaluate_retrieval(siglip, Listed([]))


def test_no_labels(siglip, source):
    with pytest.raises(ValueError, match="images must have labels, got none among 1 images"):
        evaluate_zero_shot(siglip, Listed([source.examples[0]._replace(label=None)], ("a", "b")))
    one = Listed(source.examples[:1], ("a",))
    for evaluate in (evaluate_zero_shot, partial(knn, train=one), partial(linear_probe, train=one)):
        with pytest.raises(ValueError, match="classes must be two or more, got only 'a', which would be right for ev"):
            evaluate(siglip, one)


@pytest.mark.slow
def test_a_model_that_has_diverged_has_no_metrics(siglip, source):
    params = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), siglip.params)
    name = re.escape(source.examples[0].name)
    with pytest.raises(
        ValueError, match=f"^{name}: the embedding must be finite, got NaN or infinity; check the weights"
    ):
        evaluate_zero_shot(siglip.with_params(params), Listed(source.examples[:2], source.classes))


def test_limit_takes_even_distances(siglip, source):
    result = evaluate_zero_shot(siglip, source, options=Options(limit=4))
    assert result.numbers.tolist() == [0, 16, 32, 48]
    assert result.settings["limit"] == 4
    assert list(spread(10, 3)) == [0, 3, 6]
    assert list(spread(2, 3)) == [0, 1]
    assert list(spread(2, None)) == [0, 1]


def test_pixels_and_batches(siglip, source):
    """A source may give pixels, and neither the size of batches nor what else is read changes an embedding."""
    import io

    import PIL.Image

    files = Listed([example for example in source.examples[:5]])
    pixels = []
    for example in files.examples:
        with PIL.Image.open(io.BytesIO(example.image)) as image:
            flat = PIL.Image.new("RGBA", image.size, "white")
            flat.alpha_composite(image)
            pixels.append(example._replace(image=np.asarray(flat.convert("RGB"))))
    by_file = embed_examples(siglip, files, batch_size=2).embeds
    np.testing.assert_allclose(embed_examples(siglip, files, batch_size=8).embeds, by_file, atol=1e-6)
    np.testing.assert_allclose(embed_examples(siglip, Listed(pixels)).embeds, by_file, atol=0.02)


def test_texts_are_embedded_once_each(siglip):
    done: list[int] = []
    found = embed_texts(siglip, ["a", "b", "a"], advance=done.append)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found, siglip.encode_text(["a", "b", "a"]), atol=1e-6)
    assert done == [2]
    assert embed_texts(siglip, []).shape == (0, 192)


class TestPreprocessing:
    def test_of_the_bundled_model(self, siglip):
        facts = describe(siglip, model_name="m", templates=("{}",), canonicalize=True, first_name_only=True)
        assert facts["dtype"] == "float32"
        image = facts["image"]
        assert (image["resample"], image["size"]) == ("bicubic", {"height": 64, "width": 64})
        assert (image["image_mean"], image["image_std"], image["do_convert_rgb"]) == ([0.5] * 3, [0.5] * 3, True)
        assert facts["text"] == {
            "tokenizer": "SiglipTokenizer",
            "lower_case": True,
            "punctuation": False,
            "canonical": True,
            "length": 16,
            "pad_token": "</s>",
            "pad_id": 1,
            "templates": ["{}"],
            "first_name_only": True,
        }
        lines = dict(lines_of(facts))
        assert lines["model"] == "m, float32"
        assert "resized to 64 x 64 pixels, bicubic, x 0.00392157, mean 0.5, std 0.5, to RGB" in lines["images"]
        assert lines["texts"] == "SiglipTokenizer: lower case, no punctuation, padded to 16 with </s> (1)"
        assert lines["templates"] == "{}, first name only"

    def test_of_variable_resolution(self, siglip):
        images = Siglip2ImageProcessor(patch_size=8, max_num_patches=20)
        processor = SiglipProcessor(images, siglip.processor.tokenizer)
        flexible = Siglip(siglip.model.clone(dtype="bfloat16"), siglip.params, processor, siglip.config)
        facts = json.loads(json.dumps(describe(flexible, model_name="n", texts=False)))
        assert facts["dtype"] == "bfloat16"
        assert dict(lines_of(facts))["images"].startswith(
            "Siglip2ImageProcessor: resized to at most 20 patches of 8, bilinear, x 0.00392157, mean 0.5"
        )
