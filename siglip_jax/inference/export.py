"""Export: the encoders of a model as `jax.export` artefacts, which run without this package.

An artefact is a StableHLO program for any number of rows and for several platforms at once. Its first argument is the
parameters, which are stored beside it in a safetensors file: as constants they would make the program as large as the
model, and more than 2 GB cannot be serialised. `run.py`, a copy of `exported_run`, shows how to use both.

jax promises that an artefact runs for six months after the release that wrote it, and that a release runs artefacts
written up to three weeks after it ("Compatibility guarantees" in its guide to export). Keep the checkpoint.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siglip_jax._files import directory_written_aside, inside, output_path, read_json
from siglip_jax._optional import import_optional
from siglip_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors
from siglip_jax.checkpoints.table import NewTensor
from siglip_jax.configs.configuration import Siglip2Config
from siglip_jax.inference import exported_run
from siglip_jax.inference.engine import Siglip
from siglip_jax.models.elementwise import normalize
from siglip_jax.params import flatten, unflatten

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
FORMAT = "siglip_jax export 1"
MANIFEST = "manifest.json"
METHODS = {"image": "get_image_features", "text": "get_text_features"}
TOWERS = {"image": "vision_model", "text": "text_model"}

PROMISE = (
    "jax {jax} and its releases of the six months after it run this; for later ones, export again from the checkpoint"
)

README = """# Encoders exported by siglip_jax

    pip install jax flatbuffers numpy pillow safetensors {tokenizer}
    python run.py IMAGE "a text" "another"

`*_encoder.jaxexport` are programs of `jax.export`, `*_encoder.safetensors` their parameters. A program maps
(parameters, batch of inputs) to L2-normalised embeddings. `manifest.json` records the shapes, the temperature and the
bias of the logits, and the SHA-256 of every file. `siglip_jax.SiglipProcessor.from_pretrained` also reads this
directory.

What jax promises: {promise}.
"""


def export(
    siglip: Siglip, directory: str | os.PathLike[str], *, platforms: Sequence[str] = DEFAULT_PLATFORMS
) -> dict[str, Any]:
    """Writes both encoders, the files of the processor and a script that runs them to a new directory.

    The script `run.py` needs jax but not this package. The attention implementation is always "xla", because
    the others do not run on every platform or cannot be exported.

    Args:
      siglip: model of fixed resolution; the artefacts compute in its dtype.
      directory: path of the new directory, which is created complete or, after an error, not at all.
      platforms: platforms that the programs run on, distinct names of "cpu", "cuda", "rocm" and "tpu".

    Returns:
      The contents of `manifest.json`: `format`, `jax_version`, `platforms`, `dtype`, `temperature`, `logit_bias`,
      `encoders` (files, shapes and dtypes), `image` and `text` (the preparation of inputs), and `files` (bytes and
      SHA-256 of each).

    Raises:
      FileExistsError: if the directory exists.
      ValueError: if a platform is unknown or repeated, the model has variable resolution, its image processor does more
        than resize, rescale and normalise, or `flatbuffers` is not installed.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import siglip_jax
      >>> with tempfile.TemporaryDirectory() as parent:
      ...     manifest = export(siglip_jax.load(), Path(parent) / "exported", platforms=["cpu"])
      ...     sorted(file.name for file in Path(parent, "exported").glob("*.jaxexport"))
      ['image_encoder.jaxexport', 'text_encoder.jaxexport']
      >>> manifest["encoders"]["image"]["input"], manifest["encoders"]["image"]["output"]
      (['batch', 64, 64, 3], ['batch', 192])
    """
    platforms = tuple(platforms)
    if not platforms or not set(platforms) <= set(PLATFORMS) or len(set(platforms)) < len(platforms):
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}, each once, got {', '.join(platforms)!r}")
    inputs = {"image": _image(siglip), "text": _text(siglip)}
    promise = PROMISE.format(jax=jax.__version__)
    with directory_written_aside(output_path(directory, "directory")) as aside:
        encoders = {name: _write_encoder(siglip, name, aside, platforms) for name in METHODS}
        siglip.processor.save_pretrained(aside)
        shutil.copyfile(exported_run.__file__, aside / "run.py")
        tokenizer = "tokenizers" if inputs["text"]["vocabulary"] == "tokenizer.json" else "sentencepiece"
        (aside / "README.md").write_text(README.format(tokenizer=tokenizer, promise=promise))
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "jax_version": jax.__version__,
            "promise": promise,
            "platforms": list(platforms),
            "dtype": jnp.dtype(siglip.model.dtype).name,
            "temperature": siglip.temperature,
            "logit_bias": siglip.logit_bias,
            "encoders": encoders,
            **inputs,
            "files": {file.name: _facts(file) for file in sorted(aside.iterdir())},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def read_encoder(directory: str | os.PathLike[str], name: str) -> Callable[[Any], Float[Array, "rows embed"]]:
    """Returns an exported encoder as a function from a batch of inputs to L2-normalised embeddings.

    Args:
      directory: directory that `export` wrote; the checksums of its files are verified.
      name: "image" or "text".

    Returns:
      A function of pixel values (rows, height, width, channels) float32, or of token ids (rows, length) int32, that
      returns (rows, width) float32 embeddings.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file has changed since the export, or `flatbuffers` is not installed.
    """
    home = Path(directory)
    if name not in METHODS:
        raise ValueError(f"name must be one of {', '.join(METHODS)}, got {name!r}")
    manifest = read_json(home / MANIFEST, "it records what was exported")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{home / MANIFEST}: format must be {FORMAT!r}, got {manifest.get('format')!r}; export again")
    program, params = (home / f"{name}_encoder.{kind}" for kind in ("jaxexport", "safetensors"))
    for file in (program, params):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; export again")
        if _facts(inside(file)) != manifest.get("files", {}).get(file.name):
            raise ValueError(f"{file}: the contents must match {MANIFEST}, got other bytes; export or copy it again")
    exported = _jax_export().deserialize(bytearray(program.read_bytes()))
    arrays = {key: jnp.asarray(tensor.view()) for key, tensor in read_safetensors(params).items()}
    return functools.partial(jax.jit(exported.call), arrays)


def _jax_export() -> Any:
    """Returns the module `jax.export`, which needs `flatbuffers`."""
    import_optional("flatbuffers", "export", "export")
    import jax.export

    return jax.export


def _write_encoder(siglip: Siglip, name: str, directory: Path, platforms: tuple[str, ...]) -> dict[str, Any]:
    """Writes the program and the parameters of one tower; returns their entry in the manifest."""
    jax_export, c = _jax_export(), siglip.config
    tower = TOWERS[name]
    model = siglip.model.clone(attn_implementation="xla")  # cuDNN's cannot be exported
    rest = {key: value for key, value in siglip.params.items() if key not in TOWERS.values()}
    params = flatten(siglip.params[tower])

    def embed(params: dict[str, Array], inputs: Array) -> Array:
        variables = {"params": {tower: unflatten(params), **rest}}
        embeds: Any = model.apply(variables, inputs, method=METHODS[name])
        return normalize(embeds)

    (rows,) = jax_export.symbolic_shape("batch")
    size = c.vision_config.image_size
    shape = (size, size, c.vision_config.num_channels) if name == "image" else (c.text_config.max_position_embeddings,)
    dtype = jnp.float32 if name == "image" else jnp.int32
    avals = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in params.items()}
    batch = jax.ShapeDtypeStruct((rows, *shape), dtype)
    exported = jax_export.export(jax.jit(embed), platforms=platforms)(avals, batch)
    files = {"program": f"{name}_encoder.jaxexport", "params": f"{name}_encoder.safetensors"}
    (directory / files["program"]).write_bytes(exported.serialize())
    tensors = {
        path: NewTensor(x.shape, np.dtype(x.dtype), functools.partial(np.asarray, x)) for path, x in params.items()
    }
    write_safetensors(directory / files["params"], tensors, {})
    (out,) = exported.out_avals
    return files | {
        "input": ["batch", *shape],
        "input_dtype": jnp.dtype(dtype).name,
        "output": ["batch", *out.shape[1:]],
        "output_dtype": out.dtype.name,
        "calling_convention_version": exported.calling_convention_version,
    }


def _image(siglip: Siglip) -> dict[str, Any]:
    """Returns the manifest's entry on the preparation of images, which `run.py` repeats.

    Raises:
      ValueError: if the preparation is one that `run.py` does not implement.
    """
    if isinstance(siglip.config, Siglip2Config):
        raise ValueError("siglip must be a model of fixed resolution, got one of variable resolution; load another")
    size = siglip.config.vision_config.image_size
    p = siglip.processor.image_processor
    usual = p.do_convert_rgb and p.do_resize and p.do_rescale and p.do_normalize
    if not usual or p.do_pad or p.do_center_crop or p.size != {"height": size, "width": size}:
        raise ValueError(
            f"the image processor must resize to {size} x {size}, rescale and normalise, and do nothing else, got"
            f" {p.to_dict()}"
        )
    numbers = {"rescale_factor": p.rescale_factor, "mean": p.image_mean, "std": p.image_std}
    return {"height": size, "width": size, "resample": int(p.resample), **numbers}


def _text(siglip: Siglip) -> dict[str, Any]:
    """Returns the manifest's entry on the preparation of texts."""
    tokenizer = siglip.processor.tokenizer
    return {
        "vocabulary": tokenizer.vocabulary_file,
        "length": siglip.config.text_config.max_position_embeddings,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
    }


def _facts(file: Path) -> dict[str, Any]:
    """Returns the size and the SHA-256 of a file."""
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
