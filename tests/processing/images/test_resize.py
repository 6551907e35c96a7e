"""The resize by matrix products against Pillow, and `SiglipImageProcessor` against the class on Pillow: bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from siglip_jax.processing import SiglipImageProcessor, SiglipImageProcessorPil, resize_and_normalize
from siglip_jax.processing.images import resize as module
from tests.support.images import edges, noise, picture, smooth


def pillow(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    return np.asarray(PIL.Image.fromarray(image).resize(size[::-1], resample))


def on_device(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    return np.asarray(module.resize_ragged([image], size, resample, None))[0]


def extremes(height: int, width: int) -> np.ndarray:
    return np.where(noise(height, width, seed=5) > 127, 255, 0).astype(np.uint8)


class TestPillow:
    @pytest.mark.slow
    @pytest.mark.parametrize("resample", range(6))
    def test_filters_down_and_up(self, resample):
        """All in one bucket, so that one program per filter and order of the passes does for many sizes."""
        rng = np.random.default_rng(resample)
        for i in range(12):
            height, width = rng.integers(65, 97, 2) if i else (96, 65)  # 96 x 65 shrinks vertically first
            for make in (noise, smooth, edges, extremes):
                image = make(height, width)
                for size in ((33, 58), (98, 110)):
                    np.testing.assert_array_equal(on_device(image, size, resample), pillow(image, size, resample))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "shape", [(1, 1), (1, 83), (83, 1), (7, 300), (300, 7), (2, 2), (224, 224), (223, 225), (1500, 40), (40, 1500)]
    )
    @pytest.mark.parametrize("resample", [module.BICUBIC, module.NEAREST])
    def test_odd_shapes(self, shape, resample):
        for size in ((16, 16), (48, 31)):
            image = extremes(*shape)
            np.testing.assert_array_equal(on_device(image, size, resample), pillow(image, size, resample))

    @pytest.mark.slow
    def test_reduction_by_a_hundred(self):
        image = extremes(1600, 1600)
        for resample in (module.BICUBIC, module.BOX, module.BILINEAR):
            np.testing.assert_array_equal(on_device(image, (16, 16), resample), pillow(image, (16, 16), resample))

    @pytest.mark.slow
    def test_order_of_the_passes_matters(self):
        """Pillow 13 begins with the vertical pass here; if this cannot fail, the test above does not look at it."""
        image, size = extremes(96, 65), (33, 58)
        taps = [module._repeated(module.taps(n, m, 3), 1) for n, m in ((96, 33), (65, 58))]
        outs = [np.asarray(module.apply_taps(jnp.asarray(image)[None], *taps, first))[0] for first in (False, True)]
        assert (outs[0] != outs[1]).any()
        np.testing.assert_array_equal(outs[module.vertical_first(96, 65, size)], pillow(image, size, 3))

    @pytest.mark.slow
    def test_bfloat16_of_accelerators(self, monkeypatch):
        monkeypatch.setattr(module.jax, "default_backend", lambda: "gpu")
        image = extremes(90, 130)
        taps = [module._repeated(module.taps(n, m, 3), 1) for n, m in ((90, 40), (130, 50))]
        found = np.asarray(module.apply_taps(jnp.asarray(image)[None], *taps, False))[0]
        np.testing.assert_array_equal(found, pillow(image, (40, 50), 3))

    def test_taps_of_one_size_are_the_identity(self):
        for resample in range(6):
            taps = module.taps(9, 9, resample)
            dense = np.zeros((9, 30), int)
            for o, (start, weights) in enumerate(zip(*taps, strict=True)):
                dense[o, start : start + len(weights)] += weights
            np.testing.assert_array_equal(dense[:, :9], np.eye(9) * 2**22)


class TestFunction:
    @pytest.mark.parametrize("size", [(16, 20), (40, 30)])
    def test_inside_the_users_jit(self, size):
        images = np.stack([noise(40, 30, seed=i) for i in range(3)])
        mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
        run = jax.jit(functools.partial(resize_and_normalize, size=size, mean=mean, std=std))
        processor = SiglipImageProcessorPil(size=size, image_mean=mean, image_std=std)
        np.testing.assert_array_equal(run(jnp.asarray(images)), processor(images).pixel_values)

    def test_under_vmap(self):
        images = np.stack([noise(40, 30, seed=i) for i in range(4)])
        run = jax.jit(jax.vmap(lambda batch: resize_and_normalize(batch, (16, 16))))
        found = run(jnp.asarray(images).reshape(2, 2, 40, 30, 3))
        expected = SiglipImageProcessorPil(size=(16, 16))(images).pixel_values
        np.testing.assert_array_equal(found.reshape(4, 16, 16, 3), expected)


class TestProcessor:
    IMAGES = [
        PIL.Image.fromarray(noise(50, 60)),
        noise(64, 64, seed=1),
        picture("RGBA", 40, 61),
        picture("L", 90, 33),
        picture("P+bytes", 60, 50),
        smooth(33, 34),
        edges(90, 10),
        picture("CMYK", 1, 83),
    ]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"resample": 2, "image_mean": [0.48, 0.46, 0.41]},
            {"do_normalize": False},
            {"do_normalize": False, "do_rescale": False},
            {"do_center_crop": True, "crop_size": (20, 60)},
            {"size": {"shortest_edge": 20}, "do_pad": True},
            {"do_resize": False, "do_pad": True},
            {"data_format": "channels_first"},
        ],
    )
    @pytest.mark.parametrize("kind", ["np", "jax"])
    def test_equals_the_class_on_pillow(self, options, kind):
        options = {"size": (32, 40)} | options
        expected = SiglipImageProcessorPil(**options)(self.IMAGES).pixel_values
        found = SiglipImageProcessor(**options)(self.IMAGES, return_tensors=kind).pixel_values
        assert isinstance(found, np.ndarray if kind == "np" else jax.Array)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)

    def test_pictures_that_go_through_pillow(self):
        fractions = (noise(20, 30) / 255).astype(np.float32)
        for images, options in (
            ([fractions, noise(20, 30)], {"do_rescale": False}),
            ([picture("RGBA", 20, 30)], {"do_convert_rgb": False, "do_normalize": False}),
            ([picture("L", 20, 30)], {"do_convert_rgb": False, "image_mean": 0.5, "image_std": 0.5}),
        ):
            expected = SiglipImageProcessorPil(**options)(images).pixel_values
            np.testing.assert_array_equal(SiglipImageProcessor(**options)(images).pixel_values, expected)

    def test_one_group_stays_on_the_device_and_in_order(self):
        images = [noise(50, 60, seed=i) for i in range(7)]
        found = SiglipImageProcessor(size=16)(images, return_tensors="jax", size=(16, 16)).pixel_values
        expected = SiglipImageProcessorPil()(images, size=(16, 16)).pixel_values
        np.testing.assert_array_equal(found, expected)


class TestCompilations:
    def test_buckets(self):
        sizes = sorted({module.bucket(n) for n in range(1, 4097)})
        assert sizes == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
        assert all(n <= module.bucket(n) <= max(32, 1.5 * n) for n in range(1, 4097))

    def test_batches(self):
        assert [len(part) for part in module.powers_of_two(range(71))] == [32, 32, 4, 2, 1]
        assert [i for part in module.powers_of_two(range(71)) for i in part] == list(range(71))

    @pytest.mark.slow
    def test_programs_are_few_and_made_once(self):
        processor = SiglipImageProcessor(size=(17, 19))
        rng = np.random.default_rng(0)
        module._resized.clear_cache()
        for _ in range(30):
            height, width = rng.integers(65, 97, 2)
            processor(noise(height, width))
        assert module._resized._cache_size() <= 2  # one for each order of the passes
        processor([noise(70, 70)] * 8)
        before = module._resized._cache_size()
        processor([noise(71 + i, 90 - i) for i in range(8)])
        processor([noise(70, 70)] * 8, resample=2, image_mean=0.3, image_std=0.2)
        assert module._resized._cache_size() <= before + 1  # bilinear has fewer taps
