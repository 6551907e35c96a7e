"""The engine: its inputs, the order of its results, and the number of compilations."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from siglip_jax._checks import check_count
from siglip_jax.inference import Siglip, load
from siglip_jax.inference.labels import check_labels, fill_template, probabilities, rank
from tests.support.tiny_checkpoint import picture, write_checkpoint

TEXTS = ["a cat", "two dogs on the beach", "", "a drawing of a house " * 40]


def direct(siglip: Siglip, images, texts):
    """Returns what the engine must compute: the processor, then one application of the module."""
    inputs = siglip.processor(text=texts, images=[PIL.Image.fromarray(image) for image in images])
    return siglip.model.apply({"params": siglip.params}, **{k: jnp.asarray(v) for k, v in inputs.items()})


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [picture(seed, (30 + 3 * seed, 40)) for seed in range(11)]


@pytest.mark.filterwarnings("ignore:text has .* is cut")
@pytest.mark.slow
def test_embeddings_and_probabilities_are_those_of_the_module(shared_siglip, pictures):
    out = direct(shared_siglip, pictures, TEXTS)
    image_embeds, text_embeds = shared_siglip.encode_image(pictures), shared_siglip.encode_text(TEXTS)
    np.testing.assert_allclose(image_embeds, out.image_embeds, atol=5e-7)
    np.testing.assert_allclose(text_embeds, out.text_embeds, atol=5e-7)
    assert image_embeds.dtype == text_embeds.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(image_embeds, axis=-1), 1, atol=5e-7)
    similarity = shared_siglip.similarity(pictures, TEXTS)
    np.testing.assert_allclose(similarity, jax.nn.sigmoid(out.logits_per_image), rtol=3e-6)
    assert similarity.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9])
def test_padding_changes_no_result(shared_siglip, pictures, count):
    """A row is the same to the bit whatever rows share its batch, and to rounding in a batch of another size."""
    few = shared_siglip.encode_image(pictures[:count])
    tail = count % 8 or 8
    padded_to = 1 << (tail - 1).bit_length()
    mates = [np.full((9, 9, 3), 255, np.uint8)] * (padded_to - tail)
    np.testing.assert_array_equal(few, shared_siglip.encode_image(pictures[:count] + mates)[:count])
    np.testing.assert_allclose(few, shared_siglip.encode_image(pictures, batch_size=11)[:count], atol=5e-7)


@pytest.mark.filterwarnings("ignore:text has .* is cut")
@pytest.mark.slow
def test_texts_are_padded_and_truncated_to_the_models_length(tmp_path):
    siglip = load(write_checkpoint(tmp_path, text_length=16))
    long = "a photo of two dogs on the beach and a red car and a house and a tree"
    np.testing.assert_array_equal(*siglip.encode_text([long, long + " and a cat"]))
    assert np.abs(np.subtract(*siglip.encode_text(["a cat", "a dog"]))).max() > 1e-3


def test_every_kind_of_image(shared_siglip, pictures, tmp_path):
    pil = PIL.Image.fromarray(pictures[0])
    path = tmp_path / "a.png"
    pil.save(path)
    buffer = io.BytesIO()
    pil.save(buffer, "PNG")
    expected = shared_siglip.encode_image([pil])
    for one in (pil, path, str(path), buffer.getvalue(), pictures[0], jnp.asarray(pictures[0])):
        single = shared_siglip.encode_image(one)
        assert single.shape == (1, 32)
        np.testing.assert_array_equal(single, expected)
        np.testing.assert_array_equal(shared_siglip.encode_image([one]), expected)
    batch = np.stack([pictures[0]] * 3)
    np.testing.assert_allclose(shared_siglip.encode_image(batch)[2:], expected, atol=5e-7)
    np.testing.assert_array_equal(shared_siglip.encode_image(np.array([str(path)])), expected)


def test_one_string_is_one_text(shared_siglip):
    np.testing.assert_array_equal(shared_siglip.encode_text("a cat"), shared_siglip.encode_text(["a cat"]))
    assert shared_siglip.similarity(picture(0), "a cat").shape == (1, 1)
    assert shared_siglip.classify(picture(0), "a cat") == shared_siglip.classify(picture(0), ["a cat"])


def test_nothing_in_nothing_out(shared_siglip):
    assert shared_siglip.encode_image([]).shape == shared_siglip.encode_text([]).shape == (0, 32)
    assert shared_siglip.similarity([], ["a cat"]).shape == (0, 1)
    assert shared_siglip.classify([], ["a cat"]) == []


@pytest.mark.slow
def test_a_generator_is_streamed_in_order(siglip, pictures):
    """Images are read from the generator only shortly before they are needed, and results keep their order."""
    drawn: list[int] = []
    done_at_draw: list[int] = []
    done = 0
    inner = siglip._encode_pixels

    def counting(params, batch):
        nonlocal done
        done += len(batch)
        return inner(params, batch)

    object.__setattr__(siglip, "_encode_pixels", counting)

    def endless():
        for i in range(100):
            drawn.append(i)
            done_at_draw.append(done)
            yield pictures[i % 7]

    embeds = siglip.encode_image(endless(), batch_size=4)
    assert drawn == list(range(100))
    in_flight = np.array(drawn) - np.array(done_at_draw)
    assert in_flight.max() <= 4 * 4 + 32, "read too far ahead of the device"
    assert done_at_draw[-1] > 40
    np.testing.assert_allclose(embeds[7:98], np.concatenate([embeds[:7]] * 13), atol=5e-7)
    assert np.abs(embeds[0] - embeds[1]).max() > 1e-3


def test_an_error_of_the_generator_is_the_users_to_see(shared_siglip):
    def broken():
        yield picture(0)
        raise RuntimeError("the database went away")

    with pytest.raises(RuntimeError, match="the database went away"):
        shared_siglip.encode_image(broken())


def test_unreadable_images(shared_siglip, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    mixed = [picture(0), tmp_path / "broken.png", picture(1), tmp_path / "missing.png"]
    with pytest.raises(ValueError, match=r"broken\.png"):
        shared_siglip.encode_image(mixed)
    told: list[tuple[int, str]] = []
    embeds = shared_siglip.encode_image(mixed, on_unreadable=lambda i, error: told.append((i, type(error).__name__)))
    assert told == [(1, "ValueError"), (3, "FileNotFoundError")]
    np.testing.assert_array_equal(np.isnan(embeds).any(-1), [False, True, False, True])
    np.testing.assert_array_equal(embeds[::2], shared_siglip.encode_image(mixed[::2]))


@pytest.mark.slow
def test_few_compilations(siglip, pictures):
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11):
        siglip.encode_image(pictures[:count], batch_size=8)
        siglip.encode_text(["a cat"] * count, batch_size=8)
    assert siglip._encode_pixels._cache_size() == 4  # 1, 2, 4, 8
    assert siglip._encode_tokens._cache_size() == 4
    siglip.encode_image(pictures[:6], batch_size=6)
    assert siglip._encode_pixels._cache_size() == 5


@pytest.mark.slow
def test_the_same_labels_are_encoded_once(siglip):
    calls: list[int] = []
    inner = siglip._encode_tokens
    object.__setattr__(siglip, "_encode_tokens", lambda *a: calls.append(1) or inner(*a))
    first = siglip.classify(picture(0), ["a cat", "a dog"])
    assert siglip.classify(picture(0), ("a cat", "a dog")) == first
    assert len(calls) == 1
    siglip.classify(picture(0), ["a dog", "a cat"])
    assert len(calls) == 2
    for i in range(20):
        siglip.similarity(picture(0), [f"label {i}"])
    assert len(siglip._text_cache) == 8


def test_classify_ranks(shared_siglip, pictures):
    labels = ["a cat", "a dog", "a house", "a cat"]
    scores = shared_siglip.similarity(pictures[:3], labels)
    ranked = shared_siglip.classify(pictures[:3], labels)
    assert [[entry["score"] for entry in row] for row in ranked] == (-np.sort(-scores)).tolist()
    for row, score in zip(ranked, scores, strict=True):
        for entry in row:
            assert entry["score"] == score[labels.index(entry["label"])]
    one = shared_siglip.classify(pictures[0], labels)
    assert [e["label"] for e in one] == [e["label"] for e in ranked[0]]
    assert shared_siglip.classify(pictures[0], labels, top_k=2) == one[:2]
    assert shared_siglip.classify(pictures[0], labels, top_k=99) == one
    filled = shared_siglip.classify(pictures[0], ["cat"], hypothesis_template="a photo of a {}!")
    assert filled == [
        {"label": "cat", "score": shared_siglip.similarity(pictures[0], ["a photo of a cat!"]).item()},
    ]


@pytest.mark.slow
def test_reduced_precision(checkpoint, shared_siglip, pictures):
    half = load(checkpoint, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half.params["vision_model"])} == {jnp.dtype(jnp.bfloat16)}
    assert half.params["logit_scale"].dtype == np.float32
    embeds = half.encode_image(pictures)
    assert embeds.dtype == np.float32
    assert 0 < np.abs(embeds - shared_siglip.encode_image(pictures)).max() < 0.02


class TestProbabilities:
    def test_equal_the_sigmoid_in_double_precision(self):
        cosines = np.linspace(-1, 1, 101, dtype=np.float32)[None]
        logits = np.float64(cosines) * 117.33 - 12.93
        np.testing.assert_allclose(
            probabilities(cosines, 117.33, -12.93), 1 / (1 + np.exp(-logits)), rtol=1e-5, atol=1e-38
        )

    def test_extremes_do_not_overflow(self):
        with np.errstate(over="raise", invalid="raise"):
            extreme = probabilities(np.array([[-1, 0, 1]], np.float32), 1e4, 0.0)
        np.testing.assert_array_equal(extreme, [[0, 0.5, 1]])


def test_rank_keeps_the_order_of_equal_scores():
    assert [e["label"] for e in rank(np.float32([0.5, 0.9, 0.5, 0.9]), ("a", "b", "c", "d"))] == ["b", "d", "a", "c"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda s: check_labels([]), "at least one label, got none; give"),
        (lambda s: check_labels(["a", " "]), "must not be blank, got ' ' at position 1"),
        (lambda s: check_labels(["a", 3]), "must be strings, got int 3 at position 1"),
        (lambda s: check_labels(3), "must be a string or an iterable of strings, got int"),
        (lambda s: fill_template("a photo", ("a",)), "must have {} where the label goes, got 'a photo'; write"),
        (lambda s: check_count("top_k", 0), "top_k must be an integer of at least 1 or None, got 0"),
        (lambda s: check_count("top_k", True), "got True"),
        (lambda s: s.encode_image([picture(0)], batch_size=-1), "batch_size must be an integer of at least 1"),
        (lambda s: s.encode_text(["a"], batch_size=0), "batch_size must be an integer of at least 1"),
        (lambda s: s.classify(picture(0), ["a"], top_k=0), "top_k must be"),
    ],
)
def test_mistakes_are_reported_in_one_line(shared_siglip, wrong, words):
    with pytest.raises(ValueError) as caught:
        wrong(shared_siglip)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_module_says_how_to_turn_an_image(shared_siglip):
    with pytest.raises(ValueError, match="transpose"):
        shared_siglip.model.apply(
            {"params": shared_siglip.params}, jnp.zeros((2, 3, 32, 32)), method="get_image_features"
        )


def test_the_module_refuses_too_many_tokens(shared_siglip):
    with pytest.raises(ValueError, match=r"65.*64|64.*65"):
        shared_siglip.model.apply(
            {"params": shared_siglip.params}, jnp.ones((1, 65), jnp.int32), method="get_text_features"
        )


def test_load_takes_a_weights_file(checkpoint, shared_siglip):
    siglip = load(Path(checkpoint) / "model.safetensors")
    np.testing.assert_array_equal(siglip.encode_text("a cat"), shared_siglip.encode_text("a cat"))


def test_the_repr_says_model_dtype_and_device_and_reads_no_weights(checkpoint):
    siglip = load(checkpoint, dtype="bfloat16")
    assert repr(siglip) == (
        "Siglip(model=SiglipModel(image_size=32, patch_size=8, width=32, layers=2), dtype=bfloat16, device=cpu)"
    )
    assert siglip._weights._placed == {}
