"""Checkpoints that this package does not read: what they are, what reads them, and what to use instead.

They are recognised by names, first bytes, configurations and headers; nothing in them is opened.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from siglip_jax._checks import shown
from siglip_jax.checkpoints.table import StoredTensor

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# By the suffix of a file: what it is, and what reads it.
_FILES = {
    ".gguf": ("a GGUF file", "llama.cpp"),
    ".onnx": ("an ONNX graph", "onnxruntime"),
    ".tflite": ("a LiteRT graph", "ai-edge-litert"),
    ".h5": ("a file of Keras", "keras"),
    ".keras": ("a file of Keras", "keras"),
    ".msgpack": ("a file of Flax in transformers", "transformers 4"),
    ".mlmodel": ("a Core ML graph", "coremltools"),
    ".engine": ("a TensorRT engine", "TensorRT"),
}
_MAGIC = ((0, b"GGUF", ".gguf"), (4, b"TFL3", ".tflite"), (0, b"\x89HDF\r\n\x1a\n", ".h5"))
# By `model_type`: what it is, and what reads it.
_MODELS = {
    "clip": ("CLIP", "CLIPModel of transformers"),
    "clip_vision_model": ("a tower of CLIP", "CLIPVisionModel of transformers"),
    "chinese_clip": ("Chinese CLIP", "ChineseCLIPModel of transformers"),
    "metaclip_2": ("MetaCLIP 2", "MetaClip2Model of transformers"),
    "jina_clip": ("Jina CLIP", "transformers"),
    "align": ("ALIGN", "AlignModel of transformers"),
    "blip": ("BLIP", "BlipModel of transformers"),
    "dinov2": ("DINOv2", "Dinov2Model of transformers"),
    "dinov3_vit": ("DINOv3", "DINOv3ViTModel of transformers"),
    "tipsv2": ("TIPSv2", "Tipsv2Model of transformers"),
    "vit": ("ViT", "ViTModel of transformers"),
}
# Ends of the names of tensors beside quantized ones, and who writes them.
_QUANTIZED = (
    ((".absmax", ".quant_map"), "4-bit ones of bitsandbytes", "transformers"),
    ((".SCB",), "8-bit ones of bitsandbytes", "transformers"),
    ((".qweight",), "packed ones", "transformers"),
    ((".scales",), "quantized ones of MLX", "mlx-vlm"),
    (("weight_scale", "weight_scale_inv"), "fp8 ones", "vLLM"),
)


def advice_for_pickles(names: Iterable[str]) -> str | None:
    """Returns what weights must be instead of the pickles among some files, and how they become that.

    Args:
      names: names of files.

    Returns:
      The end of an error, after "the weights must be"; None if there are no pickles among the files.
    """
    names = sorted(names)
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if not pickles:
        return None
    name = next((name for name in pickles if name.startswith("pytorch_model")), pickles[0])
    if name.startswith("pytorch_model"):
        wanted, advice = "model.safetensors", "load it with transformers and save it with save_pretrained"
    elif name.startswith("open_clip") or "open_clip_config.json" in names:
        wanted = "open_clip_model.safetensors"
        advice = "load it with open_clip and save the model's state_dict() with safetensors.torch.save_file"
    else:
        wanted, advice = "safetensors", "load it with the program that wrote it and save it as safetensors"
    return f"{wanted}, got only {name}, a pickle, which is never opened; {advice}"


def other_file(names: Iterable[str]) -> str | None:
    """Returns what the first of some files is that another program reads, and what to use instead.

    Args:
      names: names of files, perhaps with folders.

    Returns:
      The end of an error, after "got"; None if none of the files is known.
    """
    name = next((name for name in sorted(names) if PurePosixPath(name).suffix in _FILES), None)
    return None if name is None else _described(name, PurePosixPath(name).suffix)


def _described(name: str, suffix: str) -> str:
    what, reader = _FILES[suffix]
    return f"{shown(name)}, {what}, which {reader} reads; use the repository it was made from"


def advice_for_path(path: Path) -> str | None:
    """Returns what weights must be instead of a local file, or of the files of a directory, that are not read.

    Args:
      path: the file, which is recognised by its first bytes too, or the directory.

    Returns:
      The end of an error, after "the weights must be"; None if nothing is known of the files.
    """
    names = [path.name] if path.is_file() else [entry.name for entry in path.iterdir() if entry.is_file()]
    other = other_file(names)
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(16)
        suffix = next((suffix for at, magic, suffix in _MAGIC if start[at:].startswith(magic)), None)
        other = _described(path.name, suffix) if suffix else other
    return advice_for_pickles(names) or (other and f"safetensors, got {other}")


def another_model(d: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> str:
    """Returns the error for a model that neither is SigLIP nor contains an image tower of SigLIP.

    Args:
      d: its `config.json`.
      tensors: tensors of its files by name.
    """
    kind, tower = str(d.get("model_type")), d.get("mm_vision_tower")
    wanted = "model_type must be 'siglip', 'siglip2' or that of a model with an image tower of SigLIP"
    count = sum(math.prod(tensor.shape) for tensor in tensors.values())
    what, reader = _MODELS.get(kind, ("another model", "the library it is from"))
    found = f"got {shown(kind)}, {what} of {count:,} parameters"
    if isinstance(tower, str):
        return f"{wanted}, {found}, whose files lack its tower; load {shown(tower)}"
    return f"{wanted}, {found}, which {reader} reads; use a SigLIP checkpoint"


def refuse_quantized(path: Path, d: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Raises a `ValueError` if tensors of a model are quantized by other packages, or in the layout of MLX.

    Args:
      path: the files, for the error.
      d: `config.json` of the model.
      tensors: tensors to be read by name; those of a larger model beside the tower do not matter.
    """
    found = next(((what, by) for ends, what, by in _QUANTIZED if any(name.endswith(ends) for name in tensors)), None)
    kinds = {tensor.dtype.name for tensor in tensors.values()}
    if found is None and any(kind.startswith("float8") for kind in kinds):
        found = "fp8 ones", "vLLM"
    patches = next((t.shape for name, t in tensors.items() if name.endswith("patch_embedding.weight")), ())
    if found is None and len(patches) == 4 and patches[1] == patches[2] != patches[3] <= 4:
        found = "those of MLX, whose patches are channels last", "mlx-vlm"
    if found is None:
        return
    what, reader = found
    settings = d.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if what == "packed ones" and isinstance(method, str):
        what = f"packed ones of {shown(method)[1:-1].upper()}"
    raise ValueError(
        f"{path}: the weights must be floats, got {what}, which {reader} reads; use the checkpoint they were made from"
    )
