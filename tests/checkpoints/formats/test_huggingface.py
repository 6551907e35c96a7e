"""Hugging Face directories: what is read, what is written, what is refused."""

import json
import logging
import os
import re
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax import SiglipForImageClassification, SiglipModel, SiglipTextModel, SiglipVisionModel
from siglip_jax.checkpoints.formats import huggingface
from siglip_jax.checkpoints.keymap import key_table
from siglip_jax.params import flatten, stack_layers, unstack_layers
from tests.support import cases, naflex_cases

CASE = "giant_like"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture
def config():
    return cases.make_config(CASE)


@pytest.fixture
def directory(tmp_path):
    return cases.make_checkpoint(tmp_path / "in", CASE)


def rewrite(directory, change):
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_keeps_every_byte(directory, tmp_path, dtype, scan_layers):
    rewrite(directory, lambda t: t.update({k: v.astype(DTYPES[dtype]) for k, v in t.items()}))
    kept = None if dtype == "float32" else dtype
    model, params = SiglipModel.from_pretrained(directory, scan_layers=scan_layers, param_dtype=kept)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    model.save_pretrained(tmp_path / "out", params)
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == (directory / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "model_class"),
    [
        ("SiglipModel", SiglipModel),
        ("SiglipTextModel", SiglipTextModel),
        ("SiglipVisionModel", SiglipVisionModel),
        ("SiglipForImageClassification", SiglipForImageClassification),
    ],
)
def test_every_class_round_trips_and_the_reference_loads_it(config, tmp_path, architecture, model_class):
    config = config.replace(num_labels=5)
    part = {"SiglipTextModel": config.text_config, "SiglipVisionModel": config.vision_config}.get(architecture, config)
    model = model_class(part)
    ids = jnp.ones((1, 16), jnp.int32)
    pixels = jnp.ones((1, 32, 32, 3))
    given = {"SiglipModel": (ids, pixels), "SiglipTextModel": (ids,)}.get(architecture, (pixels,))
    params = model.init(jax.random.key(0), *given)["params"]
    model.save_pretrained(tmp_path, params)
    again, loaded = model_class.from_pretrained(tmp_path)
    assert again.config.replace(extra={}) == part
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, loaded)))
    assert siglip_jax.read_checkpoint(tmp_path).architecture == architecture

    pytest.importorskip("torch", reason="torch has no CPU build here")
    import torch
    import transformers

    reference, info = getattr(transformers, architecture).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tensors = [
        torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)) if x.ndim == 4 else torch.tensor(np.asarray(x)) for x in given
    ]
    names = {"SiglipModel": ("input_ids", "pixel_values"), "SiglipTextModel": ("input_ids",)}
    with torch.no_grad():
        expected = reference(**dict(zip(names.get(architecture, ("pixel_values",)), tensors, strict=True)))
    field = {"SiglipModel": "logits_per_image", "SiglipForImageClassification": "logits"}.get(
        architecture, "pooler_output"
    )
    found = model.apply({"params": params}, *given)
    np.testing.assert_allclose(found[field], expected[field].numpy(), rtol=1e-5, atol=1e-5)


def naflex_inputs(config):
    inputs = naflex_cases.make_inputs(config)
    images = {name: inputs[name] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")}
    return {"input_ids": inputs["input_ids"]}, images


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Model", "TextModel", "VisionModel", "ForImageClassification"])
@pytest.mark.parametrize("family", ["Siglip", "Siglip2"])
def test_what_the_reference_saves_is_read_with_equal_outputs(config, tmp_path, family, kind):
    """From 5.6 on, a single tower is saved without the prefix of the whole model."""
    torch = pytest.importorskip("torch", reason="torch has no CPU build here")
    import transformers

    flexible = family == "Siglip2"
    config = naflex_cases.make_config("naflex") if flexible else config.replace(num_labels=3)
    part = {"TextModel": config.text_config, "VisionModel": config.vision_config}.get(kind, config)
    made = cases.make_tensors(part, family + kind)
    cases.write_directory(tmp_path / "ours", part, made, family + kind)
    # Built anew: a model that was loaded from a file with the prefix is saved with it.
    reference = getattr(transformers, family + kind)(transformers.AutoConfig.from_pretrained(tmp_path / "ours")).eval()
    renamed = {
        re.sub(r"^(text|vision)_model\.", "", k) if kind.endswith(("TextModel", "VisionModel")) else k: x
        for k, x in made.items()
    }
    reference.load_state_dict({key: torch.tensor(x) for key, x in renamed.items()})
    reference.save_pretrained(tmp_path / "theirs")
    saved = safetensors.numpy.load_file(tmp_path / "theirs" / "model.safetensors")
    assert set(saved) == set(renamed)

    if flexible:
        text, images = naflex_inputs(config)
    else:
        inputs = cases.make_inputs(config)
        text, images = {"input_ids": inputs["input_ids"]}, {"pixel_values": inputs["pixel_values"]}
    given = {"Model": text | images, "TextModel": text}.get(kind, images)
    tensors = {k: torch.tensor(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x) for k, x in given.items()}
    with torch.no_grad():
        expected = reference(**tensors)
    model, params = getattr(siglip_jax, family + kind).from_pretrained(tmp_path / "theirs")
    found = jax.jit(lambda p, x: model.apply({"params": p}, **x))(params, given)
    for name in {
        "Model": ("logits_per_image", "text_embeds", "image_embeds"),
        "ForImageClassification": ("logits",),
    }.get(kind, ("last_hidden_state", "pooler_output")):
        wanted, ours = expected[name].numpy(), np.asarray(found[name])
        if name == "last_hidden_state" and flexible and kind == "VisionModel":  # padding has no defined state
            wanted, ours = (x[given["pixel_attention_mask"] == 1] for x in (wanted, ours))
        assert np.abs(ours - wanted).max() <= 1e-5 * np.abs(wanted).max()

    model.save_pretrained(tmp_path / "again", params)  # with the prefix, which older versions need
    assert set(safetensors.numpy.load_file(tmp_path / "again" / "model.safetensors")) == set(made)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_a_tower_is_read_with_and_without_the_prefix_of_the_whole_model(config, tmp_path, tower):
    part, architecture = getattr(config, f"{tower}_config"), f"Siglip{tower.title()}Model"
    tensors = cases.make_tensors(part, architecture)
    plain = {key.removeprefix(f"{tower}_model."): x for key, x in tensors.items()}
    plain["embeddings.position_ids"] = np.arange(16)[None]
    with_prefix = cases.write_directory(tmp_path / "with", part, tensors, architecture)
    without = cases.write_directory(tmp_path / "without", part, plain, architecture)
    expected, found = (flatten(siglip_jax.read_checkpoint(path).params) for path in (with_prefix, without))
    assert set(found) == set(expected) == {row.path for row in key_table(part, architecture)}
    assert all(np.array_equal(found[path], x) for path, x in expected.items())
    assert siglip_jax.checkpoints.describe(without)["parameters"]["total"] == sum(x.size for x in tensors.values())


def test_towers_and_classifier_load_from_a_whole_model(directory, caplog):
    whole, params = SiglipModel.from_pretrained(directory)
    text, text_params = SiglipTextModel.from_pretrained(directory)
    vision, vision_params = SiglipVisionModel.from_pretrained(directory)
    assert text.config == whole.config.text_config and vision.config == whole.config.vision_config
    assert set(text_params) == {"text_model"} and set(vision_params) == {"vision_model"}
    with caplog.at_level(logging.WARNING):
        classifier, classifier_params = SiglipForImageClassification.from_pretrained(directory)
    assert "no classifier" in caplog.text
    assert classifier_params["classifier"]["kernel"].shape == (96, 2)
    assert not classifier_params["classifier"]["kernel"].any()
    for name in ("text_model", "vision_model"):
        parts = {**text_params, **vision_params}[name]
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), parts, params[name])))


def test_a_single_file_loads_with_the_config_beside_it(directory):
    _, params = SiglipModel.from_pretrained(directory / "model.safetensors")
    assert set(params) == {"text_model", "vision_model", "logit_scale", "logit_bias"}


@pytest.mark.parametrize("shards", ["ours", "reference"])
def test_shards(directory, tmp_path, shards):
    model, params = SiglipModel.from_pretrained(directory)
    out = tmp_path / "out"
    if shards == "ours":
        model.save_pretrained(out, params, max_shard_size=200_000)
    else:
        pytest.importorskip("torch", reason="torch has no CPU build here")
        import transformers

        transformers.SiglipModel.from_pretrained(directory).save_pretrained(out, max_shard_size="200KB")
    files = sorted(p.name for p in out.glob("*.safetensors"))
    assert len(files) > 3 and all(re.fullmatch(r"model-\d{5}-of-\d{5}.safetensors", name) for name in files)
    assert all((out / name).stat().st_size < 230_000 for name in files)
    _, again = SiglipModel.from_pretrained(out)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, again)))
    # Written again as one file, the directory holds that file alone, with the bytes it had at first.
    model.save_pretrained(out, params)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    assert (out / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


def test_the_reference_loads_our_shards(directory, tmp_path):
    pytest.importorskip("torch", reason="torch has no CPU build here")
    import transformers

    model, params = SiglipModel.from_pretrained(directory)
    model.save_pretrained(tmp_path / "out", params, max_shard_size=200_000)
    one, info = transformers.SiglipModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    two = transformers.SiglipModel.from_pretrained(directory)
    assert all((a == b).all() for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_non_contiguous_arrays_are_written_in_order(tmp_path):
    config = cases.make_config("odd_heads")
    directory = cases.make_checkpoint(tmp_path, "odd_heads")
    checkpoint = siglip_jax.read_checkpoint(directory)
    strided = jax.tree.map(lambda x: np.repeat(x, 2, axis=0)[::2], checkpoint.params)
    assert not strided["vision_model"]["post_layernorm"]["scale"].flags.c_contiguous
    siglip_jax.write_checkpoint(tmp_path / "out", siglip_jax.Checkpoint(config, strided, "huggingface", "SiglipModel"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


def test_unknown_config_keys_survive(directory, tmp_path):
    d = json.loads((directory / "config.json").read_text())
    d |= {"new_key": {"a": [1, 2]}, "torch_dtype": "float32"}
    d["vision_config"]["other"] = "kept"
    del d["dtype"]
    (directory / "config.json").write_text(json.dumps(d))
    model, params = SiglipModel.from_pretrained(directory)
    model.save_pretrained(tmp_path / "out", params)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == d


def test_position_ids_of_old_files_are_ignored(directory):
    rewrite(directory, lambda t: t.update({"text_model.embeddings.position_ids": np.arange(16)[None]}))
    SiglipModel.from_pretrained(directory)


def test_param_dtype(directory):
    model, params = SiglipModel.from_pretrained(directory, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    kinds = {path: x.dtype.name for path, x in flatten(params).items()}
    assert {path for path, kind in kinds.items() if kind == "float32"} == {"logit_scale", "logit_bias"}
    assert model.dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parameters_of_sixteen_bits_are_kept_with_a_warning_of_what_training_wants(directory, dtype):
    rewrite(directory, lambda t: t.update({k: v.astype(DTYPES[dtype]) for k, v in t.items()}))
    words = f"{directory}: parameters to be trained must be float32, got {dtype}.*pass param_dtype=jnp.float32 to train"
    with pytest.warns(UserWarning, match=words) as caught:
        _, params = SiglipTextModel.from_pretrained(directory)
    assert len(caught) == 1
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    for param_dtype in (jnp.float32, dtype):  # whoever says which is not warned
        _, params = SiglipTextModel.from_pretrained(directory, param_dtype=param_dtype)
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(param_dtype)}


@pytest.mark.parametrize("towers, scalars", [("bfloat16", "float32"), ("float32", "float16")])
def test_the_dtype_of_the_file_is_that_of_its_towers(directory, towers, scalars):
    rewrite(
        directory, lambda t: t.update({k: v.astype(DTYPES[scalars if "logit" in k else towers]) for k, v in t.items()})
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, _ = SiglipModel.from_pretrained(directory)
    assert np.dtype(model.param_dtype) == DTYPES[towers]
    assert [f"got {towers}" in str(warning.message) for warning in caught] == ([True] if towers == "bfloat16" else [])


def test_stacking_is_inverted_by_unstacking(directory):
    params = siglip_jax.read_checkpoint(directory).params
    stacked = stack_layers(params)
    assert stacked["text_model"]["encoder"]["layers"]["mlp"]["fc1"]["kernel"].shape == (2, 64, 256)
    again = unstack_layers(stacked)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, again)))


def test_every_parameter_of_the_module_is_in_the_table(config):
    model = SiglipModel(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 16), jnp.int32), jnp.ones((1, 32, 32, 3)))
    table = {row.path: row.shape for row in key_table(config, "SiglipModel")}
    assert {path: x.shape for path, x in flatten(shapes["params"]).items()} == table


def delete(key):
    return lambda t: t.pop(key)


def add(key, value):
    return lambda t: t.update({key: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (delete("logit_bias"), ["1 missing", "logit_bias"]),
        (delete("vision_model.head.probe"), ["1 missing", "vision_model.head.probe"]),
        (add("text_model.extra", np.ones(3, np.float32)), ["1 unexpected", "text_model.extra"]),
        (
            add("logit_scale", np.ones((2, 1), np.float32)),
            ["1 of the wrong shape (logit_scale must be (1,), got (2, 1))"],
        ),
        (
            add("logit_scale", np.ones(1, np.int8)),
            ["dtypes must be among float64, float32, float16, bfloat16, got logit_scale: int8"],
        ),
    ],
    ids=["missing", "missing_probe", "unexpected", "shape", "integers"],
)
def test_loading_is_strict(directory, change, words):
    rewrite(directory, change)
    with pytest.raises(ValueError) as caught:
        SiglipModel.from_pretrained(directory)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_saving_is_strict(directory, tmp_path):
    model, params = SiglipModel.from_pretrained(directory)
    with pytest.raises(ValueError, match="1 missing .logit_scale."):
        model.save_pretrained(tmp_path / "out", {k: v for k, v in params.items() if k != "logit_scale"})
    with pytest.raises(ValueError, match="1 unexpected .stray."):
        model.save_pretrained(tmp_path / "out", params | {"stray": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"params must be the tree of parameters, got .*; pass variables\['params'\]"):
        model.save_pretrained(tmp_path / "out", {"params": params})
    assert not (tmp_path / "out").exists()


def test_an_interrupted_write_leaves_the_old_checkpoint(directory, tmp_path, monkeypatch):
    model, params = SiglipModel.from_pretrained(directory)
    model.save_pretrained(tmp_path, params, max_shard_size=200_000)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.*")}
    real, calls = huggingface.write_safetensors, []

    def fail_at_the_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(huggingface, "write_safetensors", fail_at_the_second)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(tmp_path, doubled, max_shard_size=200_000)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.*")} == before


def test_a_crash_between_renames_does_not_look_whole(directory, tmp_path, monkeypatch):
    model, params = SiglipModel.from_pretrained(directory)
    model.save_pretrained(tmp_path, params, max_shard_size=200_000)
    real, calls = os.replace, []

    def fail_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("power cut")
        real(*args)

    monkeypatch.setattr("siglip_jax._files.os.replace", fail_at_the_second)
    with pytest.raises(OSError, match="power cut"):
        model.save_pretrained(tmp_path, jax.tree.map(lambda x: 2 * x, params), max_shard_size=200_000)
    with pytest.raises(FileNotFoundError):
        SiglipModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("cut", [4, 100, -1000])
def test_truncated_files_are_refused_in_one_line(directory, cut):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="truncated or corrupt") as caught:
        SiglipModel.from_pretrained(directory)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_foreign(directory, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        SiglipModel.from_pretrained(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        FileNotFoundError,
        match="the directory must hold .*, model.safetensors, one .npz of big_vision or an orbax directory, got none",
    ):
        SiglipModel.from_pretrained(empty)
    (empty / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="never opened"):
        SiglipModel.from_pretrained(empty)
    (directory / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json: no such file"):
        SiglipModel.from_pretrained(directory)
    (empty / "notes.txt").write_bytes(b"none")
    with pytest.raises(ValueError, match="must be a .safetensors file, an .npz file or a directory, got another file"):
        SiglipModel.from_pretrained(empty / "notes.txt")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin"])
def test_an_index_cannot_name_files_elsewhere(directory, name):
    os.rename(directory / "model.safetensors", directory.parent / "model.safetensors")
    index = {"weight_map": {"logit_scale": name}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json: shards must be .safetensors files beside it, got"):
        SiglipModel.from_pretrained(directory)


def test_a_tower_alone_is_no_whole_model(directory, tmp_path):
    vision, params = SiglipVisionModel.from_pretrained(directory)
    vision.save_pretrained(tmp_path / "vision", params)
    with pytest.raises(ValueError, match="must be one that SiglipModel can load, got a SiglipVisionModel"):
        SiglipModel.from_pretrained(tmp_path / "vision")
    with pytest.raises(ValueError, match="must be one that SiglipTextModel can load, got a SiglipVisionModel"):
        SiglipTextModel.from_pretrained(tmp_path / "vision")
