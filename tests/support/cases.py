"""Small random checkpoints of awkward shapes, their inputs, and what the reference and this library make of them.

Weights and inputs come from numpy's legacy generator, whose stream is frozen, so that the golden files made with torch
hold wherever torch is absent. `python -m tests.support.cases` writes the golden files anew.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from siglip_jax.checkpoints.keymap import key_table
from siglip_jax.configs.configuration import SiglipConfig

GOLDEN = Path(__file__).parents[1] / "golden"
TEXTS, IMAGES = 3, 3

TEXT = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 16,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 32,
    "patch_size": 8,
}
SO400M = {"hidden_size": 144, "intermediate_size": 538, "num_attention_heads": 2}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base_like": (TEXT, VISION),
    "odd_heads": (
        TEXT | {"num_attention_heads": 8, "intermediate_size": 90},
        VISION | {"num_attention_heads": 4, "intermediate_size": 77},
    ),
    "so400m_like": (TEXT | SO400M, VISION | SO400M | {"patch_size": 7, "image_size": 28}),
    "giant_like": (TEXT | {"projection_size": 96}, VISION | {"hidden_size": 96, "num_attention_heads": 3}),
    "one_channel": (TEXT, VISION | {"num_channels": 1}),
    "non_divisible": (TEXT, VISION | {"image_size": 30, "patch_size": 7}),
    "exact_gelu": (TEXT | {"hidden_act": "gelu"}, VISION | {"hidden_act": "quick_gelu"}),
    "outliers": (TEXT, VISION),
}


def make_config(case: str) -> SiglipConfig:
    text, vision = CASES[case]
    return SiglipConfig(text_config=text, vision_config=vision)


def make_tensors(config: SiglipConfig, architecture: str, outliers: bool = False) -> dict[str, np.ndarray]:
    """Random tensors under their names in the file, of a size that keeps every activation of order one."""
    random = np.random.RandomState(0)
    tensors: dict[str, np.ndarray] = {}
    for key, shape in {row.key: row.tensor_shape for row in key_table(config, architecture)}.items():
        x = random.standard_normal(shape)
        if key == "logit_scale":
            x = np.full(shape, np.log(10.0))
        elif key == "logit_bias":
            x = np.full(shape, -3.0)
        elif "norm" in key and key.endswith("weight"):
            x = 1 + 0.3 * x
        elif key.endswith("bias"):
            x = 0.2 * x
        elif "embedding.weight" not in key or "patch" in key:
            x = (1.0 if outliers else 1.5) * x / np.sqrt(np.prod(shape[1:]))
        if outliers and "position_embedding" in key:
            # Released weights have position rows of norm 300 beside others of 18 …
            x[random.permutation(shape[0])[: shape[0] // 4]] *= 20
        if outliers and "norm" in key:
            x[random.permutation(shape[0])[: shape[0] // 16]] *= 4  # … and gains far from 1.
        tensors[key] = x.astype(np.float32)
    return tensors


def write_directory(directory: Path, config: SiglipConfig, tensors: dict[str, np.ndarray], architecture: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    d = config.to_dict() | {"architectures": [architecture], "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(d))
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def make_checkpoint(directory: Path, case: str) -> Path:
    config = make_config(case)
    tensors = make_tensors(config, "SiglipModel", outliers=case == "outliers")
    return write_directory(directory / case, config, tensors, "SiglipModel")


def make_inputs(config: SiglipConfig) -> dict[str, np.ndarray]:
    random = np.random.RandomState(1)
    text, vision = config.text_config, config.vision_config
    length, size = text.max_position_embeddings, vision.image_size
    mask = np.ones((TEXTS, length), np.int32)
    mask[1, 5:] = 0
    mask[2, 9:] = 0
    return {
        "input_ids": random.randint(0, text.vocab_size, (TEXTS, length)).astype(np.int32),
        "pixel_values": random.standard_normal((IMAGES, size, size, vision.num_channels)).astype(np.float32),
        "attention_mask": mask,
        "position_ids": random.permutation(length)[None].astype(np.int32),
        "short_ids": random.randint(0, text.vocab_size, (2, 7)).astype(np.int32),
        "other_pixels": random.standard_normal((2, size + 13, size - 9, vision.num_channels)).astype(np.float32),
    }


def _tower(prefix: str, out: Any) -> dict[str, Any]:
    flat = {f"{prefix}.last_hidden_state": out.last_hidden_state, f"{prefix}.pooler_output": out.pooler_output}
    for name in ("hidden_states", "attentions"):
        values = getattr(out, name)
        flat |= {f"{prefix}.{name}.{i}": x for i, x in enumerate(values or ())}
    return flat


def flatten_output(out: Any) -> dict[str, Any]:
    fields = ("loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds")
    flat = {name: getattr(out, name) for name in fields if getattr(out, name) is not None}
    return flat | _tower("text", out.text_model_output) | _tower("vision", out.vision_model_output)


def runs(forward: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """All that is compared: plain, masked, re-positioned, with short texts, and with images of another size."""
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    everything = {"output_hidden_states": True}
    results = {
        "plain": forward(ids, pixels, return_loss=True, **everything),
        "masked": forward(ids, pixels, attention_mask=inputs["attention_mask"]),
        "positions": forward(ids, pixels, position_ids=inputs["position_ids"]),
        "short": forward(inputs["short_ids"], pixels),
        "interpolated": forward(ids, inputs["other_pixels"], interpolate_pos_encoding=True),
    }
    return {f"{run}/{k}": v for run, out in results.items() for k, v in flatten_output(out).items()}


def projections(gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Norm and three random projections of each gradient: enough to tell it, small enough to commit."""
    flat = {}
    for key, g in gradients.items():
        directions = np.random.RandomState(len(key)).standard_normal((3, g.size)) / np.sqrt(g.size)
        g = g.reshape(-1).astype(np.float64)
        flat[key] = np.array([np.linalg.norm(g), *(directions @ g)])
    return flat


def reference_results(
    directory: Path,
    inputs: dict[str, np.ndarray],
    dtype: str = "float32",
    architecture: str = "SiglipModel",
    runs: Any = runs,
) -> dict[str, np.ndarray]:
    """What `transformers` computes, with attentions, and the gradients of its loss under `gradient/<key>`."""
    import torch
    import transformers

    kind = getattr(torch, dtype)
    model, info = getattr(transformers, architecture).from_pretrained(
        directory, dtype=kind, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    model.eval()

    def tensors(x: np.ndarray) -> Any:
        if x.ndim == 4:
            return torch.tensor(x.transpose(0, 3, 1, 2)).to(kind)
        return torch.tensor(x).to(kind if x.dtype == np.float32 else torch.int64)

    def forward(ids: Any, pixels: Any, **kwargs: Any) -> Any:
        return model(input_ids=ids, pixel_values=pixels, output_attentions=True, **kwargs)

    given = {k: tensors(v) for k, v in inputs.items()}
    with torch.no_grad():
        results = {k: v.numpy() for k, v in runs(forward, given).items()}
    model(**loss_inputs(given), return_loss=True).loss.backward()
    return results | {f"gradient/{k}": p.grad.numpy() for k, p in model.named_parameters()}


def loss_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of the loss whose gradients are compared."""
    names = ("input_ids", "pixel_values", "pixel_attention_mask", "spatial_shapes")
    return {k: v for k, v in inputs.items() if k in names}


def save_golden(name: str, results: dict[str, np.ndarray]) -> None:
    gradients = {k: v for k, v in results.items() if k.startswith("gradient/")}
    outputs = {k: v.astype(np.float32) for k, v in results.items() if k not in gradients}
    np.savez_compressed(GOLDEN / f"{name}.npz", **outputs, **projections(gradients))


def write_golden(work: Path) -> None:
    for case in CASES:
        directory, inputs = make_checkpoint(work, case), make_inputs(make_config(case))
        save_golden(case, reference_results(directory, inputs, "float64"))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as work:
        write_golden(Path(work))
