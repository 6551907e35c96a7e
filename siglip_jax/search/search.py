"""Finds the nearest items of a collection to a text or an image."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from siglip_jax._checks import check_count
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.labels import probabilities
from siglip_jax.inference.load import load
from siglip_jax.search.approximate import Approximate
from siglip_jax.search.collection import Collection
from siglip_jax.search.items import IMAGES, TEXTS, Items, open_items
from siglip_jax.search.manifest import config_checksum, weights_checksums
from siglip_jax.search.nearest import nearest


class Match(NamedTuple):
    """An item that was found.

    Attributes:
      rank: counted from 1.
      id: its name.
      score: cosine.
      probability: that the text describes the image; None where the query is of the same kind as the items.
      position: its number among the items.
    """

    rank: int
    id: str
    score: float
    probability: float | None
    position: int


def load_for(
    collection: Collection, name_or_path: str | None = None, *, kinds: Sequence[str] = (TEXTS, IMAGES)
) -> Siglip:
    """Loads the model that a collection was made with.

    Args:
      name_or_path: where it is; by default where it was then.
      kinds: what the queries will be; only the towers for these are read and compared.

    Raises:
      OSError: if it is not there.
      ValueError: if that is another model.
    """
    made = collection.manifest.model
    name = made.get("name") if name_or_path is None else name_or_path
    siglip = load(name, dtype=made.get("dtype"), quantization=made.get("quantization"))
    encoders = {TEXTS: "text_encoder", IMAGES: "image_encoder"}
    parts = {name: part for kind in kinds for name, part in getattr(siglip, encoders[kind]).params.items()}
    own = {"config": config_checksum(siglip)} | weights_checksums(parts)
    then = made.get("weights")
    then = {"config": made.get("config")} | (then if isinstance(then, dict) else {})
    for what in own:
        if own[what] != then.get(what):
            expected, found = (f"{name or 'the embedded model'}" for name in (made.get("name"), name))
            raise ValueError(
                f"{collection.directory}: expected the model that made it, {expected}, found {found}, of another {what}"
                f" ({str(then.get(what)):.16}, {own[what]:.16}); name the other, or embed again"
            )
    return siglip


def open_source_of(collection: Collection) -> Items:
    """Opens the images that a collection was made of.

    Raises:
      OSError, ValueError: if they are not there any more, or it was made of texts.
    """
    manifest = collection.manifest
    if manifest.items["kind"] != IMAGES:
        raise ValueError(f"{collection.directory}: expected embeddings of images, found those of {TEXTS}")
    try:
        return open_items(manifest.source, **manifest.items["options"])
    except (OSError, ValueError) as error:
        missing = f"the images that {collection.directory} was made of cannot be opened"
        raise ValueError(f"{missing}: {error}; put them back where they were") from error


def search(
    siglip: Siglip,
    collection: Collection,
    query: Any,
    *,
    top_k: int = 10,
    kind: str = TEXTS,
    approximate: Approximate | None = None,
) -> list[Match]:
    """Returns the items nearest to a query, nearest first; equally near ones in the order of the items.

    Args:
      query: a string, or an image as `Siglip.encode_image` takes it.
      kind: `TEXTS` or `IMAGES`: what the query is.
      approximate: an index to search instead of all embeddings.

    Raises:
      OSError, ValueError: if an image cannot be read, or the collection is empty.
    """
    check_count("top_k", top_k)
    if not len(collection):
        raise ValueError(f"{collection.directory}: expected embeddings to search, found none")
    embeds = siglip.encode_text([query]) if kind == TEXTS else siglip.encode_image([query])
    if approximate is not None:
        scores, rows = approximate.search(embeds[0], top_k)
    else:
        parts = map(collection.embeddings, range(collection.manifest.parts))
        scores, rows = (found[0] for found in nearest(embeds, parts, top_k))
    chances = [None] * len(rows)
    if kind != collection.manifest.items["kind"]:
        chances = probabilities(scores[None], siglip.temperature, siglip.logit_bias)[0].tolist()
    matches = []
    for rank, (row, score, chance) in enumerate(zip(rows.tolist(), scores.tolist(), chances, strict=True), 1):
        part, offset = collection.place(row)
        matches.append(Match(rank, collection.ids(part)[offset], score, chance, collection.position(row)))
    return matches
