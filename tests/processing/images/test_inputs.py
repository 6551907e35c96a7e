"""One image or several, in the arrays of every library: the same answer from all that takes images."""

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from siglip_jax.inference import Batcher
from siglip_jax.processing import Siglip2ImageProcessor, SiglipImageProcessor, SiglipImageProcessorPil, load_image
from siglip_jax.processing.images.inputs import as_array, as_images, is_one_image
from tests.support.images import smooth

IMAGE = smooth(64, 64)


class Convertible:
    """An array of another library that numpy converts; it has no shape and no axes to iterate over."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


class Exchangeable:
    """An array of another library that only hands over its memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def tensor(array: np.ndarray, dtype: str = "uint8"):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(array.copy()).to(getattr(torch, dtype))


ONE = {
    "numpy": lambda: IMAGE,
    "torch HWC": lambda: tensor(IMAGE),
    "torch CHW": lambda: tensor(IMAGE.transpose(2, 0, 1)),
    "torch float": lambda: tensor(IMAGE / 255, "float32"),
    "torch with a gradient": lambda: tensor(IMAGE / 255, "float32").requires_grad_(),
    "jax": lambda: jnp.asarray(IMAGE),
    "__array__": lambda: Convertible(IMAGE),
    "__dlpack__": lambda: Exchangeable(IMAGE),
}


@pytest.mark.parametrize("kind", ONE)
def test_an_array_of_any_library_is_one_image(kind, shared_siglip):
    one = ONE[kind]()
    expected = shared_siglip.encode_image(PIL.Image.fromarray(IMAGE))
    assert is_one_image(one)
    np.testing.assert_array_equal(load_image(one), IMAGE)
    np.testing.assert_array_equal(shared_siglip.encode_image(one), expected)
    np.testing.assert_array_equal(shared_siglip.encode_image([one]), expected)
    assert shared_siglip.similarity(one, ["a cat", "a dog"]).shape == (1, 2)
    assert [entry["label"] for entry in shared_siglip.classify(one, ["a cat"])] == ["a cat"]
    if "float" in kind or "gradient" in kind:
        return
    for processor in (SiglipImageProcessorPil(), SiglipImageProcessor(), Siglip2ImageProcessor()):
        np.testing.assert_array_equal(processor(one).pixel_values, processor(IMAGE).pixel_values)


@pytest.mark.parametrize("kind", ["torch CHW", "jax", "__array__", "__dlpack__"])
def test_an_array_of_any_library_is_one_image_to_the_batcher(kind, shared_siglip):
    expected = shared_siglip.encode_image(IMAGE)
    with Batcher(shared_siglip) as batcher:
        np.testing.assert_allclose(batcher.encode_image(ONE[kind](), timeout=60.0), expected, atol=5e-7)


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_bfloat16_is_one_image_of_floats(library, shared_siglip):
    grey = np.repeat(np.uint8([0, 255])[:, None], 8, axis=1)
    one = jnp.asarray(grey / 255, jnp.bfloat16) if library == "jax" else tensor(grey / 255, "bfloat16")
    assert is_one_image(one)
    assert as_array(one).dtype == np.float32
    np.testing.assert_array_equal(load_image(one), grey)
    np.testing.assert_array_equal(shared_siglip.encode_image(one), shared_siglip.encode_image(grey))


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray, tensor, Convertible, Exchangeable])
def test_an_array_of_four_axes_is_a_batch_of_images(make, shared_siglip):
    batch = make(np.stack([IMAGE, IMAGE[::-1], IMAGE]))
    assert not is_one_image(batch)
    expected = shared_siglip.encode_image([IMAGE, IMAGE[::-1], IMAGE])
    np.testing.assert_array_equal(shared_siglip.encode_image(batch), expected)
    assert SiglipImageProcessorPil()(batch).pixel_values.shape == (3, 224, 224, 3)


@pytest.mark.parametrize(
    "one", ["a.png", b"bytes", PIL.Image.new("L", (1, 1)), np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8)]
)
def test_single_images(one):
    assert is_one_image(one)
    assert list(as_images(one)) == [one] or as_images(one)[0] is one


@pytest.mark.parametrize("many", [["a.png"], (), np.zeros((1, 2, 2, 3)), np.array(["a.png", "b.png"]), iter("ab")])
def test_several_images(many):
    assert not is_one_image(many)
    assert as_images(many) is many


def test_paths_in_an_array_are_several_images(tmp_path):
    PIL.Image.fromarray(IMAGE).save(tmp_path / "a.png")
    paths = np.array([str(tmp_path / "a.png")] * 2)
    for many in (paths, paths.astype(object)):
        assert not is_one_image(many)
        assert SiglipImageProcessorPil()(many).pixel_values.shape == (2, 224, 224, 3)
    np.testing.assert_array_equal(load_image(paths[0]), IMAGE)


def test_what_is_no_image():
    with pytest.raises(ValueError, match="images must be an image .* got int"):
        as_images(3)


def test_an_array_out_of_reach_is_refused_in_one_line():
    class OnAnotherDevice:
        ndim, dtype = 3, np.dtype(np.uint8)

        def __array__(self, dtype=None, copy=None):
            raise TypeError("implicit conversion\nis not allowed")

    with pytest.raises(
        ValueError,
        match=r"^image must be an array in host memory, got a OnAnotherDevice \(implicit co[^\n]*\); copy it there$",
    ):
        load_image(OnAnotherDevice())
