"""Comparison with published logits, on drawn images, files and pixel values, and `siglip-jax verify` with them."""

import dataclasses
import importlib
import json

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from siglip_jax import SiglipModel, load
from siglip_jax.cli import main
from siglip_jax.configs.published import ANSWERS, DISC_SIZES
from siglip_jax.configs.variants import find
from siglip_jax.inference.answers import compare, disc
from siglip_jax.processing.images.siglip2 import grid_of
from tests.support.tiny_checkpoint import picture, write_checkpoint

APPLES, CATS, _, _ = ANSWERS["siglip-base-patch16-224"]
(DISCS,) = ANSWERS["siglip2-base-patch16-naflex"]


@pytest.fixture(scope="module")
def flexible(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("flexible"), flexible=True)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("fixed"))


def antialiased(size, new):
    """Returns the weights of a bilinear resize with antialiasing, (new, size) float64."""
    places = (np.arange(new)[:, None] + 0.5) * size / new - 0.5
    weights = np.maximum(0, 1 - np.abs(places - np.arange(size)[None]) / max(1, size / new))
    return weights / weights.sum(1, keepdims=True)


def disc_logits(siglip):
    """Returns the logits of the discs by another path: resized in float64, split into patches, passed to the module."""
    processor = siglip.processor.image_processor
    p, most = processor.patch_size, processor.max_num_patches
    values, mask, grids = np.zeros((3, most, p * p * 3), np.float32), np.zeros((3, most), np.int32), []
    for i, size in enumerate(DISC_SIZES):
        image = np.asarray(disc(*size), np.float64)
        rows, columns = grid_of(*image.shape[:2], p, most)
        down, across = antialiased(image.shape[0], rows * p), antialiased(image.shape[1], columns * p)
        resized = np.round(np.einsum("oi,pj,ijc->opc", down, across, image, optimize=True))
        patches = resized.reshape(rows, p, columns, p, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
        values[i, : rows * columns], mask[i, : rows * columns] = patches / 127.5 - 1, 1
        grids.append((rows, columns))
    ids = siglip.processor(text=list(DISCS.texts))["input_ids"]
    out = siglip.model.apply({"params": siglip.params}, jnp.asarray(ids), values, mask, np.array(grids))
    return np.asarray(out.logits_per_image)


def rows(x):
    return tuple(map(tuple, np.asarray(x, np.float64).tolist()))


def test_the_disc_is_as_described():
    for width, height in DISC_SIZES:
        image = disc(width, height)
        radius, x, y = min(width // 2, height // 2) // 8 * 7, width // 2, height // 2
        assert image.size == (width, height) and image.getpixel((0, 0)) == (255, 0, 0)
        assert image.getpixel((x, y)) == (0, 0, 255)
        assert image.getpixel((x - radius + width // 40, y)) == (0, 128, 0)
        assert image.getpixel((x - radius - 2, y)) == (255, 0, 0)
        assert image.getpixel((x - radius + width // 20 + 2, y)) == (0, 0, 255)


@pytest.mark.slow
def test_discs(flexible):
    siglip = load(flexible)
    logits = disc_logits(siglip)
    comparison = compare(siglip, dataclasses.replace(DISCS, values=rows(logits), tolerance=1e-4))
    assert comparison.right and comparison.error < 1e-4 and comparison.found.shape == (3, 7)
    wrong = compare(siglip, dataclasses.replace(DISCS, values=rows(logits + 2e-3)))
    assert not wrong.right and wrong.error == pytest.approx(2e-3, rel=0.1)


@pytest.mark.slow
def test_image_files_and_pixels(fixed, tmp_path):
    siglip = load(fixed)
    images = [PIL.Image.fromarray(picture(i)) for i in range(2)]
    images[0].save(tmp_path / "cats.png")
    inputs = siglip.processor(text=list(CATS.texts), images=images)
    out = siglip.model.apply({"params": siglip.params}, **inputs)
    values = 1 / (1 + np.exp(-np.asarray(out.logits_per_image[:1], np.float64)))
    answer = dataclasses.replace(CATS, kind="probabilities", values=rows(values), tolerance=1e-6)
    assert compare(siglip, answer, [tmp_path / "cats.png"]).right
    with pytest.raises(ValueError, match=r"images must be 1 \(COCO .*\), got 2"):
        compare(siglip, answer, images)

    pixels = np.asarray(inputs["pixel_values"])
    ids = siglip.processor(text=list(APPLES.texts))["input_ids"]
    out = SiglipModel.apply(siglip.model, {"params": siglip.params}, ids, pixels)
    answer = dataclasses.replace(APPLES, values=rows(out.logits_per_image))
    assert compare(siglip, answer, pixels).right and compare(siglip, answer, pixels.transpose(0, 3, 1, 2)).right
    with pytest.raises(
        ValueError,
        match=r"values of apple-ipod.jpg .* must be floats of shape \(2, 32, 32, 3\), got float32 of shape \(1, 32",
    ):
        compare(siglip, answer, pixels[:1])


@pytest.fixture
def released(monkeypatch):
    """Makes a tiny checkpoint pass for a released one with published answers of its own."""

    def pretend(name, *answers):
        monkeypatch.setitem(ANSWERS, find(name).short_name, answers)
        for module in ("siglip_jax.checkpoints.verify", "siglip_jax.inference.verify"):
            monkeypatch.setattr(importlib.import_module(module), "released_variant", lambda *_: find(name))

    return pretend


@pytest.mark.slow
def test_verify_computes_the_discs_unasked(flexible, released, capsys):
    logits = disc_logits(load(flexible))
    released("siglip2-base-patch16-naflex", dataclasses.replace(DISCS, values=rows(logits)))
    assert main(["verify", str(flexible)]) == 0
    out = capsys.readouterr().out
    assert "ok     published logits" in out and "21 values, largest difference" in out and "tolerance 1e-03" in out
    assert f"{logits[1, 5]:.4f} ({logits[1, 5]:.4f})" in out
    released("siglip2-base-patch16-naflex", DISCS)
    assert main(["verify", str(flexible), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    (wrong,) = (check for check in facts["checks"] if not check["right"])
    assert wrong["name"] == "published logits" and "a fine-tuned model differs here by design" in wrong["found"]
    assert (
        facts["answers"][0]["published"] == [list(row) for row in DISCS.values] and facts["answers"][0]["error"] > 1e-2
    )


@pytest.mark.slow
def test_verify_takes_the_published_image_or_its_pixels(fixed, released, tmp_path, monkeypatch, capsys):
    siglip = load(fixed)
    PIL.Image.fromarray(picture(0)).save(tmp_path / "cats.png")
    pixels = siglip.processor(images=[picture(0), picture(1)]).pixel_values
    np.save(tmp_path / "apples.npy", pixels)
    cats = dataclasses.replace(CATS, values=rows(compare(siglip, CATS, [picture(0)]).found))
    apples = dataclasses.replace(APPLES, values=rows(compare(siglip, APPLES, pixels).found))
    released("siglip-base-patch16-224", apples, cats)
    monkeypatch.setattr(
        importlib.import_module("siglip_jax.checkpoints.verify"), "verify_tokens", lambda *_: iter(())
    )  # another vocabulary

    assert main(["verify", str(fixed)]) == 0
    out = capsys.readouterr().out
    assert "published logits:" in out and "published logits  " not in out
    assert (
        "pass --image with COCO val2017" in out and "pass --image with a .npy of the pixel values of apple-ipod" in out
    )
    for file in ("cats.png", "apples.npy"):
        assert main(["verify", str(fixed), "--image", str(tmp_path / file)]) == 0
        out = capsys.readouterr().out
        assert "ok     published logits" in out and out.count("not computed") == 1


def test_an_image_that_nothing_is_published_for_is_refused(flexible, fixed, released, tmp_path, capsys):
    assert main(["verify", str(fixed), "--image", "x.png"]) == 2
    assert "image must be None (nothing is published for these sizes), got x.png" in capsys.readouterr().err
    released("siglip2-base-patch16-naflex", DISCS)
    assert main(["verify", str(flexible), "--image", "x.png"]) == 2
    assert "image must be None (the published images are drawn here), got x.png" in capsys.readouterr().err
    released("siglip-base-patch16-224", APPLES)
    assert main(["verify", str(fixed), "--image", "x.png"]) == 2
    assert (
        "image must be a .npy of the pixel values of apple-ipod.jpg, apple-blank.jpg, got x.png"
        in capsys.readouterr().err
    )
    released("siglip-base-patch16-224", APPLES, CATS)
    assert main(["verify", str(fixed), "--image", str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err


def test_a_checkpoint_without_tokenizer_says_what_it_could_not_compute(flexible, released, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((flexible / name).read_bytes())
    released("siglip2-base-patch16-naflex", DISCS)
    assert main(["verify", str(tmp_path)]) == 0
    assert "not computed: published logits: no tokenizer beside the weights" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_is_hidden_where_the_model_answers_nan(flexible):
    siglip = load(flexible)
    siglip.params["logit_bias"] = jnp.array([np.nan])
    comparison = compare(siglip, DISCS)
    assert not comparison.right
    assert comparison.to_dict()["error"] is None
    json.dumps(comparison.to_dict(), allow_nan=False)
