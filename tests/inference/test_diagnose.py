"""What a tower does whatever the image: statistics equal their definitions, and planted faults are found."""

import json

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from siglip_jax import Siglip, SiglipVisionModel, load
from siglip_jax.inference import diagnose
from siglip_jax.inference.diagnose import _attention, _norms, _sentences
from tests.support.tiny_checkpoint import picture, write_checkpoint

pytestmark = pytest.mark.slow
IMAGES = [PIL.Image.fromarray(picture(i, (40 + 7 * i, 30))) for i in range(5)]


def with_position(siglip: Siglip, entry: int, factor: float) -> Siglip:
    """Returns a model with one entry of its position table enlarged."""
    params = jax.tree.map(np.array, siglip.params)
    params["vision_model"]["embeddings"]["position_embedding"]["embedding"][entry] *= factor
    return siglip.with_params(params)


def test_numbers_are_their_definitions(shared_siglip):
    found = diagnose(shared_siglip, IMAGES, batch_size=2)
    model, params = shared_siglip.model, shared_siglip.params
    pixels = np.concatenate([shared_siglip.pixels(image)[0][None] for image in IMAGES])
    out = model.apply({"params": params}, np.zeros((1, 64), np.int32), pixels, output_hidden_states=True)
    states = [np.linalg.norm(np.asarray(x, np.float64), axis=-1) for x in out.vision_model_output.hidden_states]
    assert found.images == 5 and found.median_norms.shape == (3,)
    for layer, norms in enumerate(states):
        medians = np.median(norms, axis=1)
        np.testing.assert_allclose(found.median_norms[layer], medians.mean(), rtol=1e-5)
        times = norms / medians[:, None]
        np.testing.assert_allclose(found.largest_norms[layer], times.max(), rtol=1e-5)
        np.testing.assert_allclose(found.large_shares[layer], (times > 3).mean(), rtol=1e-5)
    head = jax.tree.map(np.asarray, params["vision_model"]["head"])
    tokens = np.asarray(out.vision_model_output.last_hidden_state, np.float64)
    q, k = (head["attention"][name] for name in ("q_proj", "k_proj"))
    query = (head["probe"][0] @ q["kernel"] + q["bias"]).reshape(4, 8)
    keys = (tokens @ k["kernel"].astype(np.float64) + k["bias"]).reshape(5, 16, 4, 8)
    weights = np.exp(np.einsum("hd,iphd->ihp", query, keys) / np.sqrt(8))
    weights = (weights / weights.sum(-1, keepdims=True)).mean(axis=1)
    np.testing.assert_allclose(found.attention, weights.mean(0).reshape(4, 4), rtol=2e-5)
    np.testing.assert_allclose(found.attention_spread, weights.std(0, ddof=1).reshape(4, 4), rtol=1e-3)
    table = params["vision_model"]["embeddings"]["position_embedding"]["embedding"]
    np.testing.assert_allclose(found.position_norms, np.linalg.norm(table, axis=1).reshape(4, 4), rtol=1e-6)


def test_the_share_that_is_the_same_is_that_of_a_known_mixture():
    random = np.random.default_rng(0)
    fixed, own = random.standard_normal(40), random.standard_normal((2000, 40))
    for share in (0.0, 0.3, 0.9):
        mixed = np.sqrt(share) * fixed / fixed.std() + np.sqrt(1 - share) * own
        few = _attention(1 / 40 + 1e-4 * (mixed[:12] - mixed[:12].mean(1, keepdims=True)), (5, 8))
        many = _attention(1 / 40 + 1e-4 * (mixed - mixed.mean(1, keepdims=True)), (5, 8))
        assert many["fixed_share"] == pytest.approx(share, abs=0.02)
        assert few["fixed_share"] == pytest.approx(share, abs=0.12)  # chance is taken out


def test_a_fixed_patch_is_found_and_a_wandering_one_is_not():
    random = np.random.default_rng(0)
    attention = random.uniform(0.9, 1.1, (30, 20))
    attention[:, 7] *= 15
    attention[np.arange(30), random.integers(8, 20, 30)] *= 10
    attention /= attention.sum(axis=1, keepdims=True)
    found = _attention(attention, (4, 5))
    assert [(spot.row, spot.column) for spot in found["fixed_patches"]] == [(1, 2)]
    assert found["fixed_patches"][0].times == pytest.approx(20 * attention[:, 7].mean())


def test_tokens_of_large_norm_are_found_by_layer_and_place():
    norms = np.random.default_rng(0).uniform(0.9, 1.1, (3, 10, 12)).astype(np.float32)
    norms[1, :, 5] *= 8
    norms[2, :6, 5] *= 20
    norms[2, 7, 0] *= 4  # in one image only
    found = _norms(norms, (3, 4))
    assert [(s.layer, s.row, s.column, s.images) for s in found["sinks"]] == [(1, 1, 1, 1.0), (2, 1, 1, 0.6)]
    assert found["sinks"][0].times == pytest.approx(8, rel=0.2)
    np.testing.assert_allclose(found["large_shares"], [0, 1 / 12, 7 / 120], rtol=1e-6)


def test_a_planted_outlier_of_the_position_table_is_named(shared_siglip):
    clean = diagnose(shared_siglip, IMAGES)
    assert not clean.position_outliers
    found = diagnose(with_position(shared_siglip, 6, 20.0), IMAGES)
    (spot,) = found.position_outliers
    assert (spot.row, spot.column) == (1, 2)
    np.testing.assert_allclose(spot.times, 20 * clean.position_norms[1, 2] / np.median(clean.position_norms), rtol=0.1)
    assert "row 1 column 2" in found.findings[0] and "position table" in found.findings[0]
    assert (0, 1, 2) in [(spot.layer, spot.row, spot.column) for spot in found.sinks]
    assert json.loads(json.dumps(found.to_dict()))["position_outliers"][0]["column"] == 2


def test_image_towers_of_any_resolution_and_towers_without_a_head(checkpoint, shared_siglip, tmp_path):
    whole = diagnose(shared_siglip, IMAGES)
    tower, params = SiglipVisionModel.from_pretrained(checkpoint)
    alone = diagnose(Siglip(tower, params, shared_siglip.processor, tower.config), IMAGES)
    np.testing.assert_allclose(alone.attention, whole.attention, rtol=1e-5)
    flexible = diagnose(load(write_checkpoint(tmp_path / "flexible", flexible=True)), IMAGES)
    assert flexible.attention.shape == (4, 4)  # squares of at most 20 patches
    assert flexible.attention.sum() == pytest.approx(1, rel=1e-5)
    config = tower.config.replace(vision_use_head=False)
    rest = {"vision_model": {k: v for k, v in params["vision_model"].items() if k != "head"}}
    found = diagnose(Siglip(SiglipVisionModel(config), rest, shared_siglip.processor, config), IMAGES)
    assert found.attention is None and found.fixed_share is None and not found.fixed_patches
    np.testing.assert_allclose(found.median_norms, whole.median_norms, rtol=1e-5)


def test_the_tower_of_a_larger_model(checkpoint, shared_siglip, tmp_path):
    """Robot policies are made of such models."""
    tensors = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    vision = json.loads((checkpoint / "config.json").read_text())["vision_config"]
    part = {f"model.vision_tower.{k}": v for k, v in tensors.items() if k.startswith("vision_model.")}
    kept = {k: v for k, v in part.items() if ".head." not in k} | {"lm_head.weight": np.zeros((4, 4), np.float32)}
    safetensors.numpy.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "paligemma", "vision_config": vision | {"vision_use_head": False}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, whole = diagnose(tmp_path, IMAGES), diagnose(shared_siglip, IMAGES)
    assert found.attention is None
    np.testing.assert_allclose(found.position_norms, whole.position_norms, rtol=1e-6)
    np.testing.assert_allclose(found.median_norms, whole.median_norms, rtol=1e-5)


def test_nothing_found_is_said_and_too_few_images_are_refused(shared_siglip):
    with pytest.raises(ValueError, match="images must be at least two, got 1"):
        diagnose(shared_siglip, IMAGES[:1])
    found = diagnose(shared_siglip, IMAGES)
    said = list(_sentences(found))
    assert said == list(found.findings)
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in said)
