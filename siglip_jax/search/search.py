"""Search: the items of a collection that are nearest to a text or an image."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from siglip_jax._checks import check_count
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.labels import probabilities
from siglip_jax.inference.load import load
from siglip_jax.search.approximate import Approximate
from siglip_jax.search.collection import Collection
from siglip_jax.search.items import IMAGES, TEXTS, Items, open_items
from siglip_jax.search.manifest import config_checksum, preparation, weights_checksums
from siglip_jax.search.nearest import nearest


class Match(NamedTuple):
    """An item that a search found.

    Attributes:
      rank: place in the result, from 1 for the nearest.
      id: name of the item, as in "cats/one.png" or "queries.txt:12".
      score: cosine of the item and the query, from -1 to 1.
      probability: sigmoid probability that the text describes the image, from 0 to 1; None if query and items are both
        texts or both images, which the model's temperature and bias do not apply to.
      position: index of the item in its source, which counts unreadable items too.
      metadata: values of the item by the name of the column: "text" in a collection of texts; {} if there are none.

    Example:
      >>> match = Match(rank=1, id="cats/one.png", score=0.25, probability=0.75, position=0)
      >>> f"{match.rank}. {match.id} {match.score:.2f}"
      '1. cats/one.png 0.25'
    """

    rank: int
    id: str
    score: float
    probability: float | None
    position: int
    metadata: Mapping[str, Any] = MappingProxyType({})


def load_for(
    collection: Collection, name_or_path: str | None = None, *, kinds: Sequence[str] = (TEXTS, IMAGES)
) -> Siglip:
    """Loads the model that made a collection, with the same dtype and quantization.

    Embeddings of different models do not share a space, so the checksums of the configuration and the weights are
    compared with those in the manifest.

    Args:
      collection: collection to search.
      name_or_path: Hub name, directory or weights file of the model; None: the one that the manifest names.
      kinds: kinds of the queries to come, "texts", "images" or both; only the towers for these are read and compared.

    Returns:
      The model, ready to encode queries.

    Raises:
      OSError: if the model does not exist.
      ValueError: if it is another model than the one that made the collection, or its processor prepares the queries in
        another way.

    Example:
      >>> import siglip_jax, tempfile
      >>> from siglip_jax.search import embed, open_collection
      >>> with tempfile.TemporaryDirectory() as out:
      ...     _ = embed(siglip_jax.assets.EXAMPLES / "labels.txt", out)
      ...     siglip = load_for(open_collection(out), kinds=["texts"])
      >>> siglip.encode_text("a horse").shape
      (1, 192)
    """
    made = collection.manifest.model
    name = made.get("name") if name_or_path is None else name_or_path
    siglip = load(name, dtype=made.get("dtype"), quantization=made.get("quantization"))
    encoders = {TEXTS: "text_encoder", IMAGES: "image_encoder"}
    params = {name: subtree for kind in kinds for name, subtree in getattr(siglip, encoders[kind]).params.items()}
    own = {"config": config_checksum(siglip)} | weights_checksums(params)
    recorded = made.get("weights")
    recorded = {"config": made.get("config")} | (recorded if isinstance(recorded, dict) else {})
    for what in own:
        if own[what] != recorded.get(what):
            expected, found = (f"{name or 'the bundled model'}" for name in (made.get("name"), name))
            raise ValueError(
                f"{collection.directory}: the model must be the one that made the collection, {expected} with {what}"
                f" {str(recorded.get(what)):.16}, got {found} with {what} {own[what]:.16}; give the former, or embed"
                " again"
            )
    prepared = preparation(siglip)
    for kind in kinds:
        name = {TEXTS: "text", IMAGES: "image"}[kind]
        for field, value in prepared[name].items():
            before = (collection.manifest.preprocessing.get(name) or {}).get(field)
            if value != before:
                raise ValueError(
                    f"{collection.directory}: {name} {field} of the processor must be {before!s:.16}, as when the"
                    f" collection was made, got {value!s:.16}; restore the files of the processor, or embed again"
                )
    return siglip


def open_source_of(collection: Collection) -> Items:
    """Opens the images that a collection was made of.

    Args:
      collection: collection of embeddings of images.

    Returns:
      The images, in the order of the positions that `Match` carries.

    Raises:
      ValueError: if the collection is one of texts, or its images are no longer at their path.
    """
    manifest = collection.manifest
    if manifest.items["kind"] != IMAGES:
        raise ValueError(f"{collection.directory}: the collection must be of images, got one of {TEXTS}")
    try:
        return open_items(manifest.source, **manifest.items["options"])
    except (OSError, ValueError) as error:
        missing = f"{collection.directory}: the images of the collection cannot be opened"
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
    """Returns the items of a collection that are nearest to a query, nearest first.

    The search compares the query with every embedding, in blocks on the device, unless an index is given. Ties are
    broken by position.

    Args:
      siglip: model that made the collection, as from `load_for`.
      collection: collection to search.
      query: a string, or an image as `Siglip.encode_image` takes it: a path, URL, bytes, PIL image or array.
      top_k: number of items to return; the whole collection if it has fewer.
      kind: "texts" or "images", the kind of the query.
      approximate: index of the collection to search, as from `open_index`; None: exact search.

    Returns:
      At most `top_k` items.

    Raises:
      OSError: if the query is an image that does not exist.
      ValueError: if the query is an image that cannot be read, `top_k` is less than 1, or the collection is empty.

    Example:
      >>> import siglip_jax, tempfile
      >>> from siglip_jax.search import embed, open_collection
      >>> with tempfile.TemporaryDirectory() as out:
      ...     siglip = siglip_jax.load()
      ...     _ = embed(siglip_jax.assets.EXAMPLES / "labels.txt", out, siglip)
      ...     horse = siglip_jax.assets.EXAMPLES / "horse.png"
      ...     matches = search(siglip, open_collection(out), horse, kind="images", top_k=3)
      >>> len(matches), matches[0].rank, matches[0].id
      (3, 1, 'labels.txt:32')
    """
    check_count("top_k", top_k)
    if not len(collection):
        raise ValueError(f"{collection.directory}: the collection must have an embedding to search, got none")
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
        metadata = {name: values[offset] for name, values in collection.metadata(part).items()}
        matches.append(Match(rank, collection.ids(part)[offset], score, chance, collection.position(row), metadata))
    return matches
