"""Retrieval both ways, block by block: does a text find its image, and an image one of its texts?

Ties are taken against the model: what is as near as the right answer counts as nearer. Embeddings that are all alike
then find nothing, where an argsort would find whatever stands first.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siglip_jax.evaluation.neighbours import check_finite

BLOCK = 2**22  # similarities held at once: 16 MiB
KS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """How many wrong answers are at least as near as the right one: 0 is the first place.

    Attributes:
      text_to_image: of each text's own image among all images.
      image_to_text: of the nearest of an image's own texts among the texts of all others; -1 where it has none.
    """

    text_to_image: Int[np.ndarray, " texts"]
    image_to_text: Int[np.ndarray, " images"]

    def recalls(self, ks: Sequence[int] = KS) -> dict[str, float]:
        """Returns `text_to_image_r1`, `image_to_text_r1` and so on, as shares of the texts, and of the images that
        have texts."""
        asked = {"text_to_image": self.text_to_image, "image_to_text": self.image_to_text[self.image_to_text >= 0]}
        return {f"{way}_r{k}": float((ranks < k).mean()) for way, ranks in asked.items() for k in ks}


def retrieval_ranks(
    image_embeds: Float[np.ndarray, "images embed"],
    text_embeds: Float[np.ndarray, "texts embed"],
    owners: Int[np.ndarray, " owners"],
    *,
    block_size: int | None = None,
) -> Ranks:
    """Ranks the right answers of every query, with no more than a block of queries compared at a time.

    Args:
      image_embeds, text_embeds: L2-normalised.
      owners: the number of each text's image; an image may have several texts, or none.
      block_size: queries compared with all answers at once; by default as many as give `BLOCK` similarities.

    Raises:
      ValueError: if there is nothing to compare, an owner is not an image, or an embedding is not finite.
    """
    if not len(image_embeds) or not len(text_embeds):
        raise ValueError(f"retrieval needs images and texts, got {len(image_embeds)} images, {len(text_embeds)} texts")
    if len(owners) != len(text_embeds) or owners.min() < 0 or owners.max() >= len(image_embeds):
        raise ValueError(
            f"owners must give each of {len(text_embeds)} texts one of {len(image_embeds)} images, got {len(owners)}"
            f" from {owners.min(initial=0)} to {owners.max(initial=0)}"
        )
    check_finite(image_embeds, "image embeddings")
    check_finite(text_embeds, "text embeddings")
    owners = owners.astype(np.int32)
    images = np.arange(len(image_embeds), dtype=np.int32)
    return Ranks(
        _ranks(text_embeds, owners, image_embeds, images, block_size),
        _ranks(image_embeds, images, text_embeds, owners, block_size),
    )


def _ranks(
    queries: Float[np.ndarray, "n embed"],
    query_groups: Int[np.ndarray, " n"],
    answers: Float[np.ndarray, "m embed"],
    answer_groups: Int[np.ndarray, " m"],
    block_size: int | None,
) -> Int[np.ndarray, " n"]:
    """Returns how many answers of other groups are at least as near as the nearest of the query's own; -1 for none."""
    rows = min(block_size or max(1, BLOCK // len(answers)), len(queries))
    fixed = jnp.asarray(answers, jnp.float32), jnp.asarray(answer_groups)
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), rows):
        stop = min(start + rows, len(queries))
        block = np.zeros((rows, queries.shape[1]), np.float32)  # always the same shape: compiled once
        groups = np.full(rows, -1, np.int32)
        block[: stop - start], groups[: stop - start] = queries[start:stop], query_groups[start:stop]
        ranks[start:stop] = np.asarray(_ranks_of_block(jnp.asarray(block), jnp.asarray(groups), *fixed))[: stop - start]
    return ranks


@jax.jit
def _ranks_of_block(
    queries: Float[Array, "rows embed"],
    query_groups: Int[Array, " rows"],
    answers: Float[Array, "m embed"],
    answer_groups: Int[Array, " m"],
) -> Int[Array, " rows"]:
    similarities = jnp.matmul(queries, answers.T, precision="highest")
    own = query_groups[:, None] == answer_groups[None, :]
    best = jnp.max(jnp.where(own, similarities, -jnp.inf), axis=1, keepdims=True)
    ahead = jnp.sum((similarities >= best) & ~own, axis=1, dtype=jnp.int32)
    return jnp.where(own.any(axis=1), ahead, -1)
