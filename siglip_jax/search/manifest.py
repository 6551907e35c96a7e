"""The manifest of a collection: which model made which embeddings of what, so that no others are mixed in."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from siglip_jax._files import read_json, write_atomically
from siglip_jax._version import __version__
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.preprocessing import describe
from siglip_jax.params import checksum, flatten
from siglip_jax.quantization.schemes import Quantized
from siglip_jax.search.items import IMAGES, TEXTS, Items, columns_of

MANIFEST = "manifest.json"
FORMATS = ("npy", "parquet")
STORAGES = ("float32", "float16")
_SAME = {  # fields that must be the same for a collection to be resumed, and what a difference means
    "model": "another model made it",
    "preprocessing": "images or texts were prepared in another way",
    "items": "the data was changed, or is other data",
    "layout": "it was begun with other options",
}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Attributes:
      model: `name`, None for the bundled model; SHA-256 of its `config` and of each subtree of its `weights`; `dtype`;
        `quantization`.
      preprocessing: preparation of images and texts; see `siglip_jax.inference.preprocessing.describe`.
      items: `kind`, `count`, `fingerprint` and `options` of `Items`.
      layout: `format`; `part_size`, items of a part; `batch_size`, items of a step; `width` of an embedding; `storage`,
        the dtype of stored embeddings, where it is not float32; `columns`, names of the metadata, where there is any.
      source: path of the items when the collection was begun.
      version: version of this package when the collection was begun.
      done: None until the collection is complete; then numbers of `rows` and of `unreadable` items, and `checksum`,
        the SHA-256 of the records of all parts.
    """

    model: dict[str, Any]
    preprocessing: dict[str, Any]
    items: dict[str, Any]
    layout: dict[str, Any]
    source: str
    version: str
    done: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """SHA-256 that the records of this collection's parts carry."""
        return hashlib.sha256(json.dumps(self._shared(), sort_keys=True).encode()).hexdigest()

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.items["count"] // self.layout["part_size"])

    def range_of(self, part: int) -> range:
        """Returns the indices of the items of a part.

        Args:
          part: index of the part, from 0.
        """
        start = part * self.layout["part_size"]
        return range(start, min(start + self.layout["part_size"], self.items["count"]))

    def check_same(self, wanted: "Manifest", directory: Path) -> None:
        """Checks that a call may resume this collection: with the same model, items, preparation and layout.

        Args:
          wanted: manifest of the collection that the call would begin.
          directory: directory of the collection, for the message.

        Raises:
          ValueError: if they differ; the message names the first difference.
        """
        here, there = _flat(self._shared()), _flat(wanted._shared())
        for name in [*here, *there]:
            if here.get(name) != there.get(name):
                reason, found, asked = _SAME[name.partition(".")[0]], str(here.get(name)), str(there.get(name))
                differs = f"{name} must be {found:.16}, got {asked:.16}"  # 16 digits identify a checksum
                advice = "give another directory" + (
                    ", or update this one (--update)" if name.startswith("items.") else ""
                )
                raise ValueError(f"{directory}: to resume this collection, {differs}: {reason}; {advice}")

    def write(self, directory: Path) -> None:
        """Writes `manifest.json`.

        Args:
          directory: directory of the collection.
        """
        write_atomically(directory / MANIFEST, json.dumps(dataclasses.asdict(self), indent=2).encode() + b"\n")

    def _shared(self) -> dict[str, Any]:
        """Returns the fields that must be the same; the name of the model and the path of the data may change."""
        shared = {name: getattr(self, name) for name in _SAME}
        return shared | {"model": {name: value for name, value in self.model.items() if name != "name"}}


def new_manifest(
    siglip: Siglip,
    items: Items,
    *,
    model_name: str | None,
    format: str,
    part_size: int,
    batch_size: int,
    storage: str = "float32",
) -> Manifest:
    """Returns the manifest of a new collection.

    Args:
      siglip: model to embed with.
      items: images or texts to embed.
      model_name: name or path of the model for `load`; None: the bundled model.
      format: "npy" or "parquet".
      part_size: items of a part.
      batch_size: items of a step.
      storage: dtype of the stored embeddings, "float32" or "float16".

    Returns:
      The manifest, with `done=None`.
    """
    model = {
        "name": model_name,
        "config": config_checksum(siglip),
        "weights": weights_checksums(siglip.params),
        "dtype": jnp.dtype(siglip.model.dtype).name,
        "quantization": next((x.scheme for x in flatten(siglip.params).values() if isinstance(x, Quantized)), None),
    }
    width = siglip.config.vision_config.hidden_size
    if items.kind == TEXTS:
        width = siglip.config.text_config.embedding_size
    layout: dict[str, Any] = {"format": format, "part_size": part_size, "batch_size": batch_size, "width": width}
    if storage != "float32":
        layout["storage"] = storage
    if columns := columns_of(items):
        layout["columns"] = list(columns)
    return Manifest(
        model,
        preparation(siglip),
        {"kind": items.kind, "count": len(items), "fingerprint": items.fingerprint, "options": dict(items.options)},
        layout,
        items.path,
        __version__,
    )


def preparation(siglip: Siglip) -> dict[str, Any]:
    """Returns how a model's images and texts are prepared, with the SHA-256 of the vocabulary.

    Args:
      siglip: model with its processor.
    """
    facts = describe(siglip, model_name="")
    vocabulary = json.dumps(siglip.processor.tokenizer.get_vocab(), sort_keys=True).encode()
    text = facts["text"] | {"vocabulary": hashlib.sha256(vocabulary).hexdigest()}
    return _as_json({"image": facts["image"], "text": text})


def config_checksum(siglip: Siglip) -> str:
    """Returns the SHA-256 of a model's configuration."""
    return hashlib.sha256(json.dumps(siglip.config.to_dict(), sort_keys=True).encode()).hexdigest()


def weights_checksums(params: Mapping[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of each subtree of a model's parameters: `text_model`, `vision_model`, `logit_scale`, …"""
    return {name: checksum(subtree) for name, subtree in params.items()}


def read_manifest(directory: Path) -> Manifest:
    """Reads the manifest of a collection.

    Args:
      directory: directory of the collection.

    Returns:
      The manifest; every value that other code relies on is checked.

    Raises:
      FileNotFoundError: if the directory has no manifest.
      ValueError: if the manifest is damaged.
    """
    path = directory / MANIFEST
    found = read_json(path, "it makes a folder a collection of embeddings; siglip-jax embed writes it")
    names = {field.name for field in dataclasses.fields(Manifest)}
    if set(found) != names:
        raise ValueError(
            f"{path}: the fields must be {', '.join(sorted(names))}, got {', '.join(sorted(found)) or 'none'};"
            " remove it and embed again"
        )
    if wrong := next(_mistakes(found), None):
        raise ValueError(f"{path}: {wrong}; remove it and embed again")
    return Manifest(**found)


def _mistakes(found: dict[str, Any]) -> Iterator[str]:
    """Yields the mistakes in those values of a manifest that other code relies on."""
    kinds = dict.fromkeys(_SAME, dict) | {"source": str, "version": str, "done": dict | None}
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            words = "a string" if kind is str else "an object"
            yield f"{name} must be {words}, got a {type(found[name]).__name__}"
            return
    counts = {("items", "count"): 1, ("layout", "part_size"): 1, ("layout", "batch_size"): 1, ("layout", "width"): 1}
    if found["done"] is not None:
        counts |= {("done", "rows"): 0, ("done", "unreadable"): 0}
        if not isinstance(found["done"].get("checksum"), str):
            yield f"checksum in done must be a string, got {found['done'].get('checksum')!r}"
    for (group, name), least in counts.items():
        value = found[group].get(name)
        if type(value) is not int or value < least:
            yield f"{name} in {group} must be an integer of at least {least}, got {value!r}"
    columns = found["layout"].get("columns", [])
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        yield f"columns in layout must be a list of names, got {columns!r:.60}"
    if (storage := found["layout"].get("storage", "float32")) not in STORAGES:
        yield f"storage in layout must be one of {', '.join(STORAGES)}, got {storage!r:.60}"
    for group, name, known in (("layout", "format", FORMATS), ("items", "kind", (IMAGES, TEXTS))):
        if (value := found[group].get(name)) not in known:
            yield f"{name} in {group} must be one of {', '.join(known)}, got {value!r}"


def _flat(tree: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by their dotted names."""
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def _as_json(value: Any) -> Any:
    """Returns a value as it is read back from JSON, with lists for tuples."""
    return json.loads(json.dumps(value))
