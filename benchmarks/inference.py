"""Inference against `transformers` on this machine: embeddings per second, and the cold start of `siglip-jax classify`.

    python benchmarks/inference.py [--size base|tiny] [--images 32] [--repeats 5] [--json]

Both sides run the same random checkpoint of siglip-base-patch16-224's shape in float32, from decoded pictures or
strings to normalised embeddings, in turns, after one round to warm up. Figures are medians; a ratio above 1 means that
this library is faster. The cold start is a whole process, from the shell to the printed scores. Needs torch and
transformers.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from siglip_jax.configuration import SiglipConfig
from siglip_jax.inference import load
from siglip_jax.inference.engine import EMBEDDED_MODEL
from siglip_jax.models import SiglipModel

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"base": SiglipConfig(), "tiny": SiglipConfig(text_config=TINY, vision_config=TINY)}
LABELS = ["a cat", "a dog", "a house", "a tree"]
REFERENCE_COMMAND = """
import sys, transformers
kind = "zero-shot-image-classification"
processor = transformers.SiglipImageProcessorPil.from_pretrained(sys.argv[1])
pipe = transformers.pipeline(kind, sys.argv[1], image_processor=processor)
print(pipe(sys.argv[2], candidate_labels=sys.argv[3:], hypothesis_template="{}"))
"""


def main() -> None:
    """Runs the benchmark and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "model", SIZES[options.size])
        rows = throughput(checkpoint, options) + cold_start(checkpoint, options.repeats)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'what':<28} {'siglip_jax':>12} {'transformers':>13} {'ratio':>6}")
    for row in rows:
        print(f"{row['what']:<28} {row['siglip_jax']:>10.3f} s {row['transformers']:>11.3f} s {row['ratio']:>6.2f}")


def write_checkpoint(directory: Path, config: SiglipConfig) -> Path:
    """Writes a random model with the embedded model's vocabulary."""
    model = SiglipModel(config)
    size, length = config.vision_config.image_size, config.text_config.max_position_embeddings
    shapes = {"input_ids": jnp.zeros((1, length), jnp.int32), "pixel_values": jnp.zeros((1, size, size, 3))}
    params = jax.jit(model.init)(jax.random.key(0), **shapes)["params"]
    model.save_pretrained(directory, params)
    shutil.copy(EMBEDDED_MODEL / "spiece.model", directory)
    images = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(images))
    tokenizer = {"tokenizer_class": "SiglipTokenizer", "model_max_length": length, "model_input_names": ["input_ids"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return directory


def throughput(checkpoint: Path, options: argparse.Namespace) -> list[dict]:
    """Times embeddings of many pictures and many texts, batched on both sides."""
    import torch
    import transformers

    ours = load(checkpoint)
    theirs = transformers.SiglipModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    images = transformers.SiglipImageProcessorPil.from_pretrained(checkpoint)
    tokenizer = transformers.SiglipTokenizer.from_pretrained(checkpoint)
    rng = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(rng.integers(0, 256, (240, 320, 3), np.uint8)) for _ in range(options.images)]
    texts = [f"a photo of thing number {i}" for i in range(options.texts)]
    length = ours.config.text_config.max_position_embeddings

    def batched(encode: Callable, items: list, batch_size: int) -> np.ndarray:
        with torch.inference_mode():
            parts = [encode(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]
            return torch.nn.functional.normalize(torch.cat([part.pooler_output for part in parts])).numpy()

    def encode_images(batch: list) -> object:
        return theirs.get_image_features(**images(batch, return_tensors="pt"))

    def encode_texts(batch: list) -> object:
        ids = tokenizer(batch, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        return theirs.get_text_features(ids)

    def default(what: str, count: int) -> str:
        return f"{count} {what}, default batch"

    pairs: dict[str, tuple[Callable, Callable]] = {
        default("images", len(pictures)): (
            lambda: ours.encode_image(pictures),
            lambda: batched(encode_images, pictures, 8),
        ),
        default("texts", len(texts)): (lambda: ours.encode_text(texts), lambda: batched(encode_texts, texts, 32)),
    }
    for size in options.batch_sizes:
        pairs[f"{len(pictures)} images by {size}"] = (
            lambda size=size: ours.encode_image(pictures, batch_size=size),
            lambda size=size: batched(encode_images, pictures, size),
        )
        pairs[f"{len(texts)} texts by {size}"] = (
            lambda size=size: ours.encode_text(texts, batch_size=size),
            lambda size=size: batched(encode_texts, texts, size),
        )
    rows = []
    for what, (run_ours, run_theirs) in pairs.items():
        difference = np.abs(run_ours() - run_theirs()).max()
        if difference > 1e-4:
            raise SystemExit(f"{what}: the two sides differ by {difference}; not comparing their speed")
        rows.append(compare(what, run_ours, run_theirs, options.repeats))
    return rows


def cold_start(checkpoint: Path, repeats: int) -> list[dict]:
    """Times whole processes that classify one picture."""
    picture = checkpoint / "picture.png"
    PIL.Image.fromarray(np.full((64, 64, 3), 127, np.uint8)).save(picture)
    ours = [sys.executable, "-m", "siglip_jax", "classify", str(picture), "--model", str(checkpoint), "--labels"]
    theirs = [sys.executable, "-c", REFERENCE_COMMAND, str(checkpoint), str(picture)]

    def process(command: list[str]) -> Callable[[], object]:
        return lambda: subprocess.run([*command, *LABELS], check=True, capture_output=True)

    return [compare("cold start, one image", process(ours), process(theirs), max(2, repeats // 2))]


def compare(what: str, ours: Callable, theirs: Callable, repeats: int) -> dict:
    """Times both sides in turns; seconds are medians."""
    seconds: dict[str, list[float]] = {"siglip_jax": [], "transformers": []}
    for _ in range(repeats):
        for name, run in (("siglip_jax", ours), ("transformers", theirs)):
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"what": what, **medians, "ratio": medians["transformers"] / medians["siglip_jax"]}


if __name__ == "__main__":
    main()
