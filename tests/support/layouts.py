"""Models of `transformers` of every class, and their way through this package and back."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.torch
import torch
import transformers

import siglip_jax

CLASSES = [
    f"{family}{kind}"
    for family in ("Siglip", "Siglip2")
    for kind in ("Model", "TextModel", "VisionModel", "ForImageClassification")
]
DTYPES = ("float32", "bfloat16", "float16")
_TEXT = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
    "projection_size": 40,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_VISION = {
    "hidden_size": 40,
    "intermediate_size": 90,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "patch_size": 7,
}


def build(name: str, dtype: str = "float32") -> Any:
    """Returns a random model of a class of `transformers`; no two of its parameters are alike."""
    family = "Siglip2" if name.startswith("Siglip2") else "Siglip"
    sizes = {"num_patches": 9} if family == "Siglip2" else {"image_size": 30}
    text, vision = dict(_TEXT), _VISION | sizes
    config: Any
    if name.endswith("TextModel"):
        config = getattr(transformers, f"{family}TextConfig")(**text)
    elif name.endswith("VisionModel"):
        config = getattr(transformers, f"{family}VisionConfig")(**vision)
    else:
        labels = {"num_labels": 3} if name.endswith("Classification") else {}
        config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision, **labels)
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.to(getattr(torch, dtype))


def difference(name: str, model: Any, directory: Path, **options: Any) -> float:
    """Returns the largest relative difference of the outputs of a model and of this package's after reading it.

    Args:
      name: name of the class.
      model: model of `transformers`.
      directory: directory to read.
      options: arguments of `from_pretrained`.
    """
    rng = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {}
    text, vision = (getattr(model.config, part, model.config) for part in ("text_config", "vision_config"))
    if not name.endswith(("VisionModel", "Classification")):
        ids = rng.integers(3, text.vocab_size, (3, text.max_position_embeddings)).astype(np.int32)
        inputs["input_ids"] = ids
    if not name.endswith("TextModel"):
        if name.startswith("Siglip2"):
            inputs["pixel_values"] = rng.normal(size=(2, 12, 147)).astype(np.float32)
            inputs["pixel_attention_mask"] = np.int32(np.arange(12)[None] < np.array([[12], [10]]))
            inputs["spatial_shapes"] = np.array([[3, 4], [5, 2]], np.int32)
        else:
            inputs["pixel_values"] = rng.normal(size=(2, vision.image_size, vision.image_size, 3)).astype(np.float32)
    theirs = {key: torch.tensor(value) for key, value in inputs.items()}
    if "input_ids" in theirs:
        theirs["input_ids"] = theirs["input_ids"].long()
    if "pixel_values" in theirs and theirs["pixel_values"].ndim == 4:
        theirs["pixel_values"] = theirs["pixel_values"].permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = _outputs(model(**theirs))
    module, params = getattr(siglip_jax, name).from_pretrained(directory, **options)
    run = jax.jit(lambda p, x: module.apply({"params": p}, **x))
    with jax.default_matmul_precision("highest"):
        found = _outputs(run(params, {key: jnp.asarray(value) for key, value in inputs.items()}))
    return max(
        float(np.abs(ours - them).max() / np.abs(them).max()) for ours, them in zip(found, expected, strict=True)
    )


def _outputs(out: Any) -> list[np.ndarray]:
    names = ("logits_per_image", "text_embeds", "image_embeds", "logits", "pooler_output")
    return [np.asarray(value) for name in names if (value := getattr(out, name, None)) is not None]


def different_bits(name: str, model: Any, directory: Path, out: Path) -> list[str]:
    """Returns the parameters that differ after this package has read a model and `transformers` what it wrote."""
    dtype = str(model.dtype).removeprefix("torch.")
    module, params = getattr(siglip_jax, name).from_pretrained(directory, param_dtype=dtype)
    module.save_pretrained(out, params)
    again, report = getattr(transformers, name).from_pretrained(out, output_loading_info=True, dtype=model.dtype)
    wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind]]
    before, after = model.state_dict(), again.state_dict()
    wrong += sorted(before.keys() ^ after.keys())
    kinds = {2: torch.int16, 4: torch.int32}
    for key in before.keys() & after.keys():
        one, two = before[key], after[key]
        if one.is_floating_point() and one.dtype == two.dtype:
            one, two = (x.view(kinds[x.itemsize]) for x in (one, two))
        if one.dtype != two.dtype or not torch.equal(one, two):
            wrong.append(key)
    files = [safetensors.torch.load_file(file) for folder in (directory, out) for file in folder.glob("*.safetensors")]
    if len({tensor.dtype for file in files for tensor in file.values()}) != 1:
        wrong.append("the dtypes of the files")
    return wrong
