"""Quantized models: which parameters are quantized, their accuracy, and files that are read to the bit or refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import siglip_jax
from siglip_jax.checkpoints import Checkpoint, write_checkpoint
from siglip_jax.checkpoints.formats.quantized import WEIGHTS
from siglip_jax.checkpoints.keymap import key_table
from siglip_jax.configs.configuration import Siglip2Config, SiglipConfig
from siglip_jax.inference.quantize import compare
from siglip_jax.models import Siglip2Model, SiglipModel, placement
from siglip_jax.params import flatten, unflatten
from siglip_jax.quantization.schemes import SCHEMES, Quantized, dequantize, quantize
from tests.support.tiny_checkpoint import picture

TEXTS = ["a cat", "two dogs on the beach", "a red car"]
LEAST_COSINE = {"int8": 0.999, "int4": 0.95}  # to the float embeddings of the bundled model; 0.9996 and 0.963 measured
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [picture(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def bundled():
    return siglip_jax.load()


def write_random(home: Path, directory: Path, text: dict, vision: dict, flexible: bool = False) -> Path:
    """Writes a random model with the processor files of another; a few weights are a thousand times the others."""
    shutil.copytree(home, directory)
    known = SiglipConfig.from_pretrained(home).text_config
    text |= {"vocab_size": known.vocab_size, "max_position_embeddings": known.max_position_embeddings}
    config = (Siglip2Config if flexible else SiglipConfig)(text_config=text, vision_config=vision)
    model = (Siglip2Model if flexible else SiglipModel)(config)
    rng = np.random.default_rng(0)
    rows = key_table(config, type(model).__name__)
    flat = {row.path: rng.normal(scale=row.shape[0] ** -0.5, size=row.shape).astype(np.float32) for row in rows}
    flat["vision_model/encoder/layers_0/mlp/fc1/kernel"][3, 5] = 40
    flat["text_model/encoder/layers_0/self_attn/v_proj/kernel"][0, :3] = -40
    model.save_pretrained(directory, unflatten(flat))
    return directory


@pytest.fixture(scope="module")
def awkward(checkpoint, tmp_path_factory) -> Path:
    """Heads of 5, matrices of odd sizes, towers of two widths."""
    text = {"hidden_size": 35, "intermediate_size": 77, "num_hidden_layers": 1, "num_attention_heads": 7}
    vision = {"hidden_size": 45, "intermediate_size": 131, "num_hidden_layers": 1, "num_attention_heads": 9}
    vision |= {"image_size": 32, "patch_size": 8}
    directory = tmp_path_factory.mktemp("awkward") / "model"
    return write_random(checkpoint, directory, text | {"projection_size": 45}, vision)


@pytest.fixture(scope="module")
def awkward_floats(awkward):
    return siglip_jax.load(awkward)


def same(one: siglip_jax.inference.Siglip, other: siglip_jax.inference.Siglip) -> None:
    """The same computation with parameters of the same bits."""
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    strip = [dataclasses.replace(each.model, config=each.model.config.replace(extra={})) for each in (one, other)]
    assert strip[0] == strip[1]
    np.testing.assert_array_equal(*(each.processor(text=TEXTS)["input_ids"] for each in (one, other)))
    np.testing.assert_array_equal(*(each.processor(images=[picture(0)])["pixel_values"] for each in (one, other)))


def expected_kernels(config) -> set[str]:
    paths = {"text_model/head/kernel"}
    for tower, layers in (("text_model", config.text_config), ("vision_model", config.vision_config)):
        for i in range(layers.num_hidden_layers):
            at = f"{tower}/encoder/layers_{i}"
            paths |= {f"{at}/self_attn/{name}/kernel" for name in PROJECTIONS}
            paths |= {f"{at}/mlp/{name}/kernel" for name in ("fc1", "fc2")}
    paths |= {f"vision_model/head/attention/{name}/kernel" for name in PROJECTIONS}
    return paths | {f"vision_model/head/mlp/{name}/kernel" for name in ("fc1", "fc2")}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_dense_kernel_and_nothing_else_is_quantized(checkpoint, shared_siglip, scheme):
    made = siglip_jax.load(checkpoint, quantization=scheme)
    flat, floats = flatten(made.params), flatten(shared_siglip.params)
    assert set(flat) == set(floats)
    quantized = {path for path, x in flat.items() if isinstance(x, Quantized)}
    assert quantized == expected_kernels(made.config)
    assert {flat[path].scheme for path in quantized} == {scheme}
    for path in set(flat) - quantized:
        np.testing.assert_array_equal(flat[path], floats[path])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", LEAST_COSINE)
def test_the_bundled_model_stays_close_to_the_float_one(bundled, scheme):
    found = compare(bundled, siglip_jax.load(quantization=scheme))
    assert found["examples"] == 64
    for cosine in found["cosine"].values():
        assert LEAST_COSINE[scheme] <= cosine["least"] <= cosine["mean"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["nf4", "fp8"])
def test_weights_alone_compute_what_the_dequantized_float_model_does(awkward, awkward_floats, scheme, pictures):
    made = siglip_jax.load(awkward, quantization=scheme)
    back = jax.tree.map(
        lambda x: dequantize(x) if isinstance(x, Quantized) else x,
        made.params,
        is_leaf=lambda x: isinstance(x, Quantized),
    )
    floats = awkward_floats.with_params(back)
    np.testing.assert_allclose(made.encode_image(pictures), floats.encode_image(pictures), atol=2e-6)


@pytest.mark.slow
def test_awkward_sizes_and_outliers_in_int8(awkward, awkward_floats, pictures):
    made = siglip_jax.load(awkward, quantization="int8")
    for one, other in (
        (made.encode_image(pictures), awkward_floats.encode_image(pictures)),
        (made.encode_text(TEXTS), awkward_floats.encode_text(TEXTS)),
    ):
        assert one.shape == (len(one), 45) and (one * other).sum(axis=1).min() >= 0.998


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_awkward_sizes_in_files(awkward, scheme, tmp_path):
    made = siglip_jax.load(awkward, quantization=scheme)
    made.save_pretrained(tmp_path)
    same(siglip_jax.load(tmp_path), made)


@pytest.mark.slow
def test_variable_resolution_and_bfloat16(checkpoint, tmp_path):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = tower | {"num_patches": 16, "patch_size": 8}
    directory = write_random(checkpoint, tmp_path / "naflex", dict(tower), vision, flexible=True)
    (directory / "preprocessor_config.json").write_text('{"image_processor_type": "Siglip2ImageProcessor"}')
    made = siglip_jax.load(directory, quantization="int8", dtype="bfloat16")
    assert not isinstance(flatten(made.params)["vision_model/embeddings/patch_embedding/kernel"], Quantized)
    texts = made.encode_text(TEXTS), siglip_jax.load(directory).encode_text(TEXTS)
    assert (texts[0] * texts[1]).sum(axis=1).min() > 0.998
    made.save_pretrained(tmp_path / "saved")
    same(siglip_jax.load(tmp_path / "saved", dtype="bfloat16"), made)


def test_only_the_tower_that_is_used_is_quantized(checkpoint, monkeypatch):
    done = []
    monkeypatch.setattr(placement, "quantize", lambda x, scheme: done.append(x.shape) or quantize(x, scheme))
    siglip = siglip_jax.load(checkpoint, quantization="int4")
    assert not done
    siglip.encode_text(TEXTS)
    texts = len(done)
    assert texts == sum(isinstance(x, Quantized) for x in flatten(siglip.text_encoder.params).values())
    siglip.encode_text(TEXTS)
    assert len(done) == texts
    assert sum(isinstance(x, Quantized) for x in flatten(siglip.params).values()) == len(done) > texts


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_over_a_mesh(optimized, checkpoint, scheme, pictures, tmp_path):
    mesh = siglip_jax.make_mesh(data=2, fsdp=2, tensor=2)
    alone = siglip_jax.load(checkpoint, quantization=scheme)
    over = siglip_jax.load(checkpoint, quantization=scheme, mesh=mesh)
    kernel = over.params["vision_model"]["encoder"]["layers_0"]["mlp"]["fc1"]["kernel"]
    for x in (kernel.codes, kernel.scale) if scheme else (kernel,):
        assert len(x.sharding.device_set) == 8 and not x.sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, over.params, alone.params)
    if scheme == "int4":
        np.testing.assert_allclose(over.encode_image(pictures), alone.encode_image(pictures), atol=2e-6)
    if scheme == "int8":
        # A float sum that is sharded in another way may round an input to the next of its 255 values.
        np.testing.assert_allclose(over.encode_text(TEXTS), alone.encode_text(TEXTS), atol=1e-2)
        over.save_pretrained(tmp_path)
        same(siglip_jax.load(tmp_path, mesh=mesh), over)


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("quantized")
    siglip_jax.load(checkpoint, quantization="int4").save_pretrained(directory)
    return directory


class TestFiles:
    @pytest.fixture
    def saved(self, whole, tmp_path) -> Path:
        return Path(shutil.copytree(whole, tmp_path / "saved"))

    def refused(self, call, *words):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            call()
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)

    def test_four_bits_in_the_file(self, whole):
        from siglip_jax.checkpoints.safetensors_file import read_safetensors

        tensors = read_safetensors(whole / WEIGHTS)
        codes = tensors["vision_model.head.attention.q_proj.kernel.codes"]
        assert (codes.shape, codes.dtype) == ((16, 32), np.uint8)
        assert json.loads((whole / "config.json").read_text())["quantization_config"] == {
            "quant_method": "siglip_jax",
            "scheme": "int4",
        }

    def test_another_scheme(self, saved):
        self.refused(
            lambda: siglip_jax.load(saved, quantization="int8"),
            "weights must be floats to be quantized to int8, got int4",
        )
        assert siglip_jax.load(saved, quantization="int4").encode_text("a cat").shape == (1, 32)

    def test_an_unknown_scheme(self, checkpoint):
        self.refused(
            lambda: siglip_jax.load(checkpoint, quantization="int3"), "'int8', 'int4', 'nf4', 'fp8', got 'int3'"
        )

    def test_readers_of_floats_say_what_it_is(self, saved):
        for read in (siglip_jax.read_checkpoint, SiglipModel.from_pretrained):
            for path in (saved, saved / WEIGHTS):
                self.refused(lambda read=read, path=path: read(path), "got a quantized one", "siglip_jax.load")

    def test_damaged(self, saved):
        weights, data = saved / WEIGHTS, (saved / WEIGHTS).read_bytes()
        for part in (data[: len(data) // 2], data[:5], b""):
            weights.write_bytes(part)
            self.refused(lambda: siglip_jax.load(saved), WEIGHTS, "corrupt")
        weights.write_bytes(data.replace(b"q_proj.kernel.codes", b"x_proj.kernel.codes"))
        self.refused(lambda: siglip_jax.load(saved), "missing", "x_proj")
        weights.write_bytes(data.replace(b'"dtype":"U8"', b'"dtype":"I8"'))
        self.refused(lambda: siglip_jax.load(saved), "dtypes must be those of int4, got", "int8")

    @pytest.mark.parametrize(
        "section", [None, 3, {}, {"quant_method": "bitsandbytes", "scheme": "int4"}, {"scheme": []}]
    )
    def test_a_configuration_that_says_something_else(self, saved, section):
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
        self.refused(lambda: siglip_jax.load(saved), "config.json", "quantization_config")

    def test_a_configuration_of_another_scheme(self, saved):
        text = (saved / "config.json").read_text()
        (saved / "config.json").write_text(text.replace('"int4"', '"int8"'))
        self.refused(lambda: siglip_jax.load(saved), "of the wrong shape")

    def test_float_weights_are_not_replaced(self, checkpoint, saved, tmp_path):
        home = Path(shutil.copytree(checkpoint, tmp_path / "floats"))
        before = {path.name: path.read_bytes() for path in home.iterdir()}
        self.refused(
            lambda: siglip_jax.load(saved).save_pretrained(home),
            "the directory must not hold float weights, got a float checkpoint",
        )
        assert {path.name: path.read_bytes() for path in home.iterdir()} == before

    def test_a_float_model_takes_the_place_of_a_quantized_one(self, shared_siglip, saved):
        shared_siglip.save_pretrained(saved)
        again = siglip_jax.load(saved)
        np.testing.assert_array_equal(again.encode_text(TEXTS), shared_siglip.encode_text(TEXTS))
        assert not (saved / WEIGHTS).exists()

    def test_quantized_parameters_are_not_written_as_floats(self, saved, tmp_path):
        small = siglip_jax.load(saved)
        self.refused(lambda: small.model.save_pretrained(tmp_path / "x", small.params), "Siglip.save_pretrained")
        assert not (tmp_path / "x").exists()

    def test_float_parameters_are_not_written_as_quantized(self, shared_siglip, tmp_path):
        floats = Checkpoint(shared_siglip.config, shared_siglip.params, "quantized", "SiglipModel")
        self.refused(lambda: write_checkpoint(tmp_path, floats), "of one scheme, got []")
