"""The training of the embedded model, on a few synthetic pictures."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.models import SiglipModel
from siglip_jax.training import embedded_model as em
from siglip_jax.training.embedded_augmentation import affine_coefficients, restyle, warp
from siglip_jax.training.embedded_batches import Batch, Batches, texts_of
from siglip_jax.training.embedded_vocabulary import canonical, corpus, write_vocabulary
from siglip_jax.training.pictogram_set import PROMPTS, Pictograms

NAMES = ["red disc", "green disc", "blue disc", "red bar", "green bar", "blue bar"]
TINY = em.Recipe(
    steps=30,
    pictures=4,
    texts=6,
    warmup=3,
    vision_width=64,
    vision_depth=1,
    text_width=64,
    text_depth=1,
    positions=12,
)


def pictograms() -> Pictograms:
    """Two pictures of each name, one shifted."""
    y, x = np.mgrid[:64, :64]
    images, rows = [], []
    for name in NAMES:
        colour, shape = name.split()
        for shift in (0, 4):
            inside = (x - 30 - shift) ** 2 + (y - 32) ** 2 < 400 if shape == "disc" else abs(y - 32 - shift) < 8
            image = np.zeros((64, 64, 4), np.uint8)
            image[inside] = [*(255 if colour == c else 0 for c in ("red", "green", "blue")), 255]
            images.append(image)
            rows.append({"caption": name, "tags": [colour, shape], "group": "objects", "source": f"v{shift}"})
    return Pictograms(np.stack(images), rows)


def tokenize(texts: list[str]) -> np.ndarray:
    """Characters as ids, enough for a test."""
    out = np.ones((len(texts), TINY.positions), np.int32)
    for row, text in zip(out, texts, strict=True):
        ids = [2 + ord(c) % 60 for c in canonical(text)][: TINY.positions - 1]
        row[: len(ids)] = ids
    return out


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(pictograms(), tokenize, TINY.pictures, TINY.texts, seed=0)


@pytest.fixture(scope="module")
def model() -> SiglipModel:
    return SiglipModel(TINY.config(64))


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Compiling takes most of the time: what depends on the model and the recipe alone is made once for all tests."""
    make_optimizer = functools.cache(em.make_optimizer)
    initial_state = functools.cache(em.initial_state)

    def fresh_state(model, recipe, optimizer):
        return jax.tree.map(jnp.copy, initial_state(model, recipe, optimizer))  # a step gives its state away

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(em, "make_optimizer", make_optimizer)
        patch.setattr(em, "make_step", functools.cache(em.make_step))
        patch.setattr(em, "initial_state", fresh_state)
        yield


@pytest.fixture
def optax_types():
    """Optax raises a float to an integer count, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("optax_types")
class TestTraining:
    def test_loss_falls_and_resuming_equals_not_stopping_bit_for_bit(self, tmp_path, batches, model):
        whole = em.train(model, batches, TINY, tmp_path / "whole", log_every=5, save_every=10)
        log = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log] == [5, 10, 15, 20, 25, 30]
        assert log[-1]["loss"] < 0.75 * log[0]["loss"]

        # Stops at 17, five steps after its last checkpoint but one; the log of 15 is written again.
        em.train(model, batches, TINY, tmp_path / "parts", log_every=5, save_every=10, stop_at=17)
        parts = em.train(model, batches, TINY, tmp_path / "parts", log_every=5, save_every=10)
        assert jax.tree.structure(whole) == jax.tree.structure(parts)
        jax.tree.map(np.testing.assert_array_equal, whole, parts)
        assert int(parts["step"]) == TINY.steps

    def test_a_checkpoint_of_another_recipe_is_refused(self, tmp_path, batches, model):
        em.train(model, batches, TINY, tmp_path, stop_at=1)
        with pytest.raises(ValueError, match="found another .*'seed': \\(0, 1\\).*remove it") as caught:
            em.train(model, batches, dataclasses.replace(TINY, seed=1), tmp_path, stop_at=1)
        assert "\n" not in str(caught.value)

    def test_the_log_forgets_what_comes_after_the_checkpoint(self, tmp_path, batches, model):
        em.train(model, batches, TINY, tmp_path, log_every=1, save_every=2, stop_at=2)
        with open(tmp_path / "log.jsonl", "a") as log:
            print(json.dumps({"step": 3, "loss": 0.0, "seconds": 0.0}), file=log)  # a run killed after step 3
        em.train(model, batches, TINY, tmp_path, log_every=1, stop_at=4)
        steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert steps == [1, 2, 3, 4]

    def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_no_checkpoint(
        self, tmp_path, batches, model, monkeypatch
    ):
        state = em.initial_state(model, TINY, em.make_optimizer(TINY))
        state["params"]["logit_bias"] = jnp.full_like(state["params"]["logit_bias"], jnp.nan)
        monkeypatch.setattr(em, "initial_state", lambda *_: state)
        with pytest.raises(ValueError, match="no longer finite at step 1"):
            em.train(model, batches, TINY, tmp_path, log_every=1, save_every=1)
        assert not (tmp_path / "state.npz").exists()


class TestStep:
    def test_learning_rate_warms_up_and_ends_at_its_fraction(self):
        rate = em.learning_rate(em.Recipe(steps=1000, warmup=100, final_rate=0.02), 0.5)
        np.testing.assert_allclose([rate(0), rate(50), rate(100), rate(550), rate(1000)], [0, 0.25, 0.5, 0.255, 0.01])

    def test_muon_takes_the_dense_kernels_and_only_them(self, model):
        params = em.initial_state(model, TINY, em.make_optimizer(TINY))["params"]
        chosen = em._muon_dimensions(params)
        leaf = (type(None), em.optax.contrib.MuonDimensionNumbers)
        flat = jax.tree_util.tree_leaves_with_path(chosen, is_leaf=lambda x: isinstance(x, leaf))
        muon = {jax.tree_util.keystr(path) for path, choice in flat if choice is not None}
        assert "['vision_model']['encoder']['layers_0']['mlp']['fc1']['kernel']" in muon
        assert "['text_model']['encoder']['layers_0']['self_attn']['q_proj']['kernel']" in muon
        assert all(name.endswith("['kernel']") and "patch_embedding" not in name for name in muon)

    @pytest.mark.usefixtures("optax_types")
    def test_the_average_follows_the_weights(self, batches, model):
        optimizer = em.make_optimizer(TINY)
        state = em.initial_state(model, TINY, optimizer)
        start = jax.tree.map(np.asarray, state["params"])
        step = em.make_step(model, TINY, optimizer)
        expected = start
        for i in range(3):
            batch = batches(i)
            state, _ = step(state, batch.pictures, batch.input_ids)
            decay = (i + 1) / (i + 11)
            expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), expected, state["params"])
        assert not np.array_equal(start["logit_bias"], state["params"]["logit_bias"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state["average"], expected)

    def test_temperature_and_bias_start_where_the_loss_is_small(self, model):
        params = em.initial_state(model, TINY, em.make_optimizer(TINY))["params"]
        np.testing.assert_allclose(np.exp(params["logit_scale"]), [10.0], rtol=1e-6)
        np.testing.assert_allclose(params["logit_bias"], [-np.log(5)], rtol=1e-6)

    def test_all_but_the_optimizer_is_strict_about_types(self, batches, model):
        def loss(params, pictures, ids):
            pixels = restyle(jax.random.key(0), pictures)
            out = model.apply({"params": params}, input_ids=ids, pixel_values=pixels)
            return em.sigmoid_loss_of_logits(out.logits_per_image, jnp.eye(len(pixels), len(ids), dtype=bool))

        params = em.initial_state(model, TINY, em.make_optimizer(TINY))["params"]
        assert jax.eval_shape(loss, params, *batches(0)).shape == ()  # tracing is where strictness is checked


class TestBatches:
    def test_same_step_same_batch_other_step_another(self, batches):
        first, again, other = batches(3), batches(3), batches(4)
        assert isinstance(first, Batch)
        np.testing.assert_array_equal(first.pictures, again.pictures)
        np.testing.assert_array_equal(first.input_ids, again.input_ids)
        assert not np.array_equal(first.pictures, other.pictures)

    def test_captions_of_a_step_differ_and_belong_to_their_pictures(self):
        few = Batches(pictograms(), tokenize, 6, 6, seed=1)
        few.kind_rate = np.eye(len(few.kind_rate))[0]  # bare captions
        by_ids = {tuple(row): name for row, name in zip(tokenize(NAMES), NAMES, strict=True)}
        for step in range(5):
            batch = few(step)
            names = [by_ids[tuple(row)] for row in batch.input_ids]
            assert sorted(names) == sorted(NAMES)
            for picture, name in zip(batch.pictures, names, strict=True):
                total = picture.reshape(-1, 4).sum(axis=0)
                assert ["red", "green", "blue"][int(np.argmax(total[:3]))] == name.split()[0]

    def test_too_many_texts_are_refused(self):
        with pytest.raises(ValueError, match="4 pictures, 7 texts and 6 captions"):
            Batches(pictograms(), tokenize, 4, 7, seed=0)

    def test_texts_of_a_caption(self):
        texts = texts_of("red disc", ["red", "round"], np.random.default_rng(0))
        assert texts[: len(PROMPTS)] == [prompt.format("red disc") for prompt in PROMPTS]
        with_tags, tags_only = texts[len(PROMPTS) :][:3], texts[len(PROMPTS) :][3:]
        assert all(text.startswith("red disc r") for text in with_tags)
        assert all(sorted(text.split()) == ["red", "round"] for text in tags_only)
        assert set(texts_of("red disc", [], np.random.default_rng(0))[len(PROMPTS) :]) == {"red disc"}


class TestAugmentation:
    def test_warp_with_the_identity_changes_nothing_and_flip_mirrors(self, batches):
        pictures = batches.images[:2]
        same = np.tile(np.array([1.0, 0, 0, 0, 1, 0]), (2, 1))
        np.testing.assert_array_equal(warp(pictures, same), np.stack([np.asarray(p) for p in pictures]))
        mirrored = np.tile(np.array([-1.0, 0, 64, 0, 1, 0]), (2, 1))
        np.testing.assert_array_equal(warp(pictures, mirrored), np.stack([np.asarray(p)[:, ::-1] for p in pictures]))

    def test_flip_negates_what_reaches_the_first_column_of_the_map(self):
        plain = affine_coefficients(np.random.default_rng(0), np.zeros(5, bool))
        flipped = affine_coefficients(np.random.default_rng(0), np.ones(5, bool))
        np.testing.assert_allclose(flipped[:, [0, 3]], -plain[:, [0, 3]])
        np.testing.assert_allclose(flipped[:, [1, 4]], plain[:, [1, 4]])

    def test_restyled_pixels_are_in_range_and_mostly_on_white(self, batches):
        pictures = np.stack([np.asarray(picture) for picture in batches.images] * 8)
        pixels = np.asarray(jax.jit(restyle)(jax.random.key(0), pictures))
        assert pixels.shape == (96, 64, 64, 3) and pixels.dtype == np.float32
        assert pixels.min() >= -1 and pixels.max() <= 1
        white = (pixels[:, 0, 0] == 1).all(axis=-1).mean()
        assert 0.6 < white < 0.9


class TestVocabulary:
    def test_layout_and_determinism(self, tmp_path):
        import sentencepiece

        rows = [{"caption": f"{a} {b}", "tags": [a, b]} for a in ("red", "dark green") for b in ("disc", "bar!")]
        lines = corpus(rows)
        assert "red bar" in lines and "a photo of dark green bar" in lines
        for name in ("a.model", "b.model"):
            write_vocabulary(lines, tmp_path / name, size=90)
        assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
        assert [pieces.id_to_piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
        assert (pieces.pad_id(), pieces.eos_id(), pieces.unk_id(), pieces.bos_id()) == (0, 1, 2, -1)
        assert 2 not in pieces.encode("quick brown fox <3>")

    def test_canonical_text(self):
        assert canonical("  A Woman’s Hat, “new”\n(2)!") == "a woman’s hat “new” 2"
