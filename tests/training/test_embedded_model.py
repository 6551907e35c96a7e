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
from siglip_jax.training import embedded_recipe, embedded_step, embedded_styles
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

    def fresh_state(model, recipe, optimizer, start=None):
        if start is not None:
            return embedded_step.initial_state(model, recipe, optimizer, start)
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
        rate = embedded_step.learning_rate(em.Recipe(steps=1000, warmup=100, final_rate=0.02), 0.5)
        np.testing.assert_allclose([rate(0), rate(50), rate(100), rate(550), rate(1000)], [0, 0.25, 0.5, 0.255, 0.01])

    def test_muon_takes_the_dense_kernels_and_only_them(self, model):
        params = em.initial_state(model, TINY, em.make_optimizer(TINY))["params"]
        chosen = embedded_step._muon_dimensions(params)
        leaf = (type(None), embedded_step.optax.contrib.MuonDimensionNumbers)
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
            return embedded_step.sigmoid_loss_of_logits(
                out.logits_per_image, jnp.eye(len(pixels), len(ids), dtype=bool)
            )

        params = em.initial_state(model, TINY, em.make_optimizer(TINY))["params"]
        assert jax.eval_shape(loss, params, *batches(0)).shape == ()  # tracing is where strictness is checked

    def test_shrunk_pictures_keep_their_colours_and_place(self):
        pixels = jnp.full((1, 64, 64, 3), -0.5).at[:, :32].set(0.5)
        small = np.asarray(embedded_step.shrunk(pixels, 48))
        assert small.shape == (1, 48, 48, 3)
        np.testing.assert_allclose(small[:, :22], 0.5, rtol=1e-6)
        np.testing.assert_allclose(small[:, -22:], -0.5, rtol=1e-6)
        np.testing.assert_allclose(small + small[:, ::-1], 0.0, atol=1e-6)


class TestStages:
    def test_first_steps_are_small_and_the_others_whole(self, tmp_path, batches, model, monkeypatch):
        sizes = []

        def make_step(model, recipe, optimizer, size):
            def step(state, pictures, ids):
                sizes.append(size)
                return state | {"step": state["step"] + 1}, jnp.zeros(())

            return step

        monkeypatch.setattr(em, "make_step", make_step)
        monkeypatch.setattr(em, "initial_state", lambda *_: {"step": jnp.zeros((), jnp.int32)})
        recipe = dataclasses.replace(TINY, steps=5, low_steps=3, low_size=32)
        em.train(model, batches, recipe, tmp_path, save_every=2, stop_at=2)
        em.train(model, batches, recipe, tmp_path)
        assert sizes == [32, 32, 32, 64, 64]

    def test_the_loss_of_a_small_wide_step_is_strict_about_types(self, batches, model):
        def loss(params, pictures, ids):
            pixels = embedded_step.shrunk(embedded_styles.restyle_widely(jax.random.key(0), pictures), 32)
            out = model.apply({"params": params}, input_ids=ids, pixel_values=pixels, interpolate_pos_encoding=True)
            return out.logits_per_image

        params = em.initial_state(model, TINY, em.make_optimizer(TINY))["params"]
        assert jax.eval_shape(loss, params, *batches(0)).shape == (4, 6)  # tracing is where strictness is checked

    def test_a_grown_model_sees_an_enlarged_patch_as_it_was_seen(self, model):
        params = jax.tree.map(np.asarray, embedded_step.initial_state(model, TINY, em.make_optimizer(TINY))["params"])
        finer = dataclasses.replace(TINY, patch_size=8)
        grown = embedded_recipe.grown(TINY.config(64), params, finer)
        new = SiglipModel(finer.config(64))
        patches = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
        enlarged = patches[:, :8, :8].repeat(2, axis=1).repeat(2, axis=2)
        kernels = [p["vision_model"]["embeddings"]["patch_embedding"]["kernel"] for p in (params, grown)]
        old_seen = np.einsum("hwc,hwcd->d", enlarged[0], kernels[0])
        new_seen = np.einsum("hwc,hwcd->d", patches[0, :8, :8], kernels[1])
        np.testing.assert_allclose(new_seen, old_seen, atol=1e-4)
        assert new.apply({"params": grown}, patches, method="get_image_features").shape == (1, 64)
        assert embedded_recipe.grown(TINY.config(64), params, TINY) is params

    @pytest.mark.usefixtures("optax_types")
    def test_the_start_outlives_the_training_that_begins_there(self, tmp_path, batches, model):
        start = jax.tree.map(jnp.asarray, em.initial_state(model, TINY, em.make_optimizer(TINY))["params"])
        trained = em.train(model, batches, TINY, tmp_path, stop_at=2, start=start)[
            "average"
        ]  # the rate of the first step is 0
        middle = embedded_recipe.blended(start, trained, 0.5)
        for a, m, b in zip(*map(jax.tree.leaves, (start, middle, trained)), strict=True):
            np.testing.assert_allclose(m, (a + b) / 2, rtol=1e-5, atol=1e-6)
        assert not np.array_equal(start["logit_bias"], trained["logit_bias"])

    def test_stages_follow_each_other_and_done_ones_are_not_done_again(self, tmp_path, monkeypatch):
        trained = []

        def train(model, batches, recipe, work, start):
            trained.append((work.name, recipe, None if start is None else int(start["mark"])))
            return {"average": {"mark": np.asarray(2 * len(trained))}}

        monkeypatch.setattr(em, "train", train)
        monkeypatch.setattr(em, "grown", lambda config, params, recipe: params)
        monkeypatch.setattr(em, "load_split", lambda *_: pictograms())
        monkeypatch.setattr(em, "write_vocabulary", lambda lines, path: write_vocabulary(lines, path, size=90))
        monkeypatch.setattr(em, "export", lambda out, model, params, processor: trained.append(int(params["mark"])))
        second = dataclasses.replace(TINY, seed=1, wide=True, blend=0.5)
        em.run(tmp_path, tmp_path / "out", tmp_path / "run", stages=(TINY, second))
        assert trained == [("stage1", TINY, None), ("stage2", second, 2), 3]  # half way from 2 to 4

    def test_the_stages_are_a_model_that_is_only_tuned_further(self):
        first, *others = embedded_recipe.STAGES
        assert len({recipe.seed for recipe in embedded_recipe.STAGES}) == len(embedded_recipe.STAGES)
        for recipe in others:
            assert recipe.vision_width == first.vision_width and recipe.positions == first.positions


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

    def test_widely_restyled_pixels_are_in_range_and_not_all_on_white(self, batches):
        pictures = np.stack([np.asarray(picture) for picture in batches.images] * 16)
        pixels = np.asarray(jax.jit(embedded_styles.restyle_widely)(jax.random.key(0), pictures))
        assert pixels.shape == (192, 64, 64, 3) and pixels.dtype == np.float32
        assert np.isfinite(pixels).all() and pixels.min() >= -1 and pixels.max() <= 1
        white = (pixels[:, 0, 0] > 0.85).all(axis=-1)  # soft ink leaves a trace of itself on the paper
        assert 0.35 < white.mean() < 0.65
        busy = slice(round(0.2 * 192), round(0.2 * 192) + round(0.35 * 192))
        assert white[busy].mean() < 0.15 < 0.6 < np.delete(white, np.r_[busy]).mean()  # noise can be white, too

    def test_ink_follows_edges_and_leaves_the_border_of_the_picture_alone(self):
        alpha = jnp.zeros((8, 1, 64, 64)).at[:, :, 20:44, 20:].set(1.0)  # it touches the right border
        rgb = jnp.full((8, 3, 64, 64), 0.9)
        shown, cover = embedded_styles.redraw(jax.random.key(1), rgb, alpha)
        ink = np.asarray(embedded_styles._ink(jax.random.key(1), rgb, alpha))[:, 0]
        assert (ink[:, 32, 19:21].max(axis=1) > 0.5).all()
        assert (ink[:, 32, 30:] < 0.05).all() and (ink[:, :10] < 0.05).all()
        assert shown.shape == rgb.shape and cover.shape == alpha.shape
        assert (np.asarray(cover) >= 0).all() and (np.asarray(cover) <= 1).all()


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
