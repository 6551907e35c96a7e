"""Zero-shot segmentation against slow loops and an independent computation in numpy, on drawings with known masks."""

import functools
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from siglip_jax.data import open_masks
from siglip_jax.evaluation import Options, SegmentationResult, evaluate_segmentation, segmentation
from siglip_jax.evaluation.segmentation import count_pixels, intersection_over_union, nearest_classes
from tests.support.masks import write_masks

NAMES = ("anchor", "church", "horse", "lemon")
ROWS = [("horse", "lemon"), ("church", "anchor"), ("lemon", "church", "horse"), ("anchor",)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_masks(tmp_path_factory.mktemp("masks") / "drawn", ROWS)


@pytest.mark.parametrize("block", [1, 1 << 22])
@pytest.mark.parametrize("size", [(45, 31), (5, 7), (64, 24)])
def test_the_largest_interpolated_cosine_decides(size, block, monkeypatch):
    monkeypatch.setattr(segmentation, "_BLOCK", block)
    cosines = np.random.default_rng(0).normal(0, 0.1, (4, 5, 3)).astype(np.float32)
    with jax.enable_x64():
        resized = np.asarray(jax.image.resize(cosines.astype(np.float64), (4, *size), "bilinear"))
    assert nearest_classes(cosines, size).tolist() == resized.argmax(axis=0).tolist()
    expected = np.where(resized.max(axis=0) < 0.05, 0, resized.argmax(axis=0) + 1)
    assert nearest_classes(cosines, size, threshold=0.05).tolist() == expected.tolist()


def test_patches_that_cover_a_part_of_the_image():
    cosines = np.random.default_rng(1).normal(size=(3, 4, 4)).astype(np.float32)
    whole = nearest_classes(cosines, (20, 30), (0.1, 0.2, 0.9, 0.8))
    with jax.enable_x64():
        inner = np.asarray(jax.image.resize(cosines.astype(np.float64), (3, 16, 18), "bilinear")).argmax(axis=0)
    assert whole[2:18, 6:24].tolist() == inner.tolist()
    assert whole[0, 6:24].tolist() == inner[0].tolist()  # the nearest patches count outside


@pytest.mark.parametrize("background", [False, True])
def test_counts_are_those_of_a_slow_loop(background):
    rng = np.random.default_rng(2)
    mask = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (13, 9))
    classes = 3 + background
    found = rng.integers(0, classes, mask.shape)
    expected = np.zeros((classes, classes), int)
    for truth, guess in zip(mask.ravel().tolist(), found.ravel().tolist(), strict=True):
        if truth != 255 and (truth or background):
            expected[truth if background else truth - 1, guess] += 1
    assert count_pixels(mask, found, classes, background).tolist() == expected.tolist()


def test_intersection_over_union_by_hand():
    confusion = np.array([[3, 1, 0, 0], [0, 4, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]])
    iou = intersection_over_union(confusion)
    assert iou[[0, 1, 3]].tolist() == [3 / 4, 4 / 7, 0] and np.isnan(iou[2])
    result = SegmentationResult({}, 1, 0, tuple("abcd"), confusion, {}, {})
    assert result.to_dict()["classes"] == [
        {"class": "a", "pixels": 4, "iou": 3 / 4, "recall": 3 / 4},
        {"class": "b", "pixels": 6, "iou": 4 / 7, "recall": 4 / 6},
        {"class": "c", "pixels": 0, "iou": None, "recall": None},
        {"class": "d", "pixels": 0, "iou": 0.0, "recall": None},
    ]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@functools.cache
def patch_features(siglip):
    return jax.jit(lambda params, pixels: siglip.model.apply({"params": params}, pixels, method="get_patch_features"))


def patches_by_hand(siglip, file) -> np.ndarray:
    """The patches of an image through value, out projection and MLP of the pooling head, (rows, columns, E) float64."""
    (pixels,) = siglip.pixels(file)
    tokens = patch_features(siglip)(siglip.params, pixels[None])
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), siglip.params["vision_model"]["head"])

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    y = dense(dense(np.asarray(tokens[0], np.float64), head["attention"]["v_proj"]), head["attention"]["out_proj"])
    norm, eps = head["layernorm"], siglip.config.vision_config.layer_norm_eps
    z = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + eps) * norm["scale"] + norm["bias"]
    y = y + dense(gelu(dense(z, head["mlp"]["fc1"])), head["mlp"]["fc2"])
    return y / np.linalg.norm(y, axis=-1, keepdims=True)


def counted_by_hand(siglip, folder, texts, background) -> np.ndarray:
    source, confusion = open_masks(folder), 0
    text_embeds = siglip.encode_text(texts).astype(np.float64)
    for i in range(len(source)):
        cosines = patches_by_hand(siglip, folder / source[i].name) @ text_embeds.T
        with jax.enable_x64():
            resized = np.asarray(jax.image.resize(cosines, (*source[i].mask.shape, len(texts)), "bilinear"))
        confusion = confusion + count_pixels(source[i].mask, resized.argmax(-1), len(texts), background)
    return np.asarray(confusion)


@pytest.mark.slow
@pytest.mark.parametrize("background", [None, "a white wall"])
def test_the_counts_are_those_of_an_independent_computation(siglip, folder, background):
    calls = []
    options = Options(batch_size=3, on_progress=lambda done, total: calls.append((done, total)))
    result = evaluate_segmentation(siglip, open_masks(folder), background=background, options=options)
    texts = NAMES if background is None else (background, *NAMES)
    expected = counted_by_hand(siglip, folder, texts, background is not None)
    assert result.classes == texts and (result.examples, result.unreadable) == (4, 0)
    assert result.confusion.sum() == expected.sum()
    assert np.abs(result.confusion - expected).sum() <= 1e-4 * expected.sum()  # pixels on a border, by rounding
    right = np.diagonal(expected)
    assert result.metrics["pixel_accuracy"] == pytest.approx(right.sum() / expected.sum(), abs=1e-4)
    iou = right / (expected.sum(0) + expected.sum(1) - right)
    assert result.metrics["mean_iou"] == pytest.approx(iou.mean(), abs=1e-3)
    assert calls == [(i, 4) for i in range(5)]


@pytest.mark.slow
def test_a_threshold_makes_a_background(siglip, folder):
    source = open_masks(folder)
    plain = evaluate_segmentation(siglip, source)
    assert plain.settings["pixels_of_no_class"] == "not counted"
    none = evaluate_segmentation(siglip, source, threshold=-1.0)
    assert none.classes == ("background", *NAMES)
    assert none.confusion[:, 0].sum() == 0  # no pixel is taken for background
    assert none.confusion[1:, 1:].tolist() == plain.confusion.tolist()
    every = evaluate_segmentation(siglip, source, threshold=1.0)
    assert every.confusion[:, 1:].sum() == 0 and every.confusion.sum() == none.confusion.sum()
    assert every.metrics["pixel_accuracy"] == every.confusion[0, 0] / every.confusion.sum()


@pytest.mark.slow
def test_what_is_left_out_and_what_is_refused(siglip, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "images" / "0.png").write_bytes(b"no image")
    PIL.Image.new("L", (20, 30), 1).save(copy / "masks" / "church" / "1.png")
    (copy / "masks" / "anchor" / "1.png").unlink()
    said = []
    options = Options(on_unreadable=lambda number, error: said.append((number, str(error))))
    result = evaluate_segmentation(siglip, open_masks(copy), options=options)
    assert (result.examples, result.unreadable) == (2, 2)
    assert [number for number, _ in said] == [0, 1]
    assert said[0][1].startswith("images/0.png: ")
    assert said[1][1] == "images/1.png: the mask must have the size of the image, 101 x 51, got 20 x 30"
    source = open_masks(folder)
    with pytest.raises(
        ValueError, match="background must be a prompt or a threshold, got 'wall' and 0.1; leave out one"
    ):
        evaluate_segmentation(siglip, source, background="wall", threshold=0.1)
    with pytest.raises(ValueError, match="threshold must be a cosine from -1 to 1, got 20.0"):
        evaluate_segmentation(siglip, source, threshold=20.0)
    with pytest.raises(ValueError, match="names must be one for each of 4 classes, got 1"):
        evaluate_segmentation(siglip, source, classes=["a"])
    one = open_masks(write_masks(tmp_path / "one", [("horse",)]))
    with pytest.raises(ValueError, match="classes must be two or more with the background, got only 'horse'"):
        evaluate_segmentation(siglip, one)
    assert evaluate_segmentation(siglip, one, background="wall").classes == ("wall", "horse")
    for file in (copy / "images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(
        ValueError, match="one or more pixels of readable images must have a class, got none in 0 images"
    ):
        evaluate_segmentation(siglip, open_masks(copy))
