"""Retrieval against brute force: several texts an image, ties, images without texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.evaluation import retrieval
from siglip_jax.evaluation.retrieval import retrieval_ranks


def by_hand(images, texts, owners):
    """One query at a time, one answer at a time."""
    products = texts @ images.T
    text_to_image = [
        sum(row[j] >= row[own] for j in range(len(images)) if j != own)
        for row, own in zip(products, owners, strict=True)
    ]
    image_to_text = []
    for i in range(len(images)):
        own = [products[t, i] for t in range(len(texts)) if owners[t] == i]
        others = [products[t, i] for t in range(len(texts)) if owners[t] != i]
        image_to_text.append(sum(other >= max(own) for other in others) if own else -1)
    return text_to_image, image_to_text


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 1, 4, 7, 1000])
@pytest.mark.parametrize("exact", [True, False])
def test_equal_to_brute_force(block_size, exact):
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.concatenate([np.repeat(np.arange(10), 3), np.arange(11, 20)]))  # 10 has no text
    shape = (20, 6), (len(owners), 6)
    draw = (lambda s: rng.integers(-2, 3, s)) if exact else (lambda s: rng.normal(size=s))
    images, texts = (draw(s).astype(np.float32) for s in shape)
    texts += 1.0 * images[owners]
    found = retrieval_ranks(images, texts, owners, block_size=block_size)
    text_to_image, image_to_text = by_hand(images, texts, owners)
    assert found.text_to_image.tolist() == text_to_image
    assert found.image_to_text.tolist() == image_to_text
    assert found.image_to_text[10] == -1
    recalls = found.recalls((1, 5))
    assert recalls["text_to_image_r5"] == np.mean(np.array(text_to_image) < 5)
    assert recalls["image_to_text_r1"] == sum(rank == 0 for rank in image_to_text) / 19
    assert 0 < recalls["text_to_image_r1"] < 1


def test_known_answer():
    """An image is found by any of its texts; each text looks for its own image."""
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[1, 0, 0], [0, 0.6, 0.8], [0, 1, 0], [0, 0.1, 0.9]], np.float32)
    found = retrieval_ranks(images, texts, np.array([0, 1, 1, 2]))
    assert found.text_to_image.tolist() == [0, 1, 0, 0]
    assert found.image_to_text.tolist() == [0, 0, 0]


def test_embeddings_that_are_all_alike_find_nothing():
    same = np.ones((4, 3), np.float32)
    found = retrieval_ranks(same, same, np.arange(4)).recalls((1, 4))
    assert found == {"text_to_image_r1": 0, "text_to_image_r4": 1, "image_to_text_r1": 0, "image_to_text_r4": 1}


def test_nothing_as_large_as_all_pairs_is_held():
    images, texts = (jax.ShapeDtypeStruct((n, 64), jnp.float32) for n in (16, 50_000))
    groups = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (16, 50_000))
    compiled = retrieval._ranks_of_block.lower(images, next(groups), texts, next(groups)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 16 * 50_000 * 4


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ([0], "owners must be 2 indices from 0 to 2, one for each text, got 1 from 0 to 0"),
        ([0, 3], "owners must be 2 indices from 0 to 2, one for each text, got 2 from 0 to 3"),
        ([-1, 0], "owners must be 2 indices from 0 to 2, one for each text, got 2 from -1 to 0"),
    ],
)
def test_owners_that_are_no_images(owners, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:2], np.array(owners))


def test_nan_is_refused_for_it_would_be_perfect():
    bad = np.full((2, 3), np.nan, np.float32)
    with pytest.raises(ValueError, match="image embeddings must be finite, got NaN or infinity in 2 of 2 rows"):
        retrieval_ranks(bad, bad, np.arange(2))
    with pytest.raises(ValueError, match="images and texts must be one or more, got 0 images and 2 texts"):
        retrieval_ranks(bad[:0], bad, np.arange(2))
