"""The arguments of `from_pretrained` that change what is read: against `transformers` where it has them."""

import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax import SiglipForImageClassification, SiglipModel, SiglipTextModel, SiglipVisionModel
from siglip_jax.checkpoints import Checkpoint
from siglip_jax.checkpoints.surgery import with_resolution
from siglip_jax.params import flatten
from tests.support import cases, naflex_cases

CASE = "odd_heads"


@pytest.fixture
def directory(tmp_path):
    return cases.make_checkpoint(tmp_path / "in", CASE)


def same(one, two):
    one, two = flatten(one), flatten(two)
    assert one.keys() == two.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], two[path], err_msg=path)


def test_a_lone_weights_file_needs_a_configuration(directory):
    file = directory / "model.safetensors"
    config = siglip_jax.SiglipConfig.from_pretrained(directory)
    _, expected = SiglipModel.from_pretrained(directory)
    shutil.move(directory / "config.json", directory.parent / "sizes.json")
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        SiglipModel.from_pretrained(file)
    for given in (config, directory.parent / "sizes.json", str(directory.parent / "sizes.json")):
        model, params = SiglipModel.from_pretrained(file, config=given)
        assert model.config == config
        same(params, expected)
    _, tower = SiglipVisionModel.from_pretrained(file, config=config.vision_config)
    same(tower, {"vision_model": expected["vision_model"]})
    _, tower = SiglipTextModel.from_pretrained(file, config=config)
    same(tower, {"text_model": expected["text_model"]})
    wrong = config.replace(vision_config=config.vision_config.replace(image_size=2 * config.vision_config.image_size))
    with pytest.raises(ValueError, match="position_embedding"):
        SiglipModel.from_pretrained(file, config=wrong)


@pytest.mark.parametrize("held", [None, 4], ids=["no classifier", "another classifier"])
def test_another_number_of_labels_is_a_fresh_layer_with_one_warning(directory, held, caplog):
    config = cases.make_config(CASE)
    name = "SiglipForImageClassification"
    if held:
        config = config.replace(num_labels=held)
        cases.write_directory(directory, config, cases.make_tensors(config, name), name)
    names = {i: f"bird {i}" for i in range(5)}
    for given in ({"num_labels": 5}, {"id2label": names}, {"num_labels": 5, "id2label": names}):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model, params = SiglipForImageClassification.from_pretrained(directory, **given)
        width = config.vision_config.hidden_size
        (record,) = caplog.records
        assert f"classifier/kernel ({width}, 5) and classifier/bias (5,) are fresh" in record.getMessage()
        assert model.config.id2label == given.get("id2label", {i: f"LABEL_{i}" for i in range(5)})
        assert params["classifier"]["kernel"].shape == (width, 5) and not params["classifier"]["kernel"].any()
        same(params["vision_model"], SiglipVisionModel.from_pretrained(directory)[1]["vision_model"])


def test_other_names_of_the_same_labels_keep_the_layer(directory, caplog):
    name, names = "SiglipForImageClassification", {0: "jay", 1: "wren", 2: "rook"}
    config = cases.make_config(CASE).replace(num_labels=3)
    cases.write_directory(directory, config, cases.make_tensors(config, name), name)
    _, expected = SiglipForImageClassification.from_pretrained(directory)
    with caplog.at_level(logging.WARNING):
        model, params = SiglipForImageClassification.from_pretrained(directory, id2label=names)
    assert not caplog.records and model.config.id2label == names and model.config.label2id["rook"] == 2
    same(params, expected)
    with pytest.raises(ValueError, match="^num_labels must be the length of id2label, got num_labels=4 and 3 names"):
        SiglipForImageClassification.from_pretrained(directory, id2label=names, num_labels=4)
    with pytest.raises(ValueError, match="^num_labels must be None for SiglipVisionModel, got 3; leave it out$"):
        SiglipVisionModel.from_pretrained(directory, num_labels=3)


@pytest.mark.parametrize("cls", [SiglipModel, SiglipVisionModel], ids=["whole", "tower"])
def test_another_image_size_resizes_the_positions(directory, cls):
    model, params = cls.from_pretrained(directory, image_size=48)
    assert getattr(model.config, "vision_config", model.config).image_size == 48
    before, held = cls.from_pretrained(directory)
    checkpoint = Checkpoint(before.config, jax.tree.map(np.asarray, held), "huggingface", cls.__name__)
    same(params, with_resolution(checkpoint, 48).checkpoint.params)
    same(cls.from_pretrained(directory, image_size=32)[1], held)
    pixels = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
    if cls is SiglipVisionModel:
        expected = before.apply({"params": held}, pixels, interpolate_pos_encoding=True).pooler_output
        np.testing.assert_allclose(
            model.apply({"params": params}, pixels).pooler_output, expected, rtol=1e-5, atol=1e-5
        )


def test_an_image_size_is_refused_where_it_means_nothing(directory, tmp_path):
    with pytest.raises(
        ValueError, match="^the checkpoint must have an image tower of fixed resolution, got a SiglipText"
    ):
        SiglipTextModel.from_pretrained(directory, image_size=48)
    flexible = naflex_cases.make_checkpoint(tmp_path / "flexible", "naflex")
    with pytest.raises(ValueError, match="^image_size must be None for Siglip2Model, got 48; its images have any size"):
        siglip_jax.Siglip2Model.from_pretrained(flexible, image_size=48)


def test_a_variant_and_a_subfolder(directory, tmp_path):
    _, expected = SiglipModel.from_pretrained(directory)
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    small = {k: v if k.startswith("logit") else v.astype(np.float16) for k, v in tensors.items()}
    safetensors.numpy.save_file(small, directory / "model.fp16.safetensors")
    _, params = SiglipModel.from_pretrained(tmp_path, subfolder="in/odd_heads", variant="fp16", param_dtype="float32")
    np.testing.assert_array_equal(
        params["text_model"]["head"]["kernel"], expected["text_model"]["head"]["kernel"].astype(np.float16)
    )
    halves = dict(list(small.items())[::2]), dict(list(small.items())[1::2])
    (directory / "model.fp16.safetensors").unlink()
    files = [f"model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        safetensors.numpy.save_file(half, directory / file)
    weight_map = {key: file for file, half in zip(files, halves, strict=True) for key in half}
    (directory / "model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": weight_map}))
    same(SiglipModel.from_pretrained(directory, variant="fp16", param_dtype="float32")[1], params)
    with pytest.raises(
        FileNotFoundError, match=r"must hold model\.bf16\.safetensors for variant='bf16', got none; leave"
    ):
        SiglipModel.from_pretrained(directory, variant="bf16")
    with pytest.raises(ValueError, match=r"^variant must be a name such as 'fp16', got '\.\./x'"):
        SiglipModel.from_pretrained(directory, variant="../x")
    with pytest.raises(FileNotFoundError, match="subfolder must be a folder in it, got 'out'; leave it out"):
        SiglipModel.from_pretrained(tmp_path, subfolder="out")
    for bad in ("..", "in/../..", "/etc/.."):
        with pytest.raises(ValueError, match="^subfolder must be the name of a folder such as 'siglip' or 'a/b', got"):
            SiglipModel.from_pretrained(tmp_path, subfolder=bad)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the reference emits warnings
@pytest.mark.parametrize("name", ["SiglipModel", "SiglipVisionModel"])
def test_folders_variants_and_configurations_are_those_of_the_reference(name, tmp_path):
    """Directories that `transformers` writes: both read the same weights, and refuse for the same reason."""
    pytest.importorskip("torch", reason="torch has no CPU build here; the arguments are tested above")
    import transformers

    from tests.support import layouts

    reference, ours = getattr(transformers, name), getattr(siglip_jax, name)
    model = layouts.build(name)
    model.save_pretrained(tmp_path / "deep" / "siglip")
    half = layouts.build(name, "float16")
    half.save_pretrained(tmp_path / "deep" / "siglip", variant="fp16", max_shard_size="40KB")
    other = type(model.config).from_dict(model.config.to_dict())
    parts = [getattr(other, part, other) for part in ("text_config", "vision_config")]
    for part in parts:
        part.layer_norm_eps, part.hidden_act = 1e-2, "relu"
    other.save_pretrained(tmp_path / "other")
    assert (tmp_path / "deep" / "siglip" / "model.safetensors.index.fp16.json").is_file()

    def weights(**given):
        theirs = reference.from_pretrained(tmp_path, dtype="float32", **given)
        module, params = ours.from_pretrained(tmp_path, param_dtype="float32", **given)
        module.save_pretrained(tmp_path / "again", params, overwrite=True)
        found = {key: x.detach().numpy() for key, x in reference.from_pretrained(tmp_path / "again").named_parameters()}
        expected = {key: x.detach().numpy() for key, x in theirs.named_parameters()}
        same(found, expected)
        return theirs, expected

    folder = {"subfolder": "deep/siglip"}
    whole, small = weights(**folder)[1], weights(variant="fp16", **folder)[1]
    assert all(np.array_equal(small[key], x.astype(np.float16)) for key, x in whole.items())
    assert any((small[key] != x).any() for key, x in whole.items())
    weights(config=str(tmp_path / "other" / "config.json"), **folder)
    model.save_pretrained(tmp_path)
    theirs, _ = weights(config=tmp_path / "other")
    assert layouts.difference(name, theirs, tmp_path, config=tmp_path / "other") < 1e-5
    assert layouts.difference(name, theirs, tmp_path) > 1e-2

    sizes = other.to_dict()
    for part in (sizes, sizes.get("text_config", {}), sizes.get("vision_config", {})):
        if "intermediate_size" in part:
            part["intermediate_size"] = 64
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(sizes))
    for given, error, said, their_error, they_say in (
        ({"config": tmp_path / "wrong"}, ValueError, "wrong shape .*fc1", RuntimeError, "mismatched_sizes"),
        ({**folder, "variant": "bf16"}, OSError, "bf16.safetensors", OSError, "bf16.safetensors"),
        ({"subfolder": "deep/gone"}, OSError, "gone", OSError, "no file named"),
    ):
        with pytest.raises(error, match=said):
            ours.from_pretrained(tmp_path, **given)
        with pytest.raises(their_error, match=they_say):
            reference.from_pretrained(tmp_path, **given)


MAPPINGS = {
    "prefix": (r"^wrapped\.", "", lambda key: f"wrapped.{key}"),
    "groups": (
        r"^tower_(text|vision)\.",
        r"\1_model.",
        lambda key: re.sub(r"^(text|vision)_model\.", r"tower_\1.", key),
    ),
    "inner": (r"\.ln_(\d)\.", r".layer_norm\1.", lambda key: re.sub(r"\.layer_norm(\d)\.", r".ln_\1.", key)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAPPINGS)
def test_names_are_mapped_as_the_reference_does(directory, kind):
    pattern, replacement, rename = MAPPINGS[kind]
    _, expected = SiglipModel.from_pretrained(directory)
    file = directory / "model.safetensors"
    tensors = {rename(key): value for key, value in safetensors.numpy.load_file(file).items()}
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    same(SiglipModel.from_pretrained(directory, key_mapping={pattern: replacement})[1], expected)
    pytest.importorskip("torch", reason="torch has no CPU build here; the mapping itself is tested above")
    import transformers

    reference = transformers.SiglipModel.from_pretrained(directory, key_mapping={pattern: replacement})
    weight = reference.text_model.encoder.layers[1].layer_norm2.weight.detach().numpy()
    np.testing.assert_array_equal(weight, expected["text_model"]["encoder"]["layers_1"]["layer_norm2"]["scale"])


def test_mappings_that_make_no_sense(directory, tmp_path):
    with pytest.raises(ValueError, match="^key_mapping must map regular expressions to replacements, got '\\('"):
        SiglipModel.from_pretrained(directory, key_mapping={"(": ""})
    with pytest.raises(ValueError, match="key_mapping must give each tensor its own name, got x twice; change it"):
        SiglipModel.from_pretrained(directory, key_mapping={".+": "x"})
    siglip_jax.checkpoints.convert(directory, tmp_path / "model.npz", "big_vision")
    with pytest.raises(ValueError, match="key_mapping must be None for the format big_vision, got a mapping; leave it"):
        SiglipModel.from_pretrained(tmp_path / "model.npz", key_mapping={"a": "b"})
