"""Collections of embeddings: made by `embed`, searched exactly or by an index."""

from siglip_jax.search.approximate import Approximate, open_index
from siglip_jax.search.collection import Collection, open_collection
from siglip_jax.search.embed import EmbedResult, embed
from siglip_jax.search.items import Items, open_items
from siglip_jax.search.making import embed_collection
from siglip_jax.search.nearest import nearest
from siglip_jax.search.search import Match, load_for, search
from siglip_jax.search.verify import verify_collection

__all__ = [
    "Approximate",
    "Collection",
    "EmbedResult",
    "Items",
    "Match",
    "embed",
    "embed_collection",
    "load_for",
    "nearest",
    "open_collection",
    "open_index",
    "open_items",
    "search",
    "verify_collection",
]
