"""The kinds of files that are mutated, each as small as it can be, and how each is read."""

import csv
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import safetensors.numpy

import siglip_jax
from siglip_jax.params import flatten
from tests.support import gemma_tokenizer, peft_files, tiny_checkpoint
from tests.support.damaged_files import write
from tests.support.data_sets import encoded, write_tar
from tests.support.fuzz import SLACK, Reader
from tests.support.larger_models import write_layout
from tests.support.timm_golden import write_timm

PIXELS = 2**20  # most of an image here; a mutant may ask for as many as are allowed


def read_checkpoint(path: Path) -> None:
    for array in flatten(siglip_jax.read_checkpoint(path).params).values():
        np.asarray(array).tobytes()


def of_format(format: str, *names: str, **options: Any) -> Reader:
    """Returns the reader of a checkpoint, of which some files are mutated."""

    def make(home: Path) -> list[Path]:
        path = write(home, format, **options)
        return [path / name for name in names] if names else [path]

    return Reader(make, lambda home: read_checkpoint(next(home.iterdir())))


def orbax(home: Path) -> list[Path]:
    path = write(home, "orbax")
    return sorted(file for file in path.rglob("*") if file.is_file())


def zarr(home: Path) -> list[Path]:
    """An image tower as big_vision's training writes it: a folder of zarr arrays."""
    from tests.support.jax_neighbours import image_tower, save_zarr

    with np.load(write(home.with_name("npz"), "big_vision")) as file:
        tower = image_tower(dict(file))
    save_zarr(home / "checkpoint", {f"params/img/{path}": x for path, x in tower.items()})
    return sorted(file for file in home.rglob("*") if file.is_file())


def quantized(home: Path) -> list[Path]:
    siglip_jax.load(tiny_checkpoint.write_checkpoint(home.with_name("float")), quantization="int8").save_pretrained(
        home
    )
    return [file for file in sorted(home.iterdir()) if file.suffix == ".safetensors"]


def of_model(write: Callable[[Path], Any], *names: str) -> Reader:
    """Returns the reader of a folder with weights of another library, of which some files are mutated."""

    def make(home: Path) -> list[Path]:
        write(home)
        return [home / name for name in names]

    return Reader(make, read_checkpoint)


def adapter(home: Path) -> None:
    """A LoRA adapter of PEFT beside the checkpoint that it changes."""
    layer = "vision_model.encoder.layers.0.self_attn.q_proj"
    base = tiny_checkpoint.write_checkpoint(home.with_name(f"{home.name}-base"))
    shape = safetensors.numpy.load_file(base / "model.safetensors")[f"{layer}.weight"].shape
    parts = peft_files.addition(np.random.RandomState(0), shape, 2)
    tensors = {f"{layer}.{name}": x for name, x in parts.items()}
    peft_files.write(home, tensors, base_model_name_or_path=os.fspath(base))


def processor(*names: str) -> Callable[[Path], list[Path]]:
    """Returns what writes a checkpoint of which some files of the processor are mutated."""

    def make(home: Path) -> list[Path]:
        tiny_checkpoint.write_checkpoint(home)
        siglip_jax.SiglipProcessor.from_pretrained(home).save_pretrained(home)  # writes the other files
        return [home / name for name in names]

    return make


def read_processor(home: Path) -> None:
    siglip_jax.SiglipProcessor.from_pretrained(home)(text=["a photo of a cat"])


def gemma(home: Path) -> list[Path]:
    gemma_tokenizer.train(home / "tokenizer.json")
    return [home / "tokenizer.json"]


def read_gemma(home: Path) -> None:
    siglip_jax.Siglip2Tokenizer.from_pretrained(home)(["a photo of a cat"])


def image(suffix: str, **options: Any) -> Reader:
    """Returns the reader of an image."""

    def make(home: Path) -> list[Path]:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(home / f"image{suffix}", **options)
        return [home / f"image{suffix}"]

    def read(home: Path) -> None:
        siglip_jax.load_image(next(home.iterdir()), max_pixels=PIXELS).convert("RGB")

    return Reader(make, read, SLACK + 12 * PIXELS)


def read_source(home: Path) -> None:
    source = siglip_jax.data.open_source(next(iter(sorted(home.glob("data*")))))
    for i in range(len(source)):
        source[i]


def tar(home: Path) -> list[Path]:
    members = {f"{i}.{kind}": encoded(i) if kind == "jpg" else b"a cat" for i in range(3) for kind in ("jpg", "txt")}
    return [write_tar(home / "data.tar", members)]


ROWS = [{"image": f"{i}.jpg", "text": f"a photo of cat {i}", "label": i} for i in range(3)]


def images(home: Path) -> None:
    for i in range(3):
        (home / f"{i}.jpg").write_bytes(encoded(i))


def json_lines(home: Path) -> list[Path]:
    images(home)
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return [home / "data.jsonl"]


def comma_separated(home: Path) -> list[Path]:
    images(home)
    with (home / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    return [home / "data.csv"]


def columns() -> pa.Table:
    pictures = [{"bytes": encoded(i), "path": f"{i}.jpg"} for i in range(3)]
    return pa.table({"image": pictures, "text": [row["text"] for row in ROWS], "label": [0, 1, 2]})


def parquet(home: Path) -> list[Path]:
    pa.parquet.write_table(columns(), home / "data.parquet")
    return [home / "data.parquet"]


def arrow(home: Path) -> list[Path]:
    with pa.OSFile(os.fspath(home / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, columns().schema) as writer:
        writer.write_table(columns())
    return [home / "data.arrow"]


def collection(*kinds: str, format: str = "npy") -> Reader:
    """Returns the reader of a collection of embeddings, of which files of some endings are mutated."""

    def make(home: Path) -> list[Path]:
        model = tiny_checkpoint.write_checkpoint(home.with_name(f"{home.name}-model"))
        (home / "texts.txt").write_text("\n".join(tiny_checkpoint.SENTENCES))
        siglip_jax.search.embed(home / "texts.txt", home / "out", model, part_size=4, format=format)
        return [file for kind in kinds for file in sorted((home / "out").glob(kind))]

    def read(home: Path) -> None:
        opened = siglip_jax.search.open_collection(home / "out")
        opened.rows(np.arange(len(opened)))
        for part in range(-(-len(opened) // 4)):
            opened.ids(part)
        siglip_jax.search.verify_collection(home / "out")

    return Reader(make, read)


READERS = {
    "config.json": of_format("huggingface", "config.json"),
    "safetensors": of_format("huggingface", "model.safetensors"),
    "index.json": of_format("huggingface", "model.safetensors.index.json", max_shard_size=8000),
    "npz": of_format("big_vision"),
    "open_clip": of_format("open_clip", "open_clip_config.json"),
    "timm": of_model(functools.partial(write_timm, case="map_classifier"), "config.json", "model.safetensors"),
    "larger model": of_model(functools.partial(write_layout, layout="eagle"), "config.json", "model.safetensors"),
    "adapter": of_model(adapter, "adapter_config.json", "adapter_model.safetensors"),
    "orbax": Reader(orbax, lambda home: read_checkpoint(next(home.iterdir()))),
    "zarr": Reader(zarr, lambda home: read_checkpoint(home / "checkpoint")),
    "quantized": Reader(quantized, siglip_jax.load),
    "spiece.model": Reader(processor("spiece.model"), read_processor),
    "tokenizer.json": Reader(gemma, read_gemma),
    "processor": Reader(
        processor("tokenizer_config.json", "preprocessor_config.json", "processor_config.json"), read_processor
    ),
    "png": image(".png"),
    "jpeg": image(".jpg"),
    "gif": image(".gif"),
    "tiff": image(".tiff", compression="tiff_lzw"),
    "webp": image(".webp"),
    "bmp": image(".bmp"),
    "tar": Reader(tar, read_source),
    "jsonl": Reader(json_lines, read_source),
    "csv": Reader(comma_separated, read_source),
    "parquet": Reader(parquet, read_source),
    "arrow": Reader(arrow, read_source),
    "collection": collection("manifest.json", "*.ids.json", "part-*.json", "*.npy"),
    "collection in Parquet": collection("*.parquet", format="parquet"),
}
