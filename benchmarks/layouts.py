"""Reads and writes back what the installed libraries save: every class, family and dtype, both directions.

python benchmarks/layouts.py [transformers] [open_clip] [timm] [peft] [openpi] [gemma]

Needs `transformers`, and tests the others too where they are installed: apart from the tests' environment
(`pip install --no-deps --target DIRECTORY`, with that directory on PYTHONPATH), since `transformers` prepares images in
another way where it finds torchvision. Prints one line for each model: the largest relative difference of the outputs,
and the number of parameters of which a bit differs after this package has read them and the library has read what was
written. Adapters of peft are compared after merging, and only those of a run are written; trees of openpi and gemma are
compared as the trees of their own modules, made from what was read.
"""

import importlib.util
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import layouts_jax

import siglip_jax
from siglip_jax.checkpoints import convert
from siglip_jax.params import flatten
from siglip_jax.training import train
from tests.support import layouts, open_clip_golden, timm_golden
from tests.support.pairs import write_pairs
from tests.support.tiny_checkpoint import write_checkpoint

OPEN_CLIP = ("ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256")
Row = tuple[str, str, str, float | None, int]


def of_transformers(work: Path) -> Iterator[Row]:
    """Yields the results of every class of `transformers`."""
    for name in layouts.CLASSES:
        for dtype in layouts.DTYPES:
            model, saved, again = layouts.build(name, dtype), work / f"{name}-{dtype}", work / f"{name}-{dtype}-again"
            model.save_pretrained(saved)
            wrong = layouts.different_bits(name, model, saved, again)
            found = [layouts.difference(name, model, path) for path in (saved, again) if dtype == "float32"]
            yield f"transformers {version('transformers')}", name, dtype, max(found, default=None), len(wrong)


def of_open_clip(work: Path) -> Iterator[Row]:
    """Yields the results of models of open_clip, of their real sizes with random weights."""
    open_clip = open_clip_golden.import_open_clip()
    for name in OPEN_CLIP:
        torch.manual_seed(0)
        model = open_clip.create_model(name, pretrained=None).eval()
        directory = work / name
        directory.mkdir()
        safetensors.torch.save_file(dict(model.state_dict()), directory / "open_clip_model.safetensors")
        preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
        d = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocess}
        (directory / "open_clip_config.json").write_text(json.dumps(d))
        module, params = siglip_jax.SiglipModel.from_pretrained(directory)
        size, length = module.config.vision_config.image_size, module.config.text_config.max_position_embeddings
        rng = np.random.default_rng(0)
        pixels = rng.normal(size=(1, size, size, 3)).astype(np.float32)
        ids = rng.integers(3, 30_000, (1, length)).astype(np.int32)
        with torch.no_grad():
            images = model.encode_image(torch.tensor(pixels.transpose(0, 3, 1, 2))).numpy()
            texts = model.encode_text(torch.tensor(ids.astype(np.int64))).numpy()
        pairs = [
            (np.asarray(_run(module, params, (pixels,), "get_image_features")), images),
            (np.asarray(_run(module, params, (ids,), "get_text_features")), texts),
        ]
        found = max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)
        convert(directory, work / f"{name}-again", "open_clip")
        again = safetensors.torch.load_file(work / f"{name}-again" / "open_clip_model.safetensors")
        before = model.state_dict()
        report = model.load_state_dict(again)  # strict: names and shapes
        wrong = [key for key in again if not torch.equal(again[key], before[key])]
        yield f"open_clip {version('open_clip_torch')}", name, "float32", found, len(wrong) + len(report.missing_keys)


def of_timm(work: Path) -> Iterator[Row]:
    """Yields the results of models of timm, made small."""
    open_clip_golden.import_open_clip()
    import timm

    for case, (name, more, classes) in timm_golden.MODELS.items():
        model = timm.create_model(name, num_classes=classes, **timm_golden.SMALL, **more).eval()
        state = {key: torch.tensor(x.astype(np.float32)) for key, x in timm_golden.random_state(model).items()}
        model.load_state_dict(state, strict=True)
        saved, again = work / f"timm-{case}", work / f"timm-{case}-again"
        timm.models.save_for_hf(model, saved, safe_serialization=True)
        checkpoint = siglip_jax.read_checkpoint(saved)
        module, params = getattr(siglip_jax, checkpoint.architecture).from_pretrained(saved)
        pixels, inputs = _images_of_timm(checkpoint.config)
        expected = timm_golden.compute(model, pixels)
        out = _run(module, params, inputs, None)
        if not classes:
            out = out.last_hidden_state.mean(1) if out.pooler_output is None else out.pooler_output
        found = np.asarray(out.logits if classes else out)
        siglip_jax.write_checkpoint(again, checkpoint)
        theirs = timm.create_model(f"local-dir:{again}", pretrained=True).state_dict()
        wrong = [key for key in state.keys() | theirs.keys() if not _same(state.get(key), theirs.get(key))]
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        yield f"timm {version('timm')}", f"{name}, {case}", "float32", difference, len(wrong)


def _images_of_timm(config: Any) -> tuple[np.ndarray, Any]:
    """Returns the same random images for timm, and for this package as a tuple of inputs."""
    vision = getattr(config, "vision_config", config)
    rng, channels = np.random.default_rng(1), vision.num_channels
    if not hasattr(vision, "image_size"):
        rows, columns = timm_golden.GRID
        patches = rng.uniform(-1, 1, (2, rows * columns, channels * vision.patch_size**2)).astype(np.float32)
        shapes = np.tile(np.int32([timm_golden.GRID]), (2, 1))
        return patches, (patches, np.ones(patches.shape[:2], np.int32), shapes)
    pixels = rng.uniform(-1, 1, (2, channels, vision.image_size, vision.image_size)).astype(np.float32)
    return pixels, (pixels.transpose(0, 2, 3, 1),)


def _same(one: Any, two: Any) -> bool:
    return one is not None and two is not None and one.dtype == two.dtype and torch.equal(one, two)


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {  # name: class, arguments of peft's LoraConfig
    "plain": ("SiglipModel", {"lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "fc1"]}),
    "biases of the layers": ("SiglipModel", {"target_modules": ["q_proj", "fc1"], "bias": "lora_only"}),
    "all biases": ("SiglipModel", {"target_modules": ["q_proj", "fc1"], "bias": "all"}),
    "biases of the additions": ("SiglipModel", {"target_modules": ["q_proj"], "lora_bias": True}),
    "pooling head, embeddings, rsLoRA": (
        "SiglipModel",
        {
            "target_modules": ["vision_model.head.attention", "patch_embedding", "token_embedding", "k_proj"],
            "use_rslora": True,
            "rank_pattern": {"vision_model.head.attention": 12},
            "alpha_pattern": {".*layers.0.*k_proj": 3, "head.attention": 5},
        },
    ),
    "DoRA": (
        "SiglipModel",
        {"target_modules": ["q_proj", "fc2", "patch_embedding", "token_embedding"], "use_dora": True},
    ),
    "all linear layers": ("SiglipVisionModel", {"target_modules": "all-linear"}),
    "text": ("SiglipTextModel", {"target_modules": ["q_proj", "head"]}),
    "classifier": (
        "SiglipForImageClassification",
        {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]},
    ),
}


def of_peft(work: Path) -> Iterator[Row]:
    """Yields the results of adapters of peft, and of an adapter that training here has written."""
    import peft
    import transformers

    library = f"peft {version('peft')}"
    for case, (name, options) in ADAPTERS.items():
        base, saved, merged = (work / f"peft-{case}{part}" for part in ("-base", "", "-merged"))
        layouts.build(name).save_pretrained(base)
        cls = getattr(transformers, name)
        model = peft.get_peft_model(cls.from_pretrained(base), peft.LoraConfig(r=4, **options))
        torch.manual_seed(1)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.2 * torch.randn_like(parameter) + ("magnitude" in key))
        model.save_pretrained(saved)
        theirs = model.merge_and_unload().eval()
        theirs.save_pretrained(merged)
        pairs = [flatten(siglip_jax.read_checkpoint(path).params) for path in (saved, merged)]
        wrong = pairs[0].keys() ^ pairs[1].keys()
        yield library, f"read: {case}", "float32", layouts.difference(name, theirs, saved), len(wrong)

    base, run, again = write_checkpoint(work / "peft-start"), work / "peft-run", work / "peft-again"
    data = write_pairs(work / "peft-data", 1)
    fields = {"batch_size": 8, "duration": "4 steps", "optimizer.rate": 0.02}
    train(data, base, run, "lora", **fields)
    model = peft.PeftModel.from_pretrained(transformers.SiglipModel.from_pretrained(base), run / "adapter").eval()
    model.save_pretrained(again)
    files = [safetensors.torch.load_file(path / "adapter_model.safetensors") for path in (run / "adapter", again)]
    # What no layer owns, as the temperature, is loaded by peft and not saved again.
    held = {key: x for key, x in model.state_dict().items() if key in files[0]}
    wrong = [key for key, x in files[0].items() if not _same(x, files[1].get(key, held.get(key)))]
    difference = layouts.difference("SiglipModel", model.merge_and_unload().eval(), run / "model")
    yield library, "written by a run", "float32", difference, len(wrong)


def _run(module: Any, params: Any, inputs: tuple[np.ndarray, ...], method: str | None) -> Any:
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda p, *x: module.apply({"params": p}, *x, method=method))(params, *inputs)


SECTIONS = {
    "transformers": of_transformers,
    "open_clip": of_open_clip,
    "timm": of_timm,
    "peft": of_peft,
    "openpi": layouts_jax.of_openpi,
    "gemma": layouts_jax.of_gemma,
}
# Of the largest output. Roundings of bfloat16 add up over the layers, in another order in each program.
LIMITS = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}


def main() -> int:
    """Prints the results; returns 1 if any is wrong."""
    worst = 0
    logging.getLogger("siglip_jax").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as work:
        for package, results in SECTIONS.items():
            if package not in (sys.argv[1:] or SECTIONS):
                continue
            if importlib.util.find_spec(package) is None:
                print(f"{package} is not installed")
                continue
            for library, name, dtype, difference, wrong in results(Path(work)):
                shown = "" if difference is None else f"{difference:.1e}"
                print(f"{library:<22} {name:<52} {dtype:<9} {shown:>8} {wrong:>4} different", flush=True)
                worst = max(worst, wrong > 0, (difference or 0) > LIMITS[dtype])
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
