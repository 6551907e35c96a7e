"""Images with masks: both layouts give the same numbers, and damaged masks are named."""

import numpy as np
import PIL.Image
import pytest

from siglip_jax.data import open_masks
from tests.support.masks import write_masks


def paint(file, values, mode="L"):
    """Writes a mask with these values as they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(np.asarray(values, np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image = PIL.Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [9] * 759)
    image.save(file)


@pytest.fixture
def folder(tmp_path):
    """Two images of 3 x 2 pixels, one of them in a subfolder."""
    for name in ("a.png", "deeper/b.jpg"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (3, 2)).save(file)
    return tmp_path


def test_class_folders_and_indices_are_the_same(folder):
    expected = np.array([[0, 1, 1], [2, 2, 0]])
    paint(folder / "masks" / "horse" / "a.png", 200 * (expected == 2))
    paint(folder / "masks" / "cow" / "a.png", expected == 1)
    paint(folder / "masks" / "cow" / "deeper" / "b.png", np.dstack([np.zeros((2, 3)), np.eye(2, 3), np.zeros((2, 3))]))
    by_class = open_masks(folder)
    assert (by_class.classes, len(by_class)) == (("cow", "horse"), 2)
    assert [by_class[i].name for i in range(2)] == ["images/a.png", "images/deeper/b.jpg"]
    assert by_class[0].mask.tolist() == expected.tolist()
    assert by_class[1].mask.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert by_class[0].image == (folder / "images" / "a.png").read_bytes()

    (folder / "classes.txt").write_text("cow\nhorse\n")
    for mode in ("L", "P", "I;16"):
        paint(folder / "masks" / "a.png", np.where(expected == 0, 255, expected), mode)
        with pytest.warns(UserWarning, match="3 masks are left out, of no image or not named NAME.png"):
            indices = open_masks(folder)
        assert indices.classes == by_class.classes
        assert indices[0].mask.tolist() == np.where(expected == 0, 255, expected).tolist()


def test_an_image_without_masks(folder):
    paint(folder / "masks" / "cow" / "a.png", np.eye(2, 3))
    assert open_masks(folder)[1].mask is None
    (folder / "classes.txt").write_text("cow\n")
    with pytest.warns(UserWarning, match="1 masks are left out"):
        source = open_masks(folder)
    with pytest.raises(FileNotFoundError, match="masks/deeper/b.png: no such image as masks/deeper/b.png"):
        source[1]


def test_masks_that_are_wrong(folder):
    cow, horse = (folder / "masks" / name / "a.png" for name in ("cow", "horse"))
    paint(cow, np.eye(2, 3))
    paint(horse, np.ones((2, 3)))
    source = open_masks(folder)
    with pytest.raises(ValueError, match=r"masks/horse/a.png: a pixel must have one class, got 2 that 'cow' has too"):
        source[0]
    paint(horse, np.ones((3, 2)))
    with pytest.raises(
        ValueError, match="masks/horse/a.png: masks of an image must have one size, got 2 x 3 beside 3 x 2"
    ):
        source[0]
    horse.write_bytes(cow.read_bytes()[:40])
    with pytest.raises(
        ValueError, match="masks/horse/a.png: the mask must be a PNG, got one that cannot be read"
    ) as raised:
        source[0]
    assert "\n" not in str(raised.value)
    (folder / "classes.txt").write_text("cow\nhorse\n")
    for values, message in (
        (np.full((2, 3), 3), "values must be 0 for none, 1 to 2 for the lines of classes.txt, or 255 for those to ign"),
        (np.zeros((2, 3, 3)), "a mask must hold one number a pixel, got 3 channels; save indices"),
    ):
        paint(folder / "masks" / "a.png", values)
        with pytest.warns(UserWarning, match="masks are left out"):
            source = open_masks(folder)
        with pytest.raises(ValueError, match=message):
            source[0]


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="masks: a data set with masks must be images/NAME.jpg, and masks/CLASS"
    ):
        open_masks(folder)
    (folder / "masks").mkdir()
    with pytest.raises(ValueError, match="must have 1 to 254 classes, as images/NAME.jpg, .*, got 0"):
        open_masks(folder)
    (folder / "classes.txt").write_text("\n".join(map(str, range(255))))
    with pytest.raises(ValueError, match="must have 1 to 254 classes, .*, got 255"):
        open_masks(folder)
    PIL.Image.new("RGB", (3, 2)).save(folder / "images" / "a.jpg")
    with pytest.raises(ValueError, match="images must be one or more of different names, got 3 images of 2 names"):
        open_masks(folder)


def test_what_the_other_tests_draw(tmp_path):
    source = open_masks(write_masks(tmp_path, [("horse", "lemon"), ("lemon",)]))
    assert source.classes == ("horse", "lemon")
    assert [sorted(np.unique(source[i].mask)) for i in range(2)] == [[0, 1, 2], [0, 2]]
