"""Retrieval in both directions, block by block: the rank of each text's image, and of the best of each image's texts.

Ties count against the model: an answer that is as near as the right one counts as nearer. Identical embeddings thus
find nothing, whereas an argsort would find whatever is first.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siglip_jax.evaluation.neighbours import check_finite

BLOCK = 2**22  # similarities in memory at a time: 16 MiB
KS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Ranks of the right answers: the number of wrong answers that are at least as near, 0 for the first place.

    Attributes:
      text_to_image: rank of each text's own image among all images, (texts,).
      image_to_text: rank of the nearest of an image's own texts among the texts of all other images, (images,); -1 for
        an image without texts.
    """

    text_to_image: Int[np.ndarray, " texts"]
    image_to_text: Int[np.ndarray, " images"]

    def recalls(self, ks: Sequence[int] = KS) -> dict[str, float]:
        """Returns the recall at each k, from 0 to 1: `text_to_image_r1`, `image_to_text_r1` and so on.

        Args:
          ks: the values of k.

        Returns:
          Name to share of the texts, or of the images that have texts, whose rank is below k.
        """
        asked = {"text_to_image": self.text_to_image, "image_to_text": self.image_to_text[self.image_to_text >= 0]}
        return {f"{way}_r{k}": float((ranks < k).mean()) for way, ranks in asked.items() for k in ks}


def retrieval_ranks(
    image_embeds: Float[np.ndarray, "images embed"],
    text_embeds: Float[np.ndarray, "texts embed"],
    owners: Int[np.ndarray, " owners"],
    *,
    block_size: int | None = None,
) -> Ranks:
    """Ranks the right answers of every query in both directions, one block of queries at a time.

    Args:
      image_embeds: L2-normalised embeddings of the images, (images, E).
      text_embeds: L2-normalised embeddings of the texts, (texts, E).
      owners: index of each text's image, (texts,); an image may have several texts, or none.
      block_size: number of queries that are compared with all answers at a time; None: as many as yield `BLOCK`
        similarities.

    Raises:
      ValueError: if there are no images or texts, an owner is not an image, or an embedding is not finite.
    """
    if not len(image_embeds) or not len(text_embeds):
        raise ValueError(
            f"images and texts must be one or more, got {len(image_embeds)} images and {len(text_embeds)} texts"
        )
    if len(owners) != len(text_embeds) or owners.min() < 0 or owners.max() >= len(image_embeds):
        raise ValueError(
            f"owners must be {len(text_embeds)} indices from 0 to {len(image_embeds) - 1}, one for each text, "
            f"got {len(owners)} from {owners.min(initial=0)} to {owners.max(initial=0)}"
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
    """Returns how many answers of other groups are at least as near as the query's nearest own; -1 without own ones."""
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
