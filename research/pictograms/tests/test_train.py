"""The training of the bundled model, on a few synthetic images."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.pictograms import objective as pictogram_objective
from research.pictograms import recipe as pictogram_recipe
from research.pictograms import styles as pictogram_styles
from research.pictograms import train as pictogram_train
from research.pictograms.augmentation import affine_coefficients, restyle, warp
from research.pictograms.batches import Batch, Batches, texts_of
from research.pictograms.dataset import PROMPTS, Pictograms
from research.pictograms.objective import augmentation, make_objective, random_params, shrunk
from research.pictograms.recipe import Stage
from research.pictograms.vocabulary import corpus, write_vocabulary
from siglip_jax.models import SiglipModel
from siglip_jax.params import flatten
from siglip_jax.processing.text.canonical import canonicalize
from siglip_jax.training.loop import LoopOptions, Outcome
from siglip_jax.training.optimizer import treatments
from siglip_jax.training.step import TrainState

pytestmark = pytest.mark.usefixtures("quick_compilation")

NAMES = ["red disc", "green disc", "blue disc", "red bar", "green bar", "blue bar"]
TINY = Stage(
    pictogram_recipe.make_recipe(images=4, steps=20, warmup=2, rate=0.02, seed=0),
    texts=6,
    vision_width=64,
    vision_depth=1,
    text_width=64,
    text_depth=1,
    positions=12,
)


def pictograms() -> Pictograms:
    """Two images of each name, one shifted."""
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
        ids = [2 + ord(c) % 60 for c in canonicalize(text)][: TINY.positions - 1]
        row[: len(ids)] = ids
    return out


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(pictograms(), tokenize, 4, TINY.texts, seed=0)


@pytest.fixture(scope="module")
def model() -> SiglipModel:
    return SiglipModel(TINY.config(64))


@pytest.fixture(scope="module")
def params(model):
    return jax.tree.map(np.asarray, random_params(model, TINY))


def with_recipe(stage: Stage, **changes: Any) -> Stage:
    return dataclasses.replace(stage, recipe=dataclasses.replace(stage.recipe, **changes))


@pytest.fixture
def plain(monkeypatch):
    """No augmentation: compiling it takes most of the time."""
    for name in ("restyle", "restyle_widely"):
        monkeypatch.setattr(pictogram_objective, name, lambda key, x: x[..., :3].astype(jnp.float32) / 127.5 - 1)


@pytest.mark.usefixtures("plain")
class TestTraining:
    @pytest.mark.slow
    def test_loss_falls_and_the_run_is_of_this_stage(self, tmp_path, batches, model, params):
        outcome = pictogram_train.train_stage(
            model, TINY, jax.tree.map(jnp.array, params), batches, LoopOptions(tmp_path, log_every=5)
        )
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log] == [5, 10, 15, 20]
        assert log[-1]["loss"] < 0.75 * log[0]["loss"]
        assert outcome.steps == 20 and not outcome.stopped

        other = with_recipe(TINY, seed=1)
        with pytest.raises(ValueError, match="to resume the run, recipe must be .*; give another") as caught:
            pictogram_train.train_stage(model, other, jax.tree.map(jnp.array, params), batches, LoopOptions(tmp_path))
        assert "\n" not in str(caught.value)
        others = Batches(pictograms(), tokenize, 4, TINY.texts, seed=1)
        with pytest.raises(ValueError, match="the data must be those of this run, got others"):
            pictogram_train.train_stage(model, TINY, jax.tree.map(jnp.array, params), others, LoopOptions(tmp_path))

    @pytest.mark.slow
    def test_the_loss_is_the_sigmoid_loss_of_all_pairs_with_matches_by_row(self, batches, model, params):
        objective, arrays = make_objective(model, TINY), jax.tree.map(jnp.asarray, batches(3).arrays)
        params = jax.tree.map(jnp.asarray, params)
        embeds = objective.embed(params, arrays, jax.random.key(5))
        pixels = augmentation(TINY)(jax.random.key(5), arrays["pixels"])
        out = model.apply({"params": params}, input_ids=arrays["input_ids"], pixel_values=pixels)
        logits = np.asarray(out.logits_per_image, np.float64)
        signs = 2 * np.eye(4, 6) - 1
        np.testing.assert_allclose(
            objective.loss(params, embeds, arrays)[0], np.log1p(np.exp(-signs * logits)).sum() / 4, rtol=2e-6
        )

    def test_muon_moves_the_matrices_and_adam_the_rest_at_its_own_rate(self, params):
        table = treatments(TINY.recipe.optimizer, flatten(params))
        for path, (rate, decay) in table.items():
            matrix = path.endswith("/kernel") and "patch_embedding" not in path
            assert rate == (1.0 if matrix else 0.15), path
            assert decay == float(matrix), path

    def test_temperature_and_bias_start_where_the_loss_is_small(self, params):
        np.testing.assert_allclose(np.exp(params["logit_scale"]), [10.0], rtol=1e-6)
        np.testing.assert_allclose(params["logit_bias"], [-np.log(5)], rtol=1e-6)


class TestImages:
    @pytest.mark.parametrize("wide", [0.0, 0.5, 1.0])
    def test_a_share_of_the_rows_is_augmented_widely_and_all_are_shrunk(self, batches, monkeypatch, wide):
        monkeypatch.setattr(pictogram_objective, "restyle", lambda key, x: jnp.zeros((len(x), 64, 64, 3)))
        monkeypatch.setattr(pictogram_objective, "restyle_widely", lambda key, x: jnp.ones((len(x), 64, 64, 3)))
        stage = dataclasses.replace(TINY, wide=wide, image_size=32)
        pixels = np.asarray(augmentation(stage)(jax.random.key(0), jnp.asarray(batches(0).images)))
        assert pixels.shape == (4, 32, 32, 3)
        np.testing.assert_allclose(pixels.mean(axis=(1, 2, 3)), np.arange(4) < 4 * wide, rtol=1e-6)

    def test_shrunk_images_keep_their_colours_and_place(self):
        pixels = jnp.full((1, 64, 64, 3), -0.5).at[:, :32].set(0.5)
        small = np.asarray(shrunk(pixels, 48))
        assert small.shape == (1, 48, 48, 3)
        np.testing.assert_allclose(small[:, :22], 0.5, rtol=1e-6)
        np.testing.assert_allclose(small[:, -22:], -0.5, rtol=1e-6)
        np.testing.assert_allclose(small + small[:, ::-1], 0.0, atol=1e-6)


@pytest.mark.usefixtures("plain")
class TestStages:
    @pytest.mark.slow
    def test_a_grown_model_sees_an_enlarged_patch_as_it_was_seen(self, params):
        finer = dataclasses.replace(TINY, patch_size=8, image_size=48)
        grown = pictogram_recipe.grown(TINY.config(64), params, finer)
        new = SiglipModel(finer.config(64))
        patches = np.random.default_rng(0).normal(size=(1, 48, 48, 3)).astype(np.float32)
        enlarged = patches[:, :8, :8].repeat(2, axis=1).repeat(2, axis=2)
        kernels = [p["vision_model"]["embeddings"]["patch_embedding"]["kernel"] for p in (params, grown)]
        old_seen = np.einsum("hwc,hwcd->d", enlarged[0], kernels[0])
        new_seen = np.einsum("hwc,hwcd->d", patches[0, :8, :8], kernels[1])
        np.testing.assert_allclose(new_seen, old_seen, atol=1e-4)
        assert new.apply({"params": grown}, patches, method="get_image_features").shape == (1, 64)

    def test_what_does_not_grow_is_copied_in_float32(self, params):
        rounded = jax.tree.map(lambda x: x.astype(np.float16), params)
        same = pictogram_recipe.grown(TINY.config(64), rounded, TINY)
        for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(rounded), strict=True):
            assert a.dtype == np.float32
            np.testing.assert_array_equal(a, b)

    @pytest.mark.slow
    @pytest.mark.parametrize("stop_in", [None, 1, 2])
    def test_each_stage_starts_from_what_the_one_before_ended_with(self, tmp_path, monkeypatch, stop_in):
        monkeypatch.setattr(pictogram_train, "load_split", lambda *_: pictograms())
        monkeypatch.setattr(
            pictogram_train, "write_vocabulary", lambda lines, path: write_vocabulary(lines, path, size=90)
        )
        second = with_recipe(dataclasses.replace(TINY, wide=0.5, blend=0.25), seed=1)
        started, zero = [], jnp.zeros((), jnp.int32)

        def train_stage(model, stage, params, batches, run):
            """Adds one to every weight."""
            assert (stage, run.directory.name) == ((TINY, "stage1"), (second, "stage2"))[len(started)]
            assert (batches.images, batches.texts, batches.seed) == (4, 6, stage.recipe.seed)
            started.append(jax.tree.map(np.array, params))
            added = jax.tree.map(lambda x: x.at[:].add(1.0), params)
            return Outcome(TrainState(zero, {}, params, added, (), zero, zero), 20, stop_in == len(started))

        monkeypatch.setattr(pictogram_train, "train_stage", train_stage)
        finished = pictogram_train.run(tmp_path, tmp_path / "out", tmp_path / "run", stages=(TINY, second))
        assert finished == (stop_in is None) == (tmp_path / "out/model.safetensors").exists()
        assert len(started) == (stop_in or 2)
        if stop_in != 1:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a + 1.0, rtol=1e-6), *started)
        if finished:
            _, weights = SiglipModel.from_pretrained(tmp_path / "out", param_dtype=np.float32)
            for path, x in flatten(weights).items():
                wanted = flatten(started[1])[path] + 0.25
                np.testing.assert_allclose(x, wanted, rtol=2**-11, atol=1e-6, err_msg=path)  # rounded to float16

    def test_the_stages_are_a_model_that_is_only_tuned_further(self):
        first, *others = pictogram_recipe.STAGES
        assert len({stage.recipe.seed for stage in pictogram_recipe.STAGES}) == len(pictogram_recipe.STAGES)
        for stage in others:
            assert stage.vision_width == first.vision_width and stage.positions == first.positions
        assert pictogram_recipe.STAGES[-1].image_size == pictogram_recipe.SIZE


class TestBatches:
    def test_same_step_same_batch_other_step_another(self, batches):
        first, again, other = batches(3), batches(3), batches(4)
        assert isinstance(first, Batch)
        np.testing.assert_array_equal(first.images, again.images)
        np.testing.assert_array_equal(first.input_ids, again.input_ids)
        assert not np.array_equal(first.images, other.images)

    def test_captions_of_a_step_differ_and_belong_to_their_images(self):
        few = Batches(pictograms(), tokenize, 6, 6, seed=1)
        few.kind_rate = np.eye(len(few.kind_rate))[0]  # bare captions
        by_ids = {tuple(row): name for row, name in zip(tokenize(NAMES), NAMES, strict=True)}
        for step in range(5):
            batch = few(step)
            names = [by_ids[tuple(row)] for row in batch.input_ids]
            assert sorted(names) == sorted(NAMES)
            for image, name in zip(batch.images, names, strict=True):
                total = image.reshape(-1, 4).sum(axis=0)
                assert ["red", "green", "blue"][int(np.argmax(total[:3]))] == name.split()[0]

    def test_too_many_texts_are_refused(self):
        with pytest.raises(ValueError, match="got 4 images, 7 texts and 6 captions; lower the batch"):
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
        images = batches.drawings[:2]
        same = np.tile(np.array([1.0, 0, 0, 0, 1, 0]), (2, 1))
        np.testing.assert_array_equal(warp(images, same), np.stack([np.asarray(p) for p in images]))
        mirrored = np.tile(np.array([-1.0, 0, 64, 0, 1, 0]), (2, 1))
        np.testing.assert_array_equal(warp(images, mirrored), np.stack([np.asarray(p)[:, ::-1] for p in images]))

    def test_flip_negates_what_reaches_the_first_column_of_the_map(self):
        plain = affine_coefficients(np.random.default_rng(0), np.zeros(5, bool))
        flipped = affine_coefficients(np.random.default_rng(0), np.ones(5, bool))
        np.testing.assert_allclose(flipped[:, [0, 3]], -plain[:, [0, 3]])
        np.testing.assert_allclose(flipped[:, [1, 4]], plain[:, [1, 4]])

    @pytest.mark.slow
    def test_restyled_pixels_are_in_range_and_mostly_on_white(self, batches):
        images = np.stack([np.asarray(image) for image in batches.drawings] * 8)
        pixels = np.asarray(jax.jit(restyle)(jax.random.key(0), images))
        assert pixels.shape == (96, 64, 64, 3) and pixels.dtype == np.float32
        assert pixels.min() >= -1 and pixels.max() <= 1
        white = (pixels[:, 0, 0] == 1).all(axis=-1).mean()
        assert 0.6 < white < 0.9

    @pytest.mark.slow
    def test_widely_restyled_pixels_are_in_range_and_not_all_on_white(self, batches):
        images = np.stack([np.asarray(image) for image in batches.drawings] * 16)
        pixels = np.asarray(jax.jit(pictogram_styles.restyle_widely)(jax.random.key(0), images))
        assert pixels.shape == (192, 64, 64, 3) and pixels.dtype == np.float32
        assert np.isfinite(pixels).all() and pixels.min() >= -1 and pixels.max() <= 1
        white = (pixels[:, 0, 0] > 0.85).all(axis=-1)  # soft ink leaves a trace of itself on the paper
        assert 0.35 < white.mean() < 0.65
        busy = slice(round(0.2 * 192), round(0.2 * 192) + round(0.35 * 192))
        assert white[busy].mean() < 0.15 < 0.6 < np.delete(white, np.r_[busy]).mean()  # noise can be white, too

    @pytest.mark.slow
    def test_ink_follows_edges_and_leaves_the_border_of_the_image_alone(self):
        alpha = jnp.zeros((8, 1, 64, 64)).at[:, :, 20:44, 20:].set(1.0)  # it touches the right border
        rgb = jnp.full((8, 3, 64, 64), 0.9)
        shown, cover = pictogram_styles.redraw(jax.random.key(1), rgb, alpha)
        ink = np.asarray(pictogram_styles._ink(jax.random.key(1), rgb, alpha))[:, 0]
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
        assert canonicalize("  A Woman’s Hat, “new”\n(2)!") == "a woman’s hat “new” 2"
