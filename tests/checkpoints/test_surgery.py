"""Changes to checkpoints against the reference, scipy and brute force."""

import jax
import numpy as np
import pytest
from scipy import ndimage

import siglip_jax
from siglip_jax import SiglipConfig, SiglipForImageClassification, SiglipModel, SiglipVisionModel
from siglip_jax.checkpoints import surgery
from siglip_jax.checkpoints.keymap import key_table
from siglip_jax.params import flatten, unflatten
from tests.support import cases

CASE = "giant_like"
POSITIONS = "vision_model/embeddings/position_embedding/embedding"


@pytest.fixture
def checkpoint(tmp_path):
    return siglip_jax.read_checkpoint(cases.make_checkpoint(tmp_path, CASE))


def others(checkpoint, *paths):
    return {path: np.asarray(x).tobytes() for path, x in flatten(checkpoint.params).items() if path not in paths}


@pytest.mark.slow
def test_resized_positions_compute_what_interpolation_computes(checkpoint):
    changed, said = surgery.with_resolution(checkpoint, 48)
    assert said == "position table 4 x 4 resized to 6 x 6 (bicubic) for images of 48 pixels"
    assert changed.config.vision_config.image_size == 48 and others(changed, POSITIONS) == others(checkpoint, POSITIONS)
    pixels = np.random.RandomState(0).standard_normal((2, 48, 48, 3)).astype(np.float32)
    old, new = SiglipModel(checkpoint.config), SiglipModel(changed.config)

    def features(model, params, **options):
        return model.apply({"params": jax.tree.map(np.asarray, params)}, pixels, method="get_image_features", **options)

    expected = features(old, checkpoint.params, interpolate_pos_encoding=True)
    found = features(new, changed.params)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_rule_of_big_vision_is_scipy_zoom(checkpoint):
    changed, _ = surgery.with_resolution(checkpoint, 56, rule="big_vision")
    table = np.asarray(flatten(checkpoint.params)[POSITIONS])
    expected = ndimage.zoom(table.reshape(4, 4, -1), (7 / 4, 7 / 4, 1), order=1).reshape(49, -1)
    np.testing.assert_allclose(flatten(changed.params)[POSITIONS], expected, rtol=1e-6, atol=1e-6)
    same, _ = surgery.with_resolution(checkpoint, 32)
    np.testing.assert_array_equal(flatten(same.params)[POSITIONS], table)


@pytest.mark.parametrize("size", [4, 14, 16])
def test_resized_patches_embed_resized_pictures_as_before(checkpoint, size):
    changed, said = surgery.with_patch_size(checkpoint, size)
    assert f"images are {4 * size} now" in said
    path = "vision_model/embeddings/patch_embedding/kernel"
    old, new = (np.float64(flatten(c.params)[path]) for c in (checkpoint, changed))
    assert new.shape == (size, size, 3, 96) and changed.config.vision_config.num_patches == 16
    # The whole problem at once: of all new kernels, the one whose answers to resized patches differ least.
    one = surgery._bilinear_matrix(8, size)
    resize = np.kron(one, one)
    expected = np.linalg.pinv(resize.T) @ old.reshape(64, -1)
    np.testing.assert_allclose(new.reshape(size * size, -1), expected, atol=1e-6)
    if size > 8:  # nothing is lost by enlarging: every patch embeds exactly as before
        patch = np.random.RandomState(0).standard_normal((64, 5))
        np.testing.assert_allclose(
            (resize @ patch).T @ new.reshape(size * size, 3, -1)[:, 0],
            patch.T @ old.reshape(64, 3, -1)[:, 0],
            atol=1e-5,
        )


def test_bilinear_matrix_has_the_values_of_half_pixel_centres():
    np.testing.assert_allclose(surgery._bilinear_matrix(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_allclose(surgery._bilinear_matrix(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])


def test_text_length(checkpoint):
    path = "text_model/embeddings/position_embedding/embedding"
    table = np.asarray(flatten(checkpoint.params)[path])
    shorter, said = surgery.with_text_length(checkpoint, 5)
    assert "from 16 to 5" in said and shorter.config.text_config.max_position_embeddings == 5
    np.testing.assert_array_equal(flatten(shorter.params)[path], table[[0, 1, 2, 3, 15]])
    longer, said = surgery.with_text_length(checkpoint, 64)
    found = flatten(longer.params)[path]
    assert "fine-tuning" in said and found.shape == (64, 64)
    np.testing.assert_array_equal(found[:15], table[:15])
    np.testing.assert_array_equal(found[-1], table[15])
    steps = np.diff(found[14:], axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps.mean(0), steps.shape), atol=1e-6)
    assert others(longer, path) == others(checkpoint, path)


def test_dtype_leaves_temperature_and_bias(checkpoint):
    changed, said = surgery.with_dtype(checkpoint, "bfloat16")
    kinds = {path: x.dtype.name for path, x in flatten(changed.params).items()}
    assert {path for path, kind in kinds.items() if kind != "bfloat16"} == {"logit_scale", "logit_bias"}
    assert said == "parameters converted to bfloat16"
    before, after = flatten(checkpoint.params), flatten(changed.params)
    for path, x in before.items():
        np.testing.assert_array_equal(np.asarray(after[path]), np.asarray(x).astype(kinds[path]))


def test_a_changed_type_takes_no_memory_before_it_is_looked_at(checkpoint):
    changed, _ = surgery.with_dtype(checkpoint, "float16")
    held = [path for path, x in flatten(changed.params).items() if isinstance(x, np.ndarray)]
    assert sorted(held) == ["logit_bias", "logit_scale"]


def test_a_fresh_classifier_is_written_and_loads(checkpoint, tmp_path):
    changed, _ = surgery.with_labels(checkpoint, ["a cat", "a lion", "neither"])
    siglip_jax.write_checkpoint(tmp_path / "out", changed, "huggingface")
    model, params = SiglipForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "a cat", 1: "a lion", 2: "neither"}
    assert params["classifier"]["kernel"].shape == (96, 3) and set(params) == {"vision_model", "classifier"}


def test_what_cannot_be_changed_is_refused(checkpoint):
    with pytest.raises(ValueError, match="rule must be one of"):
        surgery.with_resolution(checkpoint, 48, rule="nearest")
    with pytest.raises(ValueError, match="text length must be at least 2, got 1"):
        surgery.with_text_length(checkpoint, 1)
    config = SiglipConfig.from_variant("siglip2-base-patch16-naflex")
    naflex = siglip_jax.Checkpoint(config, {}, "huggingface", "Siglip2Model")
    with pytest.raises(ValueError, match="must have an image tower of fixed resolution, got a Siglip2Model"):
        surgery.with_resolution(naflex, 48)


@pytest.mark.parametrize("prefix", ["vision_tower.vision_model.", "model.vision_tower."])
def test_the_image_tower_of_a_larger_model(tmp_path, prefix):
    """As in PaliGemma: another model_type, other tensors beside, no pooling head."""
    import json

    import safetensors.numpy

    config = cases.make_config(CASE).vision_config.replace(vision_use_head=False)
    tensors = cases.make_tensors(config, "SiglipVisionModel")
    renamed = {prefix + key.removeprefix("vision_model."): x for key, x in tensors.items()}
    renamed["language_model.model.embed_tokens.weight"] = np.ones((3, 4), np.float32)
    safetensors.numpy.save_file(renamed, tmp_path / "model.safetensors")
    d = {"model_type": "paligemma", "vision_config": config.to_dict(), "text_config": {"model_type": "gemma"}}
    (tmp_path / "config.json").write_text(json.dumps(d))
    model, params = SiglipVisionModel.from_pretrained(tmp_path)
    assert model.config.replace(extra={}) == config
    flat = flatten(params)
    assert set(flat) == {row.path for row in key_table(config, "SiglipVisionModel")}
    expected = unflatten({row.path: row.param(tensors[row.key]) for row in key_table(config, "SiglipVisionModel")})
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), params, expected)))
