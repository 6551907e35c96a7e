"""A checkpoint that is not read is named: what it is, what reads it, what to use instead."""

import json
import logging

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax import SiglipModel, SiglipVisionConfig, SiglipVisionModel
from siglip_jax.checkpoints import describe
from siglip_jax.checkpoints.formats import open_clip
from siglip_jax.checkpoints.hub import _needed_with_weights
from siglip_jax.checkpoints.keymap import key_table
from siglip_jax.params import flatten
from tests.support import cases, larger_models

FILES = {
    "model-q4_k.gguf": (b"GGUF\x03\0\0\0", "a GGUF file, which llama.cpp reads"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch", "an ONNX graph, which onnxruntime reads"),
    "model.tflite": (b"\x1c\0\0\0TFL3", "a LiteRT graph, which ai-edge-litert reads"),
    "tf_model.h5": (b"\x89HDF\r\n\x1a\n", "a file of Keras, which keras reads"),
    "flax_model.msgpack": (b"\x82\xa6", "a file of Flax in transformers, which transformers 4 reads"),
}


def refusal(path, read=siglip_jax.read_checkpoint):
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}") and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("read", [siglip_jax.read_checkpoint, SiglipModel.from_pretrained, siglip_jax.load, describe])
@pytest.mark.parametrize("name", FILES)
def test_files_of_other_programs(name, read, tmp_path):
    start, what = FILES[name]
    (tmp_path / name).write_bytes(start + bytes(64))
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    said = f"the weights must be safetensors, got '{name}', {what}; use the repository it was made from"
    assert refusal(tmp_path, read) == f"{tmp_path}: {said}"
    assert refusal(tmp_path / name, read) == f"{tmp_path / name}: {said}"


def test_a_file_is_recognised_by_its_first_bytes(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"GGUF\x03\0\0\0")
    assert "got 'weights', a GGUF file, which llama.cpp reads" in refusal(path)
    path.write_bytes(b"GG")
    assert "got another file" in refusal(path)


def test_a_repository_of_other_files_is_named():
    with pytest.raises(
        LookupError, match="safetensors of SigLIP, got none but 'onnx/model.onnx', an ONNX graph, which "
    ):
        _needed_with_weights(["config.json", "onnx/model.onnx", "onnx/model_q4.onnx"])
    with pytest.raises(LookupError, match="must be model.safetensors, got only pytorch_model.bin, a pickle"):
        _needed_with_weights(["config.json", "onnx/model.onnx", "pytorch_model.bin"])
    assert "model.safetensors" in _needed_with_weights(["config.json", "onnx/model.onnx", "model.safetensors"])


CLIP = {"vision_model.embeddings.class_embedding": 24, "vision_model.embeddings.patch_embedding.weight": 24 * 3}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "clip", "text_config": {}, "vision_config": {}},
            "got 'clip', CLIP of 96 parameters, which CLIPM",
        ),
        ({"model_type": "dinov2"}, "got 'dinov2', DINOv2 of 96 parameters, which Dinov2Model of transformers reads"),
        ({"model_type": "qwen2_vl"}, "got 'qwen2_vl', another model of 96 parameters, which the library it is from re"),
        (
            {"model_type": "llava_qwen", "mm_vision_tower": "google/siglip-so400m-patch14-384"},
            "got 'llava_qwen', another model of 96 parameters, whose files lack its tower; load 'google/siglip-so400m-",
        ),
    ],
)
def test_models_that_are_not_siglip(config, words, tmp_path):
    tensors = {key: np.zeros(size, np.float32) for key, size in CLIP.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    for read in (siglip_jax.read_checkpoint, SiglipVisionModel.from_pretrained, describe):
        assert words in refusal(tmp_path, read)


Q = "encoder.layers.0.self_attn.q_proj"
QUANTIZED = {
    "nf4": ({f"{Q}.weight": np.uint8, f"{Q}.weight.absmax": np.float32}, {}, "4-bit ones of bitsandbytes, which tran"),
    "int8": ({f"{Q}.weight": np.int8, f"{Q}.SCB": np.float32}, {}, "8-bit ones of bitsandbytes, which transformers"),
    "gptq": (
        {f"{Q}.qweight": np.int32, f"{Q}.scales": np.float16},
        {"quant_method": "gptq"},
        "packed ones of GPTQ, wh",
    ),
    "awq": ({f"{Q}.qweight": np.int32, f"{Q}.qzeros": np.int32}, {"quant_method": "awq"}, "packed ones of AWQ, which"),
    "fp8": (
        {f"{Q}.weight": ml_dtypes.float8_e4m3fn, f"{Q}.weight_scale": np.float32},
        {},
        "fp8 ones, which vLLM reads",
    ),
    "fp8_alone": ({f"{Q}.weight": ml_dtypes.float8_e4m3fn}, {}, "fp8 ones, which vLLM reads"),
    "mlx": (
        {f"{Q}.weight": np.int32, f"{Q}.scales": np.float16, f"{Q}.biases": np.float16},
        {},
        "quantized ones of MLX",
    ),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_towers_and_language_models(kind, tmp_path):
    """A tower that is quantized is refused; one in floats beside a quantized language model is read."""
    changes, settings, words = QUANTIZED[kind]
    _, tensors = larger_models.write_layout(tmp_path, "eagle")
    d = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(d))
    new = {name: np.zeros((4, 4), dtype) for name, dtype in changes.items()}
    path = tmp_path / "model.safetensors"
    original = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(original | {f"language_model.{k}": x for k, x in new.items()}, path)
    checkpoint = siglip_jax.read_checkpoint(tmp_path)
    assert len(flatten(checkpoint.params)) == len(key_table(checkpoint.config, "SiglipVisionModel"))
    del original[f"vision_model.vision_model.{Q}.weight"]
    safetensors.numpy.save_file(original | {f"vision_model.vision_model.{k}": x for k, x in new.items()}, path)
    said = refusal(tmp_path)
    assert f"the weights must be floats, got {words}" in said
    assert said.endswith("use the checkpoint they were made from")


def test_a_whole_model_that_is_quantized(tmp_path):
    directory = cases.make_checkpoint(tmp_path, "base_like")
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors | {"text_model.head.weight.absmax": np.ones(3, np.float32)}, path)
    assert "the weights must be floats, got 4-bit ones of bitsandbytes" in refusal(directory)


def test_the_layout_of_mlx(tmp_path):
    _, _ = larger_models.write_layout(tmp_path, "eagle")
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    key = "vision_model.vision_model.embeddings.patch_embedding.weight"
    tensors[key] = np.ascontiguousarray(tensors[key].transpose(0, 2, 3, 1))
    safetensors.numpy.save_file(tensors, path, metadata={"format": "mlx"})
    assert "got those of MLX, whose patches are channels last, which mlx-vlm reads" in refusal(tmp_path)


def nllb_clip(directory):
    """What open_clip publishes of nllb-clip: SigLIP's image tower with a text tower of NLLB."""
    config = SiglipVisionConfig(
        hidden_size=24, intermediate_size=37, num_hidden_layers=1, num_attention_heads=12, image_size=224, patch_size=16
    )
    random = np.random.RandomState(0)
    rows = open_clip.table(config, "SiglipVisionModel", {})
    tensors = {row.key: random.standard_normal(row.tensor_shape).astype(np.float32) for row in rows}
    others = {
        "text.transformer.embed_tokens.weight": np.ones((7, 4), np.float32),
        "logit_scale": np.ones((), np.float32),
    }
    safetensors.numpy.save_file(tensors | others, directory / "open_clip_model.safetensors")
    vision = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "image_size": 224}
    text = {"hf_model_name": "facebook/nllb-200-distilled-600M", "hf_proj_type": "linear"}
    d = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}}
    (directory / "open_clip_config.json").write_text(json.dumps(d))
    return config, rows, tensors


def test_the_image_tower_beside_another_text_tower(tmp_path, caplog):
    config, rows, tensors = nllb_clip(tmp_path)
    with caplog.at_level(logging.WARNING):
        module, params = SiglipVisionModel.from_pretrained(tmp_path)
    assert module.config.replace(hidden_act=config.hidden_act) == config
    flat = flatten(params)
    assert all(np.array_equal(flat[row.path], row.param(tensors[row.key])) for row in rows)
    facts = describe(tmp_path)
    note = "the text tower is 'facebook/nllb-200-distilled-600M', which open_clip reads; only the image tower is read"
    assert facts["notes"] == [note] and facts["text"] is None
    assert facts["parameters"]["total"] == sum(x.size for x in tensors.values())
    said = refusal(tmp_path, SiglipModel.from_pretrained)
    assert note in said and "must be one that SiglipModel can load, got a SiglipVisionModel" in said


def test_clip_of_open_clip(tmp_path):
    nllb_clip(tmp_path)
    vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
    for text in ({"context_length": 77, "vocab_size": 49408, "width": 512}, {"hf_model_name": "roberta-base"}):
        d = {"model_cfg": {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(d))
        assert "a timm_model_name like vit_base_patch16_siglip_224" in refusal(tmp_path)
