"""The files that the peers of `benchmarks/inference.py` read: a random model, arrays, images, exported towers."""

import argparse
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS = ("image", "text")
VOCABULARY = 2048  # pieces of the bundled one


def write_model(folder: Path, size: str, rows: int, images: int) -> None:
    """Writes a random model of a size, but with the bundled vocabulary, arrays for `rows` examples, and JPEG files."""
    import jax
    import jax.numpy as jnp
    from input_pipeline import write_images

    from siglip_jax.assets import BUNDLED_MODEL
    from siglip_jax.configs.configuration import SiglipConfig
    from siglip_jax.models import SiglipModel

    tiny = size == "tiny"
    config = SiglipConfig(text_config=TINY, vision_config=TINY) if tiny else SiglipConfig.from_variant(size)
    config = config.replace(text_config=config.text_config.replace(vocab_size=VOCABULARY))
    side, length = config.vision_config.image_size, config.text_config.max_position_embeddings
    model = SiglipModel(config)
    shapes = {"input_ids": jnp.zeros((1, length), jnp.int32), "pixel_values": jnp.zeros((1, side, side, 3))}
    model.save_pretrained(folder, jax.jit(model.init)(jax.random.key(0), **shapes)["params"])
    shutil.copy(BUNDLED_MODEL / "spiece.model", folder)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": side, "width": side}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | half))
    tokenizer = {"tokenizer_class": "SiglipTokenizer", "model_max_length": length, "model_input_names": ["input_ids"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    rng = np.random.default_rng(0)
    np.save(folder / "image.npy", rng.uniform(-1, 1, (rows, side, side, 3)).astype(np.float32))
    np.save(folder / "text.npy", rng.integers(2, config.text_config.vocab_size, (rows, length), np.int32))
    (folder / "images").mkdir()
    write_images(folder / "images", images)


def export(folder: Path) -> None:
    """Writes the towers as ONNX, also quantized; export.txt has the reason if one is missing."""
    (folder / "export.txt").write_text("the export did not end")
    import torch
    import transformers
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = transformers.SiglipModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    class Tower(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.model, self.features = model, getattr(model, f"get_{name}_features")

        def forward(self, array: Any) -> Any:
            return torch.nn.functional.normalize(self.features(array).pooler_output)

    examples = {name: np.load(folder / f"{name}.npy")[:2] for name in TOWERS}
    examples["image"] = np.ascontiguousarray(np.moveaxis(examples["image"], -1, 1))
    try:
        for name, example in examples.items():
            rows = {"dynamic_shapes": ({0: torch.export.Dim("rows")},), "dynamo": True}
            names = {"input_names": ["input"], "output_names": ["embeds"]}
            file = folder / f"{name}.onnx"
            torch.onnx.export(Tower(name).eval(), (torch.from_numpy(example),), str(file), **rows, **names)
            quantized = folder / f"{name}.int8.onnx"
            quantize_dynamic(file, quantized, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
    except Exception as error:  # libraries raise anything; the peers that need the file report it
        (folder / "export.txt").write_text(f"{type(error).__name__}: {error}"[:300])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("model", "export"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", help="tiny, or the name of a released checkpoint")
    parser.add_argument("--rows", type=int, help="rows of the arrays")
    parser.add_argument("--images", type=int, help="JPEG files")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.job == "model":
        write_model(options.folder, options.size, options.rows, options.images)
    else:
        export(options.folder)
