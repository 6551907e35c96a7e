"""Maps of what a model sees: equal to their definitions and to the reference's head, and they find what is drawn."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from jax import numpy as jnp

import siglip_jax
from siglip_jax import Siglip, SiglipModel, explain, load
from siglip_jax.inference import Explanation
from siglip_jax.inference.occlusion import windows_of
from siglip_jax.inference.seen import States, see, states_of
from siglip_jax.params import stack_layers
from siglip_jax.processing import SiglipImageProcessorPil, SiglipProcessor
from tests.support import cases
from tests.support.gelu import tanh_gelu
from tests.support.tiny_checkpoint import picture, write_checkpoint

TEXTS = ["a cat", "two dogs on the beach"]
WIDE = PIL.Image.fromarray(picture(3, (150, 50)))


@pytest.fixture(scope="module")
def flexible(tmp_path_factory) -> Siglip:
    return load(write_checkpoint(tmp_path_factory.mktemp("flexible"), flexible=True, text_length=16))


def head_of(directory: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint's pooling head in float64, by their names in the file."""
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    prefix = "vision_model.head."
    return {k.removeprefix(prefix): v.astype(np.float64) for k, v in tensors.items() if k.startswith(prefix)}


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_definition(head: dict[str, np.ndarray], tokens: np.ndarray, heads: int, epsilon: float, act) -> States:
    """What the head's layers make of tokens (images, patches, width), one product after the other in float64."""
    width = tokens.shape[-1]
    q, k, v = np.split(head["attention.in_proj_weight"], 3)
    q0, k0, v0 = np.split(head["attention.in_proj_bias"], 3)
    query = (head["probe"][0] @ q.T + q0).reshape(heads, -1)
    keys = (tokens @ k.T + k0).reshape(*tokens.shape[:2], heads, -1)
    scores = np.einsum("hd,iphd->ihp", query, keys) / np.sqrt(width // heads)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    y = (tokens @ v.T + v0) @ head["attention.out_proj.weight"].T + head["attention.out_proj.bias"]
    mean, variance = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
    z = (y - mean) / np.sqrt(variance + epsilon) * head["layernorm.weight"] + head["layernorm.bias"]
    z = act(z @ head["mlp.fc1.weight"].T + head["mlp.fc1.bias"])
    alone = y + z @ head["mlp.fc2.weight"].T + head["mlp.fc2.bias"]
    return States(weights, unit(alone), unit(tokens))


def assert_close(found, expected, tolerance=1e-5):
    for name, x, y in zip(States._fields, found, expected, strict=True):
        assert np.abs(np.asarray(x) - y).max() < tolerance * np.abs(y).max(), name


@pytest.mark.parametrize("case", ["odd_heads", "so400m_like", "non_divisible"])
def test_the_maps_are_what_the_head_s_layers_say(case, shared_siglip, tmp_path):
    directory = cases.make_checkpoint(tmp_path, case)
    model, params = SiglipModel.from_pretrained(directory)
    pixels = cases.make_inputs(model.config)["pixel_values"]
    siglip = Siglip(model, params, shared_siglip.processor, model.config)
    tokens = model.apply({"params": params}, pixels, as_map=False, method="get_patch_features")
    vision = model.config.vision_config
    heads, epsilon = vision.num_attention_heads, vision.layer_norm_eps
    expected = by_definition(head_of(directory), np.asarray(tokens, np.float64), heads, epsilon, tanh_gelu)
    assert_close(states_of(siglip, (pixels,)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["odd_heads", "giant_like"])
def test_the_attention_is_that_of_the_reference(case, shared_siglip, tmp_path):
    torch = pytest.importorskip("torch", reason="torch has no CPU build here; the definition in float64 stands in")
    import transformers

    directory = cases.make_checkpoint(tmp_path, case)
    model, params = SiglipModel.from_pretrained(directory)
    pixels = cases.make_inputs(model.config)["pixel_values"]
    found = states_of(Siglip(model, params, shared_siglip.processor, model.config), (pixels,))
    reference = transformers.SiglipVisionModel.from_pretrained(directory).eval()
    tower = getattr(reference, "vision_model", reference)
    with torch.no_grad():
        tokens = tower(torch.tensor(pixels.transpose(0, 3, 1, 2))).last_hidden_state
        probe = tower.head.probe.repeat(len(tokens), 1, 1)
        _, weights = tower.head.attention(probe, tokens, tokens, need_weights=True, average_attn_weights=False)
        alone = tower.head(tokens.reshape(-1, 1, tokens.shape[-1])).reshape(tokens.shape)
    assert_close(found, (weights[:, :, 0].numpy(), unit(alone.numpy()), unit(tokens.numpy())))


def looped(siglip: Siglip, image, size: int) -> np.ndarray:
    """The maps of occlusion, one covered image after the other, pixel by pixel."""
    arrays = siglip.pixels(image)
    patch = 8
    naflex = len(arrays) > 1
    if naflex:
        rows, columns = arrays[2].tolist()
        values = arrays[0][: rows * columns].reshape(rows, columns, patch, patch, 3)
        plain = values.transpose(0, 2, 1, 3, 4).reshape(rows * patch, columns * patch, 3)
    else:
        plain = arrays[0]
        rows, columns = plain.shape[0] // patch, plain.shape[1] // patch
    texts = siglip.encode_text(TEXTS).astype(np.float64)
    mean = plain.astype(np.float64).mean(axis=(0, 1))

    def similarity(pixels):
        if not naflex:
            return texts @ siglip.embed_pixels(pixels[None])[0]
        values = pixels.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
        padded = np.zeros_like(arrays[0])
        padded[: rows * columns] = values
        return texts @ siglip.embed_pixels(padded[None], arrays[1][None], arrays[2][None])[0]

    total, count = np.zeros((len(TEXTS), rows, columns)), np.zeros((rows, columns))
    whole, height, width = similarity(plain), min(size, rows), min(size, columns)

    def starts(side, own):
        return sorted({*range(0, side - own + 1, max(own // 2, 1)), side - own})

    for top in starts(rows, height):
        for left in starts(columns, width):
            covered = plain.copy()
            covered[top * patch : (top + height) * patch, left * patch : (left + width) * patch] = mean
            drop = whole - similarity(covered)
            total[:, top : top + height, left : left + width] += drop[:, None, None]
            count[top : top + height, left : left + width] += 1
    return total / count


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("kind", ["fixed", "flexible"])
def test_occlusion_is_a_loop_over_covered_images(kind, window, shared_siglip, flexible):
    siglip = flexible if kind == "flexible" else shared_siglip
    found = explain(WIDE, TEXTS, siglip, window=window, batch_size=3)
    assert found.maps is found.occlusion
    assert found.maps.shape == ((2, 2, 6) if kind == "flexible" else (2, 4, 4))
    np.testing.assert_allclose(found.maps, looped(siglip, WIDE, window), atol=2e-6)


def test_windows_cover_every_patch():
    for grid, size in (((8, 8), 2), ((7, 3), 4), ((1, 5), 3), ((2, 2), 9)):
        windows = windows_of(grid, size)
        assert windows.any(axis=0).all()
        assert (windows.sum(axis=(1, 2)) == min(size, grid[0]) * min(size, grid[1])).all()
        assert len(np.unique(windows, axis=0)) == len(windows)


def test_similarities_and_scores_are_those_of_the_engine(shared_siglip):
    found = explain(WIDE, TEXTS, shared_siglip, occlusion=False, method="value")
    np.testing.assert_allclose(found.scores, shared_siglip.similarity(WIDE, TEXTS)[0], rtol=1e-5)
    np.testing.assert_allclose(
        found.similarity, shared_siglip.encode_text(TEXTS) @ shared_siglip.encode_image(WIDE)[0], atol=1e-6
    )
    np.testing.assert_allclose(found.attention.sum(axis=(1, 2)), 1, rtol=1e-5)
    assert found.attention.shape == (4, 4, 4) and found.occlusion is None and found.box == (0, 0, 1, 1)
    assert all(x.dtype == np.float32 for x in (found.attention, found.value, found.raw, found.similarity))
    one = explain(np.asarray(WIDE), TEXTS[1], shared_siglip, occlusion=False, method="raw")
    assert one.texts == (TEXTS[1],)
    np.testing.assert_allclose(one.maps[0], found.raw[1], atol=1e-6)


@pytest.mark.slow
def test_grids_of_variable_resolution_have_no_padding(flexible):
    found = explain(WIDE, TEXTS, flexible, occlusion=False, method="attention")
    assert found.maps.shape == (2, 2, 6)  # 12 of the 20 patches that an image may have
    np.testing.assert_allclose(found.maps.sum(axis=(1, 2)), 1, rtol=1e-5)
    pixels, mask, grid = flexible.pixels(WIDE)
    features = flexible.model.apply(
        {"params": flexible.params}, pixels[None], mask[None], grid[None], method="get_patch_features"
    )
    raw = np.einsum("tw,rcw->trc", flexible.encode_text(TEXTS), unit(np.asarray(features)[0]))
    np.testing.assert_allclose(found.raw, raw, atol=1e-5)


@pytest.mark.slow
def test_own_aspect_resizes_the_position_table(shared_siglip):
    found = explain(WIDE, TEXTS, shared_siglip, own_aspect=True, window=1)
    assert found.maps.shape == (2, 2, 6)  # of 16 positions
    processor = shared_siglip.processor.image_processor
    pixels = processor(WIDE, size=(16, 48)).pixel_values
    embed = shared_siglip.model.apply(
        {"params": shared_siglip.params}, pixels, interpolate_pos_encoding=True, method="get_image_features"
    )
    texts = shared_siglip.encode_text(TEXTS)
    np.testing.assert_allclose(found.similarity, texts @ unit(np.asarray(embed))[0], atol=1e-6)
    covered = pixels.copy()
    covered[0, 8:16, 16:24] = pixels.mean(axis=(0, 1, 2))
    other = shared_siglip.model.apply(
        {"params": shared_siglip.params}, covered, interpolate_pos_encoding=True, method="get_image_features"
    )
    drop = texts @ (unit(np.asarray(embed)) - unit(np.asarray(other)))[0]
    np.testing.assert_allclose(found.occlusion[:, 1, 2], drop, atol=2e-6)


def of_maps(maps: np.ndarray, box=(0.0, 0.0, 1.0, 1.0)) -> Explanation:
    zeros = np.zeros(len(maps), np.float32)
    return Explanation(("x",) * len(maps), "value", maps[:1], maps, maps, None, zeros, zeros, box)


def test_maps_lie_over_the_image():
    maps = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    np.testing.assert_allclose(of_maps(maps).resized(2, 3), maps)
    larger = of_maps(maps).resized(6, 9)[0]
    np.testing.assert_allclose(larger[1::3, 1::3], maps[0])  # the centres of the patches
    np.testing.assert_allclose(larger[0], larger[1])  # beyond the outer centres the map goes on
    np.testing.assert_allclose(larger[1, 1:5], [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    inner = of_maps(maps, (0.25, 0.0, 0.75, 1.0)).resized(8, 3)[0]
    assert np.isnan(inner[[0, 1, 6, 7]]).all()
    np.testing.assert_allclose(inner[2:6, 0], [0, 0.75, 2.25, 3])


def test_centres_are_the_mass_above_half_way_from_the_median_to_the_maximum():
    maps = np.full((3, 4, 5), -1.0, np.float32)
    maps[0, 1, 3] = 1
    maps[1, 0, 0], maps[1, 0, 1], maps[1, 3, 4] = 1, 1, 0.0  # half way up is 0: the last has no mass
    found = of_maps(maps)
    np.testing.assert_allclose(found.centres(), [(1.5 / 4, 3.5 / 5), (0.5 / 4, 1 / 5), (0.5, 0.5)], rtol=1e-6)
    half = dataclasses.replace(found, box=(0.5, 0.0, 1.0, 0.5))
    np.testing.assert_allclose(half.centres()[0], (0.5 + 0.5 * 1.5 / 4, 0.5 * 3.5 / 5), rtol=1e-6)


def test_the_box_says_what_the_processor_crops_and_what_is_no_whole_patch(shared_siglip):
    def box_of(**options):
        processor = SiglipImageProcessorPil(**options)
        siglip = Siglip(shared_siglip.model, shared_siglip.params, shared_siglip.processor, shared_siglip.config)
        siglip.processor = SiglipProcessor(processor, siglip.processor.tokenizer)
        return see(siglip, WIDE)

    assert box_of(size=(32, 32))[1:] == ((4, 4), (0, 0, 1, 1))
    cropped = box_of(size={"shortest_edge": 40}, do_center_crop=True, crop_size=(32, 32))
    assert cropped[1:] == ((4, 4), (4 / 40, 44 / 120, 36 / 40, 76 / 120))
    assert box_of(size=(37, 33))[1:] == ((4, 4), (0, 0, 32 / 37, 32 / 33))
    assert box_of(do_resize=False)[1] == (6, 18)


@pytest.mark.slow
def test_stacked_layers_and_bfloat16_give_the_same_maps(checkpoint, shared_siglip):
    plain = explain(WIDE, TEXTS, shared_siglip)
    model = SiglipModel(shared_siglip.config, scan_layers=True)
    stacked = Siglip(model, stack_layers(shared_siglip.params), shared_siglip.processor, shared_siglip.config)
    found = explain(WIDE, TEXTS, stacked)
    for name in ("attention", "value", "raw", "occlusion"):
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name), atol=2e-6)
    rough = explain(WIDE, TEXTS, load(checkpoint, dtype="bfloat16"))
    for name in ("attention", "value", "raw", "occlusion"):
        assert getattr(rough, name).dtype == np.float32
        np.testing.assert_allclose(getattr(rough, name), getattr(plain, name), atol=0.02)


@pytest.mark.slow
def test_quantized_models_are_explained(checkpoint, shared_siglip):
    plain, found = (explain(WIDE, TEXTS, model) for model in (shared_siglip, load(checkpoint, quantization="int8")))
    for name in ("attention", "value", "raw", "occlusion"):
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name), atol=0.05)


def test_errors_are_one_line(shared_siglip, checkpoint):
    def refused(match, *arguments, **options):
        with pytest.raises(ValueError, match=match) as caught:
            explain(*arguments, **options)
        assert "\n" not in str(caught.value)

    refused("texts must not be empty", WIDE, [], shared_siglip)
    refused("method must be one of", WIDE, TEXTS, shared_siglip, method="gradients")
    refused("method must be one that is computed, got 'occlusion'", WIDE, TEXTS, shared_siglip, occlusion=False)
    refused("window must be an integer of at least 1", WIDE, TEXTS, shared_siglip, window=0)
    with pytest.raises(FileNotFoundError, match=r"no\.png"):
        explain("no.png", TEXTS, shared_siglip)
    tower, params = siglip_jax.SiglipVisionModel.from_pretrained(checkpoint)
    alone = Siglip(tower, params, shared_siglip.processor, tower.config)
    refused("the model must have both towers", WIDE, TEXTS, alone)
    config = tower.config.replace(vision_use_head=False)
    headless = siglip_jax.SiglipVisionModel(config)
    fresh = headless.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    with pytest.raises(ValueError, match="vision_use_head must be True for maps"):
        states_of(Siglip(headless, fresh, shared_siglip.processor, config), (np.zeros((1, 32, 32, 3)),))
    found = explain(WIDE, TEXTS, shared_siglip, occlusion=False, method="value")
    with pytest.raises(ValueError, match="method must be one that was computed"):
        found.maps_of("occlusion")


@pytest.fixture
def find_pictograms(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import find_pictograms

    return find_pictograms


@pytest.mark.slow
def test_explain_finds_the_drawn_object(find_pictograms):
    found = find_pictograms.measure(24, "one, square")
    assert found["occlusion"] >= 0.8 and found["attention"] >= 0.95
    assert found["occlusion"] > max(found["value"], found["raw"], found["middle"])
